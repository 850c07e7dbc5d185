package redisstore

import (
	"io"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/redisconn"
)

// TestBrokersTime: it is taken as it is, but for times to come.
func TestBrokersTime(t *testing.T) {
	t.Parallel()
	b := setup(t)
	now := b.redisTime()
	got := b.beat(presence.Beat{User: "past", TTL: seconds(60), At: time.Now(), Enqueued: now.Add(-20 * time.Second)})
	if want := now.Add(40 * time.Second).Truncate(time.Millisecond); !got.ExpiresAt.Equal(want) {
		t.Errorf("the deadline of a beat enqueued 20 s ago is %v, want %v", got.ExpiresAt, want)
	}
	if got := b.beat(presence.Beat{User: "old", TTL: seconds(60), At: time.Now(), Enqueued: now.Add(-61 * time.Second)}); got.Change != presence.ChangeStale {
		t.Errorf("a beat that waited longer than its ttl: %+v", got)
	}
	for _, want := range []presence.Change{presence.ChangeOnline, presence.ChangeRenewed} { // by both scripts
		got := b.beat(presence.Beat{User: "future", TTL: seconds(60), Enqueued: now.Add(time.Hour)})
		if got.Change != want || got.ExpiresAt.After(b.redisTime().Add(time.Minute)) {
			t.Errorf("a beat enqueued in an hour: %+v, want %s", got, want)
		}
	}
	// A handler whose clock is wrong: what it says of the receipt does not count.
	if got := b.beat(presence.Beat{User: "past", TTL: seconds(60), At: time.Now().Add(time.Minute), Enqueued: now.Add(-10 * time.Second)}); got.Change != presence.ChangeRenewed {
		t.Errorf("%+v", got)
	}
}

func (b *bench) redisTime() time.Time {
	b.t.Helper()
	now, err := b.raw.Time(b.t.Context()).Result()
	if err != nil {
		b.t.Fatal(err)
	}
	return now
}

// TestReceiptNotRun: a beat and a leave are dated by when they were received, by either script, at each age.
func TestReceiptNotRun(t *testing.T) {
	t.Parallel()
	b := setup(t)
	begin := b.redisTime()
	for _, age := range []time.Duration{9 * time.Second, 5 * time.Second, 0} {
		received := time.Now().Add(-age)
		got := b.beat(presence.Beat{User: "u", At: received})
		want := begin.Add(10*time.Second - age)
		if off := got.ExpiresAt.Sub(want); off < -50*time.Millisecond || off > 10*time.Second {
			t.Errorf("received %v ago: due %v after what it should be", age, off)
		}
		u := b.user("u")
		if !u.Sessions[0].ExpiresAt.Equal(got.ExpiresAt) || !u.LastSeen.Equal(got.ExpiresAt.Add(-10*time.Second)) {
			t.Errorf("received %v ago: %+v, and the record has %+v", age, got, u)
		}
	}
}

// switchboard is one address behind which now one server is and now another, as with a failover.
type switchboard struct {
	net.Listener
	to    atomic.Pointer[string]
	conns chan net.Conn
}

func newSwitchboard(t *testing.T, to string) *switchboard {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &switchboard{Listener: l, conns: make(chan net.Conn, 100)}
	s.to.Store(&to)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", *s.to.Load())
			if err != nil {
				_ = conn.Close()
				continue
			}
			s.conns <- conn
			go func() { _, _ = io.Copy(server, conn); _ = server.Close() }()
			go func() { _, _ = io.Copy(conn, server); _ = conn.Close() }()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		s.hangUp()
	})
	return s
}

func (s *switchboard) hangUp() {
	for {
		select {
		case conn := <-s.conns:
			_ = conn.Close()
		default:
			return
		}
	}
}

// shift has a clock believe that its server's is off by so much. All servers of this machine have one clock.
func shift(c *redisconn.Clock, off time.Duration) {
	now := time.Now()
	c.Learn(now.Add(off), time.Millisecond, now, now)
}

// TestFailoverToAnotherClock: a server with another clock takes over, with the state. The process finds out with the
// connection, before the first call: no beat is stale or refused, none holds longer than its ttl, and nobody goes offline.
func TestFailoverToAnotherClock(t *testing.T) {
	t.Parallel()
	for _, off := range []time.Duration{-time.Hour, -5 * time.Second, 5 * time.Second, time.Hour} {
		t.Run(off.String(), func(t *testing.T) {
			t.Parallel()
			server := testkit.Start(t)
			line := newSwitchboard(t, server.Addr)
			b := newBench(t, server.Client(), redisconn.Endpoint{URL: "redis://" + line.Addr().String()}, "uc", 1)
			users := []string{"one", "two", "three"}
			for _, u := range users {
				b.beat(presence.Beat{User: u, At: time.Now()})
			}
			shift(b.store.clockOf(0), off)
			line.hangUp()
			for _, u := range users {
				got, err := b.store.Heartbeats(t.Context(), []presence.Beat{{User: u, Session: presence.DefaultSession, TTL: seconds(10), At: time.Now()}})
				if err != nil {
					continue // the connection broke under it; the next one is new
				}
				left := got[0].ExpiresAt.Sub(b.redisTime())
				if got[0].Change != presence.ChangeRenewed || left < 8*time.Second || left > 10*time.Second {
					t.Errorf("%s: %+v, %v left", u, got[0], left)
				}
			}
			if c := b.sweep(); len(c.Late) != 0 {
				t.Errorf("%d live sessions were claimed", len(c.Late))
			}
		})
	}
}

// TestOneCallByAWrongClock: a server's clock is set while the connection stands. One call is dated wrongly, and no more.
func TestOneCallByAWrongClock(t *testing.T) {
	t.Parallel()
	for _, off := range []time.Duration{-time.Hour, -5 * time.Second, 5 * time.Second, time.Hour} {
		t.Run(off.String(), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.beat(presence.Beat{User: "u", At: time.Now()})
			shift(b.store.clockOf(0), off)
			b.beat(presence.Beat{User: "u", At: time.Now()})
			got := b.beat(presence.Beat{User: "u", At: time.Now()})
			if left := got.ExpiresAt.Sub(b.redisTime()); got.Change != presence.ChangeRenewed || left < 8*time.Second || left > 10*time.Second {
				t.Errorf("%+v, %v left", got, left)
			}
			if claims := b.sweep(); len(claims.Late) != 0 {
				t.Error("a live session was claimed")
			}
			if got := b.leave(presence.Leave{User: "u", At: time.Now()}); got != presence.Left {
				t.Error(got)
			}
		})
	}
}

// TestRecordFromTheFuture: a server whose clock is behind takes over with the state: a beat or leave is not stale because
// the last one was made by a clock that was ahead.
func TestRecordFromTheFuture(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.pass(time.Minute)
	b.beat(presence.Beat{User: "u", TTL: seconds(20)})
	b.beat(presence.Beat{User: "gone", TTL: seconds(20)})
	b.pass(-time.Minute)
	first := b.beat(presence.Beat{User: "u", TTL: seconds(20), At: time.Now()})
	if left := first.ExpiresAt.Sub(b.redisTime()); first.Change != presence.ChangeRenewed || left < 18*time.Second || left > 20*time.Second {
		t.Errorf("%+v, %v left", first, left)
	}
	if got := b.beat(presence.Beat{User: "u", TTL: seconds(20), At: time.Now().Add(-time.Second)}).Change; got != presence.ChangeStale {
		t.Errorf("then a late one: %s", got)
	}
	if got := b.leave(presence.Leave{User: "gone", At: time.Now()}); got != presence.Left {
		t.Errorf("leave: %s", got)
	}
}

// TestOrderOfOneProcess: beats with rising seq of one session, received one after the other without a pause over calls
// that share round trips and calls that do not: none is stale.
func TestOrderOfOneProcess(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var changes []presence.Change
	for i := range 300 {
		beats := make([]presence.Beat, 1+i%3)
		for k := range beats {
			beats[k] = presence.Beat{User: "u", Session: "s", TTL: seconds(10), At: time.Now()}
		}
		out, err := b.store.Heartbeats(t.Context(), beats)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range out {
			changes = append(changes, o.Change)
		}
	}
	if i := slices.Index(changes, presence.ChangeStale); i >= 0 {
		t.Errorf("beat %d is stale", i)
	}
}
