package main

import (
	"context"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"

	"userconnectivity/handler/metrics"
)

// Metrics returns the numbers of this process for Prometheus. All of them are in memory: nothing is asked of Redis,
// the queue or the event log. No label has a value that clients choose.
func (a *app) Metrics() []byte {
	text, err := a.metrics().Text()
	if err != nil {
		a.log.WarnContext(context.Background(), "some metrics are missing", "error", err)
	}
	return text
}

// collectors are the parts that tell numbers: each knows its own.
func (a *app) collectors() []prometheus.Collector {
	parts := []prometheus.Collector{
		metrics.Func(buildMetrics), metrics.Func(a.presenceMetrics), metrics.Func(a.connectionMetrics),
		a.requests, a.breaker, a.store, a.deferred, a.sent, a.logged,
	}
	if a.cfg.Listener {
		parts = append(parts, a.listener, a.census)
	}
	if a.traces != nil {
		parts = append(parts, a.traces)
	}
	return parts
}

func buildMetrics(ch chan<- prometheus.Metric) {
	metrics.Gauge(ch, "build_info", "The version of this process, always 1.", 1, "version", version, "goversion", runtime.Version())
}

// The ways in of heartbeats, as the metrics name them.
const (
	overHTTP  = "http"
	overQueue = "queue"
)

// presenceMetrics tell what the beats and leaves of this process did. They are here since the core knows no Prometheus.
func (a *app) presenceMetrics(ch chan<- prometheus.Metric) {
	for source, tracker := range a.trackers {
		tally := tracker.Tally()
		for change, n := range tally.Beats {
			metrics.Counter(ch, "heartbeats_total", "Heartbeats by where they came from and what they did.", n, "source", source, "change", string(change))
		}
		metrics.Counter(ch, "heartbeats_failed_total", "Heartbeats that were refused because Redis could not be reached or failed.", tally.BeatsFailed, "source", source)
	}
	tally := a.trackers[overHTTP].Tally() // no leave comes over a queue
	for outcome, n := range tally.Leaves {
		metrics.Counter(ch, "leaves_total", "Leaves by what they did.", n, "change", string(outcome))
	}
	metrics.Counter(ch, "leaves_failed_total", "Leaves that were refused because Redis could not be reached or failed.", tally.LeavesFailed)
}

// connectionMetrics tell the connections of this process, and what all processes may have. Every process counts the
// same budget, from settings of the app.
func (a *app) connectionMetrics(ch chan<- prometheus.Metric) {
	_, connections, _ := a.redis.Server()
	metrics.Gauge(ch, "redis_connections", "Open connections of this process; of a cluster those to the primary that has most.", float64(connections))
	budget := a.budget(max(connections, 1))
	metrics.Gauge(ch, "redis_budget_used_connections", "Connections that MAX_INSTANCES processes like this one have together.", float64(budget.Used()))
	if budget.Limit > 0 {
		metrics.Gauge(ch, "redis_budget_limit_connections", "Connections that Redis allows; absent while that is not known.", float64(budget.Limit))
	}
}
