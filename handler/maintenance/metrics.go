package maintenance

import (
	"maps"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"userconnectivity/handler/metrics"
)

// countedTypes are counted from 0 on, so that the first message of a type shows as a rise.
var countedTypes = []Type{
	Scheduled, Starting, Start, FailoverComplete, Ended, ScaleComplete, Moving, Migrating, Migrated, FailingOver, FailedOver, SMigrating, SMigrated, Unknown,
}

// Describe implements prometheus.Collector. Which metrics there are depends on the nodes.
func (s *Set) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector: the breakers, of a cluster those of each primary, and the messages.
func (s *Set) Collect(ch chan<- prometheus.Metric) {
	state := s.State()
	breaker := func(status Status, failures int, labels ...string) {
		metrics.Gauge(ch, "redis_breaker_open", "1 while the circuit breaker is open, so that no command is sent; of each primary of a cluster.",
			metrics.Bool(status == Open), labels...)
		metrics.Gauge(ch, "redis_failures_in_a_row", "Commands that failed since the last one that was answered; of each primary of a cluster.", float64(failures), labels...)
	}
	for node, n := range state.Nodes {
		breaker(n.Status, n.Failures, "node", node)
	}
	if state.Nodes == nil { // a single server
		breaker(state.Status, state.Failures)
	}
	metrics.Counter(ch, "redis_breaker_openings_total", "How often a circuit breaker opened.", state.Opened)

	counts := map[Type]int64{}
	for _, t := range countedTypes {
		counts[t] = 0
	}
	maps.Copy(counts, state.Counts)
	for t, n := range counts {
		metrics.Counter(ch, "redis_maintenance_messages_total", "Maintenance messages of Redis by type.", n, "type", string(t))
	}
	if len(state.Events) > 0 {
		metrics.Gauge(ch, "redis_maintenance_last_message_age_seconds", "Time since the last maintenance message; absent when none came.",
			max(time.Since(state.Events[0].Received), 0).Seconds())
	}
}
