package deferral

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/maintenance"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/redisconn"
	"userconnectivity/handler/redisstore"
)

// A Redis that goes away and comes back, with the real breaker, client and store: every beat that was answered
// holds in the end, and nobody waits long for an answer.
func TestRedisAway(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	var client *redisconn.Client
	breaker := maintenance.NewSet(maintenance.SetConfig{Log: quiet(), Ping: func(ctx context.Context, node string) error { return client.Ping(ctx, node) }})
	client = redisconn.NewClient(redisconn.Endpoint{URL: server.URL()}, "deferral", breaker)
	t.Cleanup(func() { _ = client.Close() })
	live := redisstore.New(client, redisstore.Config{Partitions: 4})
	t.Cleanup(live.Close)
	s := New(live, live.Away, Config{Log: quiet()})
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { breaker.Run(ctx) })
	running.Go(func() { s.Run(ctx) })
	t.Cleanup(func() {
		stop()
		running.Wait()
	})

	ids := make([]string, 500)
	for i := range ids {
		ids[i] = fmt.Sprint("u", i)
	}
	// beat sends one beat of a user until it is answered, as a client does.
	beat := func(user string) presence.Change {
		for {
			out, err := s.Heartbeats(ctx, []presence.Beat{{User: user, Session: "s", TTL: new(time.Minute), At: time.Now()}})
			if err == nil {
				return out[0].Change
			}
			if fault.KindOf(err) != fault.Unavailable || ctx.Err() != nil {
				t.Fatalf("user %s: %v", user, err)
			}
		}
	}
	for _, id := range ids[:250] {
		if change := beat(id); change != presence.ChangeOnline {
			t.Fatalf("user %s is %s", id, change)
		}
	}
	for range 2 {
		server.Stop()
		for _, id := range ids {
			if change := beat(id); change != presence.ChangeDeferred {
				t.Fatalf("user %s is %s without Redis", id, change)
			}
		}
		if _, open := breaker.Open(""); !open {
			t.Fatal("the breaker is closed without Redis")
		}
		if _, err := s.Users(ctx, ids[:1]); fault.KindOf(err) != fault.Unavailable {
			t.Fatalf("users without Redis: %v", err)
		}
		if _, err := s.Leaves(ctx, []presence.Leave{{User: ids[0], Session: "s", At: time.Now()}}); err != nil {
			t.Fatal(err)
		}
		if err := server.Run(); err != nil {
			t.Fatal(err)
		}
		deadline := time.After(30 * time.Second)
		for s.State().Items > 0 {
			select {
			case <-deadline:
				t.Fatalf("not written: %+v, breaker %+v", s.State(), breaker.State())
			case <-time.After(time.Millisecond):
			}
		}
		users, err := s.Users(ctx, ids)
		if err != nil {
			t.Fatal(err)
		}
		for i, u := range users {
			want := presence.Online
			if i == 0 {
				want = presence.Offline
			}
			if u == nil || u.Status != want {
				t.Fatalf("user %s: %+v", ids[i], u)
			}
		}
		if change := beat(ids[0]); change != presence.ChangeOnline {
			t.Fatalf("user %s is %s after Redis came back", ids[0], change)
		}
	}
	if state := s.State(); state.Expired != 0 || state.Refused != 0 || state.Stale != 0 {
		t.Errorf("state %+v", state)
	}
}
