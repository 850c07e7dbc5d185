package queue_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"userconnectivity/handler/metrics"
	"userconnectivity/handler/queue"
)

// sending takes messages, or fails.
type sending struct{ fault error }

func (s *sending) Send(context.Context, string, []queue.Message) error { return s.fault }

func TestMeter(t *testing.T) {
	t.Parallel()
	s := &sending{}
	m := queue.NewMeter(s)
	send := func(name string, n int, want error) {
		t.Helper()
		if err := m.Send(t.Context(), name, make([]queue.Message, n)); !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	send("events", 3, nil)
	send("events", 2, nil)
	send("events-rejected", 4, nil)
	s.fault = errors.New("full")
	send("events", 9, s.fault)
	send("events-rejected", 9, s.fault)
	if n := m.Rejected(); n != 4 {
		t.Errorf("%d rejected", n)
	}
	text, err := metrics.NewRegistry(m).Text()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		`queue_messages_sent_total{queue="events"} 5`, `queue_messages_sent_total{queue="events-rejected"} 4`,
		`queue_sends_failed_total{queue="events"} 1`, `queue_send_duration_seconds_count{queue="events"} 3`,
	} {
		if !strings.Contains(string(text), "\nuserconnectivity_"+line+"\n") {
			t.Errorf("%s is not in\n%s", line, text)
		}
	}
}
