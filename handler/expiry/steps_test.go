package expiry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/presence"
)

// logAway has the event log fail until the result is called.
func (r *relayRig) logAway() (back func()) {
	r.writes(func(context.Context, int) error { return fmt.Errorf("%w: down", eventlog.ErrUnavailable) })
	return func() { r.writes(nil) }
}

// many brings so many new users of a partition online, in their order, and wakes the relay.
func (r *relayRig) many(name string, partition, n int) {
	r.t.Helper()
	pipe := r.raw.Pipeline()
	for i := range n {
		f := []string{"1", "user.online", fmt.Sprintf("%s%05d", name, i), "default", "5", "beat", "5", "", "5", "5", "life", "0", fmt.Sprint(i + 1), "", "", "", ""}
		pipe.XAdd(r.t.Context(), &redis.XAddArgs{Stream: r.outbox(partition), Values: []any{"e", strings.Join(f, "\n")}})
	}
	if _, err := pipe.Exec(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	r.relay.wake(partition)
}

// inLog names the users whose events the log took, in its order.
func (r *relayRig) inLog() (users []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, u := range r.updates {
		users = append(users, u.Event.User)
	}
	return users
}

// TestLogAway: while the event log is away events are sent, and nothing is acknowledged. When it is back they are logged
// in order, and sent no second time.
func TestLogAway(t *testing.T) {
	t.Parallel()
	server, prefix := testkit.Shared(t)
	r := newRelayRig(t, server, prefix, "", 2)
	back := r.logAway()
	r.run()
	const events = 3*relayBatch + 7
	for i, name := range []string{"a", "b", "c"} {
		r.many(name, 0, events/3)
		r.beat("other"+name, 1)
		r.until("all are sent", func() bool { return r.sentOf("") == (i+1)*(events/3+1) })
	}
	want := int64(3 * (events/3 + 1))
	r.until("the state tells", func() bool {
		s := r.relay.State()
		return s.Sent == int(want) && strings.Contains(s.Fault, "partition 0: log ") && s.Relayed == 0
	})
	if n := r.waiting(0, 1); n != want {
		t.Errorf("%d entries wait, want all %d: none is logged", n, want)
	}
	back()
	r.until("all are acknowledged", func() bool { return r.waiting(0, 1) == 0 })
	r.once(int(want))
	users := slices.DeleteFunc(r.inLog(), func(u string) bool { return strings.HasPrefix(u, "other") })
	if len(users) != 3*(events/3) || !slices.IsSorted(users) {
		t.Errorf("%d events are logged, in order: %v", len(users), slices.IsSorted(users))
	}
	r.until("nothing is in hand", func() bool {
		s := r.relay.State()
		r.relay.mu.Lock()
		defer r.relay.mu.Unlock()
		return s.Sent == 0 && s.Relayed == want && s.Fault == "" && r.relay.inHand == 0 && r.relay.bytes == 0
	})
}

// TestLimits: what is in hand is bounded, for a partition and for the process, in events and in bytes. A partition that
// has nothing in hand reads a batch all the same.
func TestLimits(t *testing.T) {
	t.Parallel()
	const entry = 120 // about what an entry of many takes
	for name, tt := range map[string]struct {
		limits limits
		first  int // most that are sent of the first partition
	}{
		"events of a partition":   {limits{events: 1000, processEvents: 1e6, bytes: 1 << 40, processBytes: 1 << 40}, 1000 + relayBatch},
		"bytes of a partition":    {limits{events: 1e6, processEvents: 1e6, bytes: 1000 * (itemBytes + entry), processBytes: 1 << 40}, 1000 + relayBatch},
		"events of the process":   {limits{events: 1e6, processEvents: 1000, bytes: 1 << 40, processBytes: 1 << 40}, 1000 + relayBatch},
		"bytes of the process":    {limits{events: 1e6, processEvents: 1e6, bytes: 1 << 40, processBytes: 1000 * (itemBytes + entry)}, 1000 + relayBatch},
		"far less than one batch": {limits{events: 1e6, processEvents: 1, bytes: 1 << 40, processBytes: 1}, relayBatch},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, prefix := testkit.Shared(t)
			r := newRelayRig(t, server, prefix, "", 2)
			r.relay.limits = tt.limits
			back := r.logAway()
			r.many("a", 0, 3000)
			r.run()
			full := func(p int) func() bool {
				return func() bool {
					l := r.relay.lanes[p]
					l.mu.Lock()
					defer l.mu.Unlock()
					return l.full
				}
			}
			r.until("the partition is full", full(0))
			if n := r.sentOf("a"); n < min(1000, tt.first) || n > tt.first {
				t.Errorf("%d events were sent, want about 1000, at most %d", n, tt.first)
			}
			r.many("b", 1, relayBatch)
			r.until("the other partition sends", func() bool { return r.sentOf("b") == relayBatch })
			back()
			r.until("all are relayed", func() bool { return r.waiting(0, 1) == 0 })
			r.once(3000 + relayBatch)
		})
	}
}

// TestRestartWhileTheLogIsAway: what was sent and not logged is sent again, with the same ids, and logged.
func TestRestartWhileTheLogIsAway(t *testing.T) {
	t.Parallel()
	server, prefix := testkit.Shared(t)
	r := newRelayRig(t, server, prefix, "", 1)
	back := r.logAway()
	r.many("a", 0, 700)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.relay.loop(ctx)
	}()
	r.until("all are sent", func() bool { return r.sentOf("a") == 700 })
	cancel()
	<-ended
	r.relay = NewRelay(r.relay.outbox, 1, r, r, r.relay.codec, r.relay.to, r.relay.log)
	r.run()
	r.relay.wake(0)
	r.until("all are sent again", func() bool { return r.sentOf("a") == 1400 })
	back()
	r.until("all are relayed", func() bool { return r.waiting(0) == 0 })
	if users := r.inLog(); len(users) != 700 || !slices.IsSorted(users) {
		t.Errorf("%d events are logged", len(users))
	}
}

// TestOthersLeaveWhatIsInHand: a second relay does not take over what the first one has sent and cannot log.
func TestOthersLeaveWhatIsInHand(t *testing.T) {
	t.Parallel()
	server, prefix := testkit.Shared(t)
	r := newRelayRig(t, server, prefix, "", 1)
	defer r.logAway()()
	r.many("a", 0, 100)
	r.run()
	r.until("all are sent", func() bool { return r.sentOf("a") == 100 })
	idle := func(want func(time.Duration) bool) bool {
		rows := r.raw.XPendingExt(t.Context(), &redis.XPendingExtArgs{Stream: r.outbox(0), Group: relayGroup, Start: "-", End: "+", Count: 100}).Val()
		return len(rows) == 100 && !slices.ContainsFunc(rows, func(e redis.XPendingExt) bool { return !want(e.Idle) || e.Consumer != "one" })
	}
	r.until("time goes by", func() bool { return idle(func(d time.Duration) bool { return d > takeOverEvery/2 }) })
	r.until("the relay says that it has them", func() bool {
		r.relay.wake(0) // as the sweep does each tick
		return idle(func(d time.Duration) bool { return d < takeOverEvery/2 })
	})
}

// TestRefusedForGood: an event that the queue or the log never takes holds up no other, is set aside with its reason, and
// is not lost on the other way.
func TestRefusedForGood(t *testing.T) {
	t.Parallel()
	for name, byQueue := range map[string]bool{"by the queue": true, "by the queue, which does not say which": true, "by the log": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, prefix := testkit.Shared(t)
			r := newRelayRig(t, server, prefix, "", 1)
			if byQueue {
				r.refuses, r.unnamed = "odd", strings.Contains(name, "not say")
			} else {
				id := presence.EventID("odd00000", "default", presence.UserOnline, 5)
				r.writes(func(context.Context, int) error {
					return eventlog.Refused([]eventlog.Refusal{{ID: id, Err: errors.New("nested too deep")}})
				})
			}
			r.many("before", 0, 3)
			r.many("odd", 0, 1)
			r.many("later", 0, 20)
			r.run()
			r.until("nothing waits", func() bool { return r.waiting(0) == 0 })
			sent, reason := 1, "the event log refused it: nested too deep"
			if byQueue {
				sent, reason = 0, "queue events refused it: too large"
			}
			if r.sentOf("odd") != sent || r.sentOf("before") != 3 || r.sentOf("later") != 20 {
				t.Errorf("sent: %v", r.sent)
			}
			for _, u := range r.updates {
				end := u.Steps[len(u.Steps)-1]
				if dead := byQueue && u.Event.User == "odd00000"; dead != (end.Status == eventlog.Dead) || dead != strings.Contains(end.Detail, "too large") {
					t.Errorf("the log has of %s: %+v", u.Event.User, end)
				}
			}
			notes := r.raw.XRange(t.Context(), prefix+"{p0}/quarantine", "-", "+").Val()
			if len(notes) != 1 || !strings.Contains(fmt.Sprint(notes[0].Values["what"]), reason) || !strings.Contains(fmt.Sprint(notes[0].Values["content"]), "\nodd00000\n") {
				t.Errorf("quarantine: %v", notes)
			}
			r.until("the state tells", func() bool {
				s := r.relay.State()
				return s.QueueRefused+s.LogRefused == 1 && (s.QueueRefused == 1) == byQueue && strings.Contains(s.Refusal, reason) && s.Quarantined == 1 && s.Fault == ""
			})
		})
	}
}

// TestNewerEntriesWait: entries of a later version hold up nothing, are not read again and again, and are counted until a
// process of that version has them.
func TestNewerEntriesWait(t *testing.T) {
	t.Parallel()
	r := newRelayRig(t, testkit.Start(t), "uc", "", 1)
	add := func(text string) {
		if err := r.raw.XAdd(t.Context(), &redis.XAddArgs{Stream: r.outbox(0), Values: []any{"e", text}}).Err(); err != nil {
			t.Fatal(err)
		}
	}
	add("3\nuser.away\nann")
	r.many("a", 0, relayBatch)
	add("1\nuser.away\nann\ndefault\n5\nbeat\n5\n\n5\n5\nlife\n0\n1\n\n\n\n")
	r.many("b", 0, 10)
	r.run()
	r.until("the others are relayed", func() bool { return r.waiting(0) == 2 })
	r.once(relayBatch + 10)
	if s := r.relay.State(); s.Newer != 2 || s.Quarantined != 0 || s.Fault != "" {
		t.Errorf("state %+v", s)
	}
	var claims atomic.Int64
	began := time.Now()
	r.until("several passes went by", func() bool {
		r.relay.wake(0)
		stats := r.raw.Info(t.Context(), "commandstats").Val()
		_, passes, _ := strings.Cut(stats, "cmdstat_xpending:calls=")
		_, text, _ := strings.Cut(stats, "cmdstat_xclaim:calls=")
		var n, calls int64
		_, _ = fmt.Sscan(strings.SplitN(text, ",", 2)[0], &n)
		_, _ = fmt.Sscan(strings.SplitN(passes, ",", 2)[0], &calls)
		claims.Store(n)
		return calls >= 3
	})
	if n := claims.Load(); n > 2 { // each was handed over once
		t.Errorf("%d claims in %v", n, time.Since(began))
	}
	// The next version takes them.
	messages, _, err := r.raw.XAutoClaim(t.Context(), &redis.XAutoClaimArgs{
		Stream: r.outbox(0), Group: relayGroup, Consumer: "next", MinIdle: takeOverIdle, Start: "0-0", Count: 10,
	}).Result()
	if err != nil || len(messages) != 2 {
		t.Fatal(messages, err)
	}
	for _, m := range messages {
		r.raw.XAck(t.Context(), r.outbox(0), relayGroup, m.ID)
		r.raw.XDel(t.Context(), r.outbox(0), m.ID)
	}
	r.until("they are counted no more, without being woken", func() bool { return r.relay.State().Newer == 0 })
}
