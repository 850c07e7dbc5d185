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
		metrics.Func(buildMetrics), a.trackers, a.redis.Collector(a.budget),
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
