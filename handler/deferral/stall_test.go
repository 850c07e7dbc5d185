package deferral

import (
	"context"
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

// stall is a server that stops in the middle of what it does. A command that is given up then lies in its socket still,
// and is run when the server goes on.
type stall struct {
	t      *testing.T
	server *testkit.Redis
	s      *Store
}

func newStall(t *testing.T) *stall {
	t.Helper()
	server := testkit.Start(t)
	var client *redisconn.Client
	breaker := maintenance.NewSet(maintenance.SetConfig{
		Log:   quiet(),
		Ping:  func(ctx context.Context, node string) error { return client.Ping(ctx, node) },
		Broke: func(node string) { client.Abandon(node) },
	})
	client = redisconn.NewClient(redisconn.Endpoint{URL: server.URL()}, "stall", breaker)
	t.Cleanup(func() { _ = client.Close() })
	live := redisstore.New(client, redisstore.Config{Partitions: 4, LeaseKeys: true})
	t.Cleanup(live.Close)
	r := &stall{t, server, New(live, live.Away, Config{Log: quiet()})}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { breaker.Run(ctx) })
	running.Go(func() { r.s.Run(ctx) })
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
	return r
}

// beat sends a beat of ann, leave a leave. While the server stops they are kept or refused (503); what was refused may be
// in the socket all the same.
func (r *stall) beat(seq *int64) {
	_, err := r.s.Heartbeats(r.t.Context(), []presence.Beat{{User: "ann", Session: "s", TTL: new(time.Hour), Seq: seq, At: time.Now()}})
	r.sent(err)
}

func (r *stall) leave(user string, seq *int64) {
	_, err := r.s.Leaves(r.t.Context(), []presence.Leave{{User: user, Session: "s", Seq: seq, At: time.Now()}})
	r.sent(err)
}

func (r *stall) sent(err error) {
	if err != nil && fault.KindOf(err) != fault.Unavailable {
		r.t.Error(err)
	}
}

// during has the server stop while the first is under way; second comes a little later, and is kept. It returns ann once
// all is written.
func (r *stall) during(first, second func()) *presence.User {
	r.t.Helper()
	r.beat(nil)
	r.leave("bob", nil) // the scripts are known
	r.server.Pause()
	var calls sync.WaitGroup
	calls.Go(first)
	time.Sleep(100 * time.Millisecond) // what comes next comes later, and the first is in the socket
	calls.Go(second)
	calls.Wait() // the server was given up
	if r.s.State().Items == 0 {
		r.t.Fatal("nothing was kept")
	}
	r.server.Resume()
	for deadline := time.After(30 * time.Second); r.s.State().Items > 0; {
		select {
		case <-deadline:
			r.t.Fatalf("not written: %+v", r.s.State())
		case <-time.After(time.Millisecond):
		}
	}
	users, err := r.s.Users(r.t.Context(), []string{"ann"})
	if err != nil {
		r.t.Fatal(err)
	}
	return users[0]
}

// TestReloadDuringAStall: a page is loaded again while Redis stalls: its leave, then its beat. The leave is under way
// when the server is given up, is kept as well, and runs twice; the beat came later.
func TestReloadDuringAStall(t *testing.T) {
	t.Parallel()
	for name, seqs := range map[string][2]*int64{"without seq": {}, "with seq": {new(int64(1)), new(int64(2))}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newStall(t)
			u := r.during(func() { r.leave("ann", seqs[0]) }, func() { r.beat(seqs[1]) })
			if u.Status != presence.Online {
				t.Errorf("the last that ann said is a beat, and she is %s", u.Status)
			}
		})
	}
}

// TestLeaveDuringAStall: a beat is under way when Redis stalls, and the user leaves while it does.
func TestLeaveDuringAStall(t *testing.T) {
	t.Parallel()
	for name, seqs := range map[string][2]*int64{"without seq": {}, "with seq": {new(int64(1)), new(int64(2))}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newStall(t)
			u := r.during(func() { r.beat(seqs[0]) }, func() { r.leave("ann", seqs[1]) })
			if u.Status != presence.Offline {
				t.Errorf("the last that ann said is a leave, and she is %s until %v", u.Status, u.Sessions[0].ExpiresAt)
			}
		})
	}
}
