package eventlog

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"userconnectivity/handler/metrics"
	"userconnectivity/handler/presence"
)

// store is the event log and the users records.
type store interface {
	Write(ctx context.Context, updates []Update) error
	Event(ctx context.Context, id string) (Record, error)
	UserEvents(ctx context.Context, user string, limit int, continuation string) (Page, error)
	Apply(ctx context.Context, e presence.Event) (bool, error)
	User(ctx context.Context, id string) (presence.User, bool, error)
}

// Meter is a store that measures another: its calls, and how the events fare that are written to it. It is safe for
// concurrent use, and a prometheus.Collector.
type Meter struct {
	store
	calls    *prometheus.HistogramVec
	failed   *prometheus.CounterVec
	steps    *prometheus.CounterVec
	ages     *prometheus.HistogramVec
	work     *prometheus.HistogramVec
	applied  *prometheus.CounterVec
	later    prometheus.Counter
	repaired prometheus.CounterFunc
	progress progress
}

// progress counts what health looks at.
type progress struct{ done, failed, dead, later atomic.Int64 }

// NewMeter returns a Meter of s.
func NewMeter(s store) *Meter {
	counter := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	m := &Meter{
		store:  s,
		calls:  metrics.Histogram("eventlog_call_duration_seconds", "Time of a call to the event log, failed ones too.", "call"),
		failed: counter("eventlog_calls_failed_total", "Calls to the event log that failed.", "call"),
		steps:  counter("events_total", "Events by the status that this process wrote; once for each try.", "status"),
		ages: metrics.Histogram("event_age_seconds",
			"From the deadline, or without one from the detection, by the clock of Redis, to a status, by the clock of this process.", "status"),
		work: metrics.Histogram("worker_event_duration_seconds", "From the receipt of an event by the worker to its end.", "status"),
		later: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "users_records_later_total",
			Help: "Tries to apply an event to a users record that only a later version may change; the events wait.",
		}),
		applied: counter("worker_events_total", "Events that the worker took up: applied to the users record, ignored since a newer one was there, or failed.", "outcome"),
	}
	m.repaired = prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "users_records_repaired_total",
		Help: "Users records that could not be read in whole, and were written anew with the next event of their user.",
	},
		func() float64 { return float64(m.Repaired()) })
	for _, s := range []Status{Queued, Done, Failed, Dead} { // told from 0 on, so that the first one shows as a rise
		m.steps.WithLabelValues(string(s))
	}
	for _, outcome := range []string{"applied", "ignored", "failed"} {
		m.applied.WithLabelValues(outcome)
	}
	return m
}

func (m *Meter) called(call string, start time.Time, err error) {
	m.calls.WithLabelValues(call).Observe(time.Since(start).Seconds())
	if err != nil {
		m.failed.WithLabelValues(call).Inc()
	}
}

// Write writes updates.
func (m *Meter) Write(ctx context.Context, updates []Update) error {
	start := time.Now()
	err := m.store.Write(ctx, updates)
	m.called("write", start, err)
	if err == nil {
		for _, u := range updates {
			m.wrote(u)
		}
	}
	return err
}

// wrote counts the last step of an update, which is the one that is new.
func (m *Meter) wrote(u Update) {
	if len(u.Steps) == 0 {
		return
	}
	last := u.Steps[len(u.Steps)-1]
	m.steps.WithLabelValues(string(last.Status)).Inc()
	if since := began(u.Event); !since.IsZero() && last.Attempt.Replay == 0 {
		m.ages.WithLabelValues(string(last.Status)).Observe(max(last.At.Sub(since), 0).Seconds())
	}
	for _, s := range u.Steps[:len(u.Steps)-1] {
		if s.Status == Processing && s.Attempt == last.Attempt {
			m.work.WithLabelValues(string(last.Status)).Observe(max(last.At.Sub(s.At), 0).Seconds())
		}
	}
	switch last.Status {
	case Done:
		m.progress.done.Add(1)
	case Failed:
		m.progress.failed.Add(1)
	case Dead:
		m.progress.dead.Add(1)
	}
}

// began is when an event was due to be told.
func began(e presence.Event) time.Time {
	if !e.Deadline.IsZero() {
		return e.Deadline
	}
	return e.DetectedAt
}

// Progress returns how many events this process logged as done, failed and dead since it began.
func (m *Meter) Progress() (done, failed, dead int64) {
	return m.progress.done.Load(), m.progress.failed.Load(), m.progress.dead.Load()
}

// Later counts the tries of this process to apply an event to a users record that only a later version may change.
func (m *Meter) Later() int64 { return m.progress.later.Load() }

// Repaired counts the users records with junk in them that this process wrote anew.
func (m *Meter) Repaired() int64 {
	if s, ok := m.store.(interface{ Repaired() int64 }); ok {
		return s.Repaired()
	}
	return 0
}

// Apply applies an event to the users record.
func (m *Meter) Apply(ctx context.Context, e presence.Event) (bool, error) {
	start := time.Now()
	applied, err := m.store.Apply(ctx, e)
	m.called("apply", start, err)
	outcome := "ignored"
	if errors.Is(err, ErrLater) {
		m.later.Inc()
		m.progress.later.Add(1)
	}
	switch {
	case err != nil:
		outcome = "failed"
	case applied:
		outcome = "applied"
	}
	m.applied.WithLabelValues(outcome).Inc()
	return applied, err
}

// Describe implements prometheus.Collector.
func (m *Meter) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.collectors() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *Meter) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.collectors() {
		c.Collect(ch)
	}
}

func (m *Meter) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.calls, m.failed, m.steps, m.ages, m.work, m.applied, m.later, m.repaired}
}
