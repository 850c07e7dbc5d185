package deferral

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"userconnectivity/handler/metrics"
)

// Describe implements prometheus.Collector.
func (s *Store) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector: what waits while Redis is away, and what became of it.
func (s *Store) Collect(ch chan<- prometheus.Metric) {
	state := s.State()
	var age time.Duration
	if !state.Oldest.IsZero() {
		age = max(time.Since(state.Oldest), 0)
	}
	metrics.Gauge(ch, "deferral_waiting_items", "Heartbeats and leaves that are kept in memory until Redis is back.", float64(state.Items))
	metrics.Gauge(ch, "deferral_waiting_bytes", "Memory that they take, estimated.", float64(state.Bytes))
	metrics.Gauge(ch, "deferral_oldest_age_seconds", "How long the oldest of them has waited.", age.Seconds())
	metrics.Counter(ch, "deferral_deferred_total", "Heartbeats and leaves that were kept in memory.", state.Deferred)
	metrics.Counter(ch, "deferral_superseded_total", "Those of them that a later one replaced.", state.Superseded)
	metrics.Counter(ch, "deferral_written_total", "Those of them that were written.", state.Written)
	metrics.Counter(ch, "deferral_stale_total", "Those that were written and that the live state did not take: something later was there.", state.Stale)
	metrics.Counter(ch, "deferral_expired_total", "Those of them whose deadline passed while they waited.", state.Expired)
	metrics.Counter(ch, "deferral_refused_total", "Heartbeats and leaves for which there was no room.", state.Refused)
	metrics.Counter(ch, "deferral_writes_failed_total", "Writes of what had waited that failed; they are tried again.", state.Failed)
}
