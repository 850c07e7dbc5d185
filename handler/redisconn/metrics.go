package redisconn

import (
	"github.com/prometheus/client_golang/prometheus"

	"userconnectivity/handler/metrics"
)

// Collector tells the connections of this process, and what all processes may have. budget returns the budget with so
// many connections for each process. Every process tells the same budget, from settings of the app.
func (c *Client) Collector(budget func(perProcess int) Budget) prometheus.Collector {
	return metrics.Func(func(ch chan<- prometheus.Metric) {
		_, connections, _ := c.Server()
		metrics.Gauge(ch, "redis_connections", "Open connections of this process; of a cluster those to the primary that has most.", float64(connections))
		b := budget(max(connections, 1))
		metrics.Gauge(ch, "redis_budget_used_connections", "Connections that MAX_INSTANCES processes like this one have together.", float64(b.Used()))
		if b.Limit > 0 {
			metrics.Gauge(ch, "redis_budget_limit_connections", "Connections that Redis allows; absent while that is not known.", float64(b.Limit))
		}
	})
}
