package redisstore

import (
	"context"
	"errors"
	"testing"
	"time"

	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/presence"
)

// TestAbandonedCallsEndAtOnce: what waits for a server that is given up does not wait for its time-out, nor for a
// connection that somebody else waits on. Afterwards the client works.
func TestAbandonedCallsEndAtOnce(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t)
	b := newBench(t, server.Client(), Endpoint{URL: server.URL()}, "uc", 4)
	users := usersOf(b.store)
	if _, err := b.store.Heartbeats(t.Context(), beatsOf(users)); err != nil {
		t.Fatal(err)
	}
	calls := map[string]func(context.Context) error{
		"beat":   func(ctx context.Context) error { _, err := b.store.Heartbeats(ctx, beatsOf(users[:1])); return err },
		"beats":  func(ctx context.Context) error { _, err := b.store.Heartbeats(ctx, beatsOf(users)); return err },
		"users":  func(ctx context.Context) error { _, err := b.store.Users(ctx, users); return err },
		"due":    func(ctx context.Context) error { _, err := b.store.Due(ctx, b.partitions()); return err },
		"outbox": func(ctx context.Context) error { _, err := b.store.Outbox("one").Next(ctx, 0, 1); return err },
		"leave": func(ctx context.Context) error {
			_, err := b.store.Leaves(ctx, []presence.Leave{{User: users[0], Session: "other"}})
			return err
		},
	}
	server.Pause()
	type answer struct {
		name string
		err  error
	}
	answers := make(chan answer, len(calls))
	for name, call := range calls {
		go func() { answers <- answer{name, call(t.Context())} }()
	}
	again := time.NewTicker(5 * time.Millisecond) // some of them may not have begun
	defer again.Stop()
	for waiting := len(calls); waiting > 0; {
		select {
		case <-again.C:
			b.store.client.Abandon("")
		case a := <-answers:
			waiting--
			if !errors.Is(a.err, errAbandoned) || presence.KindOf(a.err) != presence.Unavailable {
				t.Errorf("%s: %v", a.name, a.err)
			}
		}
	}
	server.Resume()
	for name, call := range calls {
		if err := call(t.Context()); err != nil {
			t.Errorf("%s afterwards: %v", name, err)
		}
	}
}
