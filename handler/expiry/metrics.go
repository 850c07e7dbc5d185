package expiry

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"userconnectivity/handler/metrics"
	"userconnectivity/handler/redisconn"
)

func newLateness() prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "listener_claim_delay_seconds", Help: "From the deadline of a session to its claim, both by the clock of Redis.", Buckets: metrics.Seconds,
	})
}

// Describe implements prometheus.Collector. Which metrics there are may depend on the state.
func (l *Listener) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector: the numbers of the sweep and the relay.
func (l *Listener) Collect(ch chan<- prometheus.Metric) {
	s := l.State()
	metrics.Gauge(ch, "listener_running", "1 while the listener's loops run.", metrics.Bool(s.Running))
	metrics.Counter(ch, "listener_sweeps_total", "Sweeps that succeeded.", s.Sweeps)
	metrics.Gauge(ch, "listener_lag_seconds", "How long due sessions may have waited because no sweep succeeded.", s.Lag(time.Now()).Seconds())
	metrics.Counter(ch, "listener_claimed_total", "Sessions whose deadline passed and that were ended.", s.Claimed)
	metrics.Counter(ch, "listener_lost_total", "Due sessions that were renewed, or ended by another listener, before the claim.", s.Lost)
	metrics.Counter(ch, "listener_quarantined_total", "Deadlines of sessions that no record knows, put aside.", s.Quarantined)
	metrics.Gauge(ch, "listener_claim_lateness_seconds", "From the deadline to the claim: the latest of the last sweep that claimed any.", s.Lateness.Seconds())
	l.lateness.Collect(ch)
	metrics.Gauge(ch, "listener_notifications_on", "1 when Redis publishes expired events, 0 when it does not or does not say.",
		metrics.Bool(s.Notifications == redisconn.NotificationsOn))
	metrics.Counter(ch, "listener_expired_events_total", "Expired events of Redis that woke the sweep.", s.ExpiredEvents)
	metrics.Gauge(ch, "listener_outbox_events", "Events that wait to be sent, by the last sweep.", float64(s.Outbox))
	metrics.Gauge(ch, "listener_outbox_oldest_age_seconds", "How long the oldest of them has waited.", s.Oldest.Seconds())
	metrics.Counter(ch, "listener_relayed_total", "Events that were sent and logged.", s.Relayed)
	metrics.Gauge(ch, "listener_failing", "1 while the step fails: the sweep of due sessions, or the relay of events.", metrics.Bool(s.SweepError != ""), "step", "sweep")
	metrics.Gauge(ch, "listener_failing", "1 while the step fails: the sweep of due sessions, or the relay of events.", metrics.Bool(s.RelayError != ""), "step", "relay")
	metrics.Counter(ch, "listener_foreign_claimed_total", "Expired keys of other applications that became events.", s.Foreign.Claimed)
	metrics.Counter(ch, "listener_foreign_not_holder_total", "Expired keys of other applications that were left to another listener.", s.Foreign.NotHolder)
	metrics.Counter(ch, "listener_foreign_dropped_total", "Expired keys of other applications that no event tells of.", s.Foreign.Dropped)
}
