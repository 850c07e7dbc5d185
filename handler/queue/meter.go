package queue

import (
	"context"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"userconnectivity/handler/metrics"
)

// sender puts messages on a queue: all of them, or it returns an error.
type sender interface {
	Send(ctx context.Context, queue string, msgs []Message) error
}

// Meter sends by another sender and measures that. It is safe for concurrent use, and a prometheus.Collector.
type Meter struct {
	sender   sender
	sent     *prometheus.CounterVec
	failed   *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	rejected atomic.Int64
}

// NewMeter returns a Meter of s.
func NewMeter(s sender) *Meter {
	return &Meter{
		sender:  s,
		sent:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "queue_messages_sent_total", Help: "Messages that a queue took; those of a queue -rejected were put aside."}, []string{"queue"}),
		failed:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "queue_sends_failed_total", Help: "Calls to send messages that failed; what they had is sent again."}, []string{"queue"}),
		seconds: metrics.Histogram("queue_send_duration_seconds", "Time of a call to send messages, failed ones too.", "queue"),
	}
}

// Send sends messages.
func (m *Meter) Send(ctx context.Context, queue string, msgs []Message) error {
	start := time.Now()
	err := m.sender.Send(ctx, queue, msgs)
	m.seconds.WithLabelValues(queue).Observe(time.Since(start).Seconds())
	if err != nil {
		m.failed.WithLabelValues(queue).Inc()
		return err
	}
	m.sent.WithLabelValues(queue).Add(float64(len(msgs)))
	if strings.HasSuffix(queue, RejectedSuffix) {
		m.rejected.Add(int64(len(msgs)))
	}
	return nil
}

// Rejected returns how many messages were put aside in a queue -rejected since the process began.
func (m *Meter) Rejected() int64 { return m.rejected.Load() }

// Describe implements prometheus.Collector.
func (m *Meter) Describe(ch chan<- *prometheus.Desc) {
	m.sent.Describe(ch)
	m.failed.Describe(ch)
	m.seconds.Describe(ch)
}

// Collect implements prometheus.Collector.
func (m *Meter) Collect(ch chan<- prometheus.Metric) {
	m.sent.Collect(ch)
	m.failed.Collect(ch)
	m.seconds.Collect(ch)
}
