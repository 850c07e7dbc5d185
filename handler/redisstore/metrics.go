package redisstore

import (
	"github.com/prometheus/client_golang/prometheus"

	"userconnectivity/handler/metrics"
)

// Describe implements prometheus.Collector.
func (s *Store) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector: what only a process of a later version can go on with.
func (s *Store) Collect(ch chan<- prometheus.Metric) {
	later := s.Later()
	metrics.Gauge(ch, "later_version_waiting", "Entries of the deadline index that wait for a process of a later version.", float64(later.Waiting))
	metrics.Counter(ch, "later_version_refused_total", "Heartbeats and leaves that were refused because a later version wrote the user's record.", later.Refused)
}
