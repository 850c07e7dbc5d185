package worker_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/eventlog/eventlogtest"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/queue"
	"userconnectivity/handler/worker"
)

// sinks take every event but those of some users.
type sinks map[string]bool

func (s sinks) Apply(_ context.Context, e presence.Event) (bool, error) {
	if s[e.User] {
		return false, errors.New("the record cannot be read")
	}
	return true, nil
}

func (sinks) Write(context.Context, []eventlog.Update) error         { return nil }
func (sinks) Event(context.Context, string) (eventlog.Record, error) { return eventlog.Record{}, nil }
func (sinks) Send(context.Context, string, []queue.Message) error    { return nil }

// TestHowLongABatchIsHeld: while all of it fails almost its whole time, while only a part does a few seconds, so that what is
// behind it in the queue is not held up.
func TestHowLongABatchIsHeld(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		fails       sinks
		least, most time.Duration
	}{
		"all fail": {sinks{"ann": true, "bob": true}, 130 * time.Second, 145 * time.Second},
		"one does": {sinks{"bob": true}, 15 * time.Second, 16 * time.Second},
		"none":     {sinks{}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 150*time.Second)
				defer cancel()
				w := worker.New(tt.fails, tt.fails, tt.fails, codec, queue.Destinations{Events: "e"}, maxDelivery, slog.New(slog.DiscardHandler))
				began := time.Now()
				err := w.Process(ctx, []worker.Delivery{delivery(t, eventlogtest.Online("ann", 1), 0, 1), delivery(t, eventlogtest.Online("bob", 2), 0, 1)})
				if held := time.Since(began); held < tt.least || held > tt.most || (err != nil) != (len(tt.fails) > 0) {
					t.Errorf("held for %v: %v", held, err)
				}
			})
		})
	}
}
