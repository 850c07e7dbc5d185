package redisconn

import (
	"context"
	"errors"
	"testing"
	"time"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/internal/testkit"
)

// TestAbandonedCallsEndAtOnce: what waits for a server that is given up does not wait for its time-out, nor for a
// connection that somebody else waits on. Afterwards the client works.
func TestAbandonedCallsEndAtOnce(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t)
	client := NewClient(Endpoint{URL: server.URL()}, "test", nil)
	defer client.Close()
	store := newCountStore(client, 4)
	defer store.close()
	names := store.names()
	if _, err := store.add(t.Context(), names...); err != nil {
		t.Fatal(err)
	}
	calls := map[string]func(context.Context) error{
		"one":         func(ctx context.Context) error { _, err := store.add(ctx, names[0]); return err },
		"many":        func(ctx context.Context) error { _, err := store.add(ctx, names...); return err },
		"read":        func(ctx context.Context) error { _, err := store.read(ctx, names...); return err },
		"look":        store.look,
		"command":     store.command,
		"transaction": store.transact,
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
			client.Abandon("")
		case a := <-answers:
			waiting--
			if !errors.Is(a.err, errAbandoned) || fault.KindOf(a.err) != fault.Unavailable {
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
