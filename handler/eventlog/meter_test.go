package eventlog_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/metrics"
	"userconnectivity/handler/presence"
)

// answering is a store that answers what it is told to.
type answering struct {
	eventlog.Meter // the calls that no test makes
	applied        bool
	fault          error
}

func (s *answering) Write(context.Context, []eventlog.Update) error { return s.fault }

func (s *answering) Apply(context.Context, presence.Event) (bool, error) { return s.applied, s.fault }

func TestMeter(t *testing.T) {
	t.Parallel()
	s := &answering{}
	m := eventlog.NewMeter(s)
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	expired := presence.Event{Type: presence.UserOffline, Body: presence.Body{Deadline: at, DetectedAt: at.Add(20 * time.Millisecond)}}
	began := presence.Event{Type: presence.UserOnline, Body: presence.Body{DetectedAt: at}}
	step := func(s eventlog.Status, after time.Duration) eventlog.Step {
		return eventlog.Step{Status: s, At: at.Add(after), Attempt: eventlog.Attempt{Delivery: 1}}
	}
	write := func(want error, updates ...eventlog.Update) {
		t.Helper()
		if err := m.Write(t.Context(), updates); !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	write(nil,
		eventlog.Update{Event: expired, Steps: []eventlog.Step{step(eventlog.Detected, 0), step(eventlog.Queued, 40*time.Millisecond)}},
		eventlog.Update{Event: began, Steps: []eventlog.Step{step(eventlog.Detected, 0), step(eventlog.Queued, -time.Second)}}, // this clock is behind
		eventlog.Update{Event: expired},
	)
	write(nil, eventlog.Update{Event: expired, Steps: []eventlog.Step{step(eventlog.Detected, 0), step(eventlog.Processing, 50*time.Millisecond), step(eventlog.Done, 60*time.Millisecond)}})
	write(nil, eventlog.Update{Event: expired, Steps: []eventlog.Step{step(eventlog.Processing, 0), step(eventlog.Failed, time.Second)}})
	write(nil, eventlog.Update{Event: presence.Event{ID: "unreadable"}, Steps: []eventlog.Step{step(eventlog.Dead, 0)}})
	for _, s.applied = range []bool{true, false, true} {
		if _, err := m.Apply(t.Context(), expired); err != nil {
			t.Error(err)
		}
	}
	s.fault = fmt.Errorf("of ada: %w", eventlog.ErrLater)
	if _, err := m.Apply(t.Context(), expired); !errors.Is(err, eventlog.ErrLater) || m.Later() != 1 {
		t.Errorf("%v, %d wait", err, m.Later())
	}
	s.fault = errors.New("away")
	write(s.fault, eventlog.Update{Event: expired, Steps: []eventlog.Step{step(eventlog.Done, 0)}})
	if _, err := m.Apply(t.Context(), expired); !errors.Is(err, s.fault) {
		t.Error(err)
	}
	if done, failed, dead := m.Progress(); done != 1 || failed != 1 || dead != 1 {
		t.Errorf("%d done, %d failed, %d dead", done, failed, dead)
	}
	text, err := metrics.NewRegistry(m).Text()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		`events_total{status="queued"} 2`, `events_total{status="done"} 1`, `events_total{status="failed"} 1`, `events_total{status="dead"} 1`,
		`event_age_seconds_sum{status="queued"} 0.04`, `event_age_seconds_count{status="queued"} 2`, `event_age_seconds_sum{status="done"} 0.06`,
		`worker_event_duration_seconds_sum{status="done"} 0.01`, `worker_event_duration_seconds_sum{status="failed"} 1`,
		`worker_events_total{outcome="applied"} 2`, `worker_events_total{outcome="ignored"} 1`, `worker_events_total{outcome="failed"} 2`, `users_records_later_total 1`, `users_records_repaired_total 0`,
		`eventlog_calls_failed_total{call="write"} 1`, `eventlog_calls_failed_total{call="apply"} 2`, `eventlog_call_duration_seconds_count{call="write"} 5`,
	} {
		if !strings.Contains(string(text), "\nuserconnectivity_"+line+"\n") {
			t.Errorf("%s is not in\n%s", line, text)
		}
	}
	if strings.Contains(string(text), `event_age_seconds_count{status="dead"}`) {
		t.Error("the age of an event is told whose deadline nobody knows")
	}
}
