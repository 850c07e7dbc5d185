package deferral

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/presence"
)

// backend is a live state that notes what it is asked, and fails as told.
type backend struct {
	mu     sync.Mutex
	wrote  []string        // user/session of each beat, with ! for a leave, in order
	beats  []presence.Beat // as they came
	leaves []presence.Leave
	sizes  []int                            // of the calls
	fail   func(users []string) error       // nil: nothing fails
	hold   chan struct{}                    // when set, a call waits until it is closed
	change presence.Change                  // of every outcome; renewed when empty
	later  map[string]bool                  // users whose beats and leaves wait for a later version
	users  func() ([]*presence.User, error) // nil: nobody is known
}

func (b *backend) call(users []string) error {
	b.mu.Lock()
	hold, fail := b.hold, b.fail
	b.sizes = append(b.sizes, len(users))
	b.mu.Unlock()
	if hold != nil {
		<-hold
	}
	if fail != nil {
		return fail(users)
	}
	return nil
}

func (b *backend) Heartbeats(_ context.Context, beats []presence.Beat) ([]presence.BeatOutcome, error) {
	users := make([]string, len(beats))
	for i, beat := range beats {
		users[i] = beat.User
	}
	if err := b.call(users); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]presence.BeatOutcome, len(beats))
	for i, beat := range beats {
		if b.later[beat.User] {
			out[i].Change = presence.ChangeLater
			continue
		}
		b.wrote, b.beats = append(b.wrote, beat.User+"/"+beat.Session), append(b.beats, beat)
		out[i] = presence.BeatOutcome{Change: presence.ChangeRenewed, Status: presence.Online, Epoch: int64(len(b.wrote))}
		if b.change != "" {
			out[i].Change = b.change
		}
	}
	return out, nil
}

func (b *backend) Leaves(_ context.Context, leaves []presence.Leave) ([]presence.LeaveOutcome, error) {
	users := make([]string, len(leaves))
	for i, l := range leaves {
		users[i] = l.User
	}
	if err := b.call(users); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]presence.LeaveOutcome, len(leaves))
	for i, l := range leaves {
		if b.later[l.User] {
			out[i] = presence.LeaveLater
			continue
		}
		b.wrote, b.leaves, out[i] = append(b.wrote, "!"+l.User+"/"+l.Session), append(b.leaves, l), presence.Left
	}
	return out, nil
}

func (b *backend) Users(_ context.Context, ids []string) ([]*presence.User, error) {
	if b.users != nil {
		return b.users()
	}
	return make([]*presence.User, len(ids)), nil
}

func (b *backend) set(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
}

func (b *backend) story() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.wrote, " ")
}

// rig is a Store with a backend and a switch in place of the breaker.
type rig struct {
	t *testing.T
	*Store
	back *backend
	away atomic.Bool
	// awayUser is away when the others are not.
	awayUser atomic.Value
}

// everybody is the Away of a single server, nil while that is there.
func everybody(open bool, retryAfter time.Duration) Away {
	if !open {
		return nil
	}
	return func(string) (time.Duration, bool) { return retryAfter, true }
}

func newRig(t *testing.T, cfg Config) *rig {
	r := &rig{t: t, back: &backend{}}
	if cfg.Log == nil {
		cfg.Log = quiet()
	}
	r.Store = New(r.back, func() Away {
		if one, _ := r.awayUser.Load().(string); one != "" && !r.away.Load() {
			return func(user string) (time.Duration, bool) { return 7 * time.Second, user == one }
		}
		return everybody(r.away.Load(), 7*time.Second)
	}, cfg)
	return r
}

// run runs the store until the test ends.
func (r *rig) run() (stop func()) {
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.Run(ctx)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	r.t.Cleanup(stop)
	return stop
}

func (r *rig) beat(user, session string) presence.Change {
	r.t.Helper()
	out, err := r.Heartbeats(r.t.Context(), []presence.Beat{{User: user, Session: session, At: time.Now()}})
	if err != nil {
		r.t.Fatal(err)
	}
	return out[0].Change
}

func (r *rig) leave(user, session string) presence.LeaveOutcome {
	r.t.Helper()
	out, err := r.Leaves(r.t.Context(), []presence.Leave{{User: user, Session: session, At: time.Now()}})
	if err != nil {
		r.t.Fatal(err)
	}
	return out[0]
}

func (r *rig) wrote(want string) {
	r.t.Helper()
	if got := r.back.story(); got != want {
		r.t.Fatalf("written: %q, want %q", got, want)
	}
}

// settle lets Run do what it can do now.
func settle() {
	time.Sleep(time.Second)
	synctest.Wait()
}

func unavailable(text string) error {
	return &fault.Error{Kind: fault.Unavailable, Message: text}
}

func TestClosedPassesThrough(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{})
	if change := r.beat("u", "s"); change != presence.ChangeRenewed {
		t.Errorf("change %s", change)
	}
	if outcome := r.leave("u", "s"); outcome != presence.Left {
		t.Errorf("outcome %s", outcome)
	}
	if out, err := r.Heartbeats(t.Context(), nil); err != nil || len(out) != 0 {
		t.Errorf("no beats: %v, %v", out, err)
	}
	r.wrote("u/s !u/s")
	if s := r.State(); s != (State{}) {
		t.Errorf("state %+v", s)
	}
}

func TestOpenKeepsAndThenWrites(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var lines bytes.Buffer
		r := newRig(t, Config{Log: slog.New(slog.NewTextHandler(&lines, nil))})
		r.run()
		r.away.Store(true)
		began := time.Now()
		beat := presence.Beat{
			User: "u", Session: "s", TTL: new(time.Minute), Grace: time.Second, Groups: []string{"g"},
			Meta: json.RawMessage(`{"a":1}`), Seq: new(int64(5)), At: began, Traceparent: "trace",
		}
		out, err := r.Heartbeats(t.Context(), []presence.Beat{beat, {User: "v", Session: "s", At: began}})
		want := presence.BeatOutcome{Change: presence.ChangeDeferred, Status: presence.Online}
		if err != nil || len(out) != 2 || out[0] != want || out[1] != want {
			t.Fatalf("answers %+v, %v", out, err)
		}
		if outcome := r.leave("v", "s"); outcome != presence.LeaveDeferred {
			t.Fatalf("outcome %s", outcome)
		}
		settle()
		r.wrote("")
		if s := r.State(); s.Items != 3 || s.Sessions != 2 || s.Bytes <= 0 || !s.Oldest.Equal(began) || s.Deferred != 3 {
			t.Errorf("state %+v", s)
		}

		r.away.Store(false)
		settle()
		r.wrote("u/s v/s !v/s")
		got := r.back.beats[0]
		if *got.TTL != time.Minute || got.Grace != time.Second || !slices.Equal(got.Groups, beat.Groups) || string(got.Meta) != `{"a":1}` ||
			*got.Seq != 5 || !got.At.Equal(began) || got.Traceparent != "trace" {
			t.Errorf("written as %+v", got)
		}
		if l := r.back.leaves[0]; !l.At.Equal(began) {
			t.Errorf("written as %+v", l)
		}
		if s := r.State(); s != (State{Deferred: 3, Written: 3}) {
			t.Errorf("state %+v", s)
		}
		if change := r.beat("u", "s"); change != presence.ChangeRenewed {
			t.Errorf("afterwards a beat is %s", change)
		}
		if n := strings.Count(lines.String(), "\n"); n != 2 {
			t.Errorf("%d log lines:\n%s", n, &lines)
		}
	})
}

// As long as something of a user waits, everything of that user goes behind it; other users' goes through.
func TestOrderOfAUser(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{})
		r.away.Store(true)
		r.beat("u", "a")
		r.away.Store(false)
		out, err := r.Heartbeats(t.Context(), []presence.Beat{
			{User: "v", Session: "x", At: time.Now()}, {User: "u", Session: "b", At: time.Now()}, {User: "w", Session: "x", At: time.Now()},
		})
		if err != nil || out[0].Change != presence.ChangeRenewed || out[0].Epoch != 1 || out[1].Change != presence.ChangeDeferred || out[2].Epoch != 2 {
			t.Fatalf("answers %+v, %v", out, err)
		}
		if r.leave("v", "x") != presence.Left || r.leave("u", "a") != presence.LeaveDeferred {
			t.Fatal("the leaves of the wrong user waited")
		}
		hold := make(chan struct{})
		r.back.set(func() { r.back.hold = hold })
		r.run()
		synctest.Wait() // the first write is under way
		if r.beat("u", "a") != presence.ChangeDeferred {
			t.Fatal("a beat overtook what is being written")
		}
		r.back.set(func() { r.back.hold = nil })
		close(hold)
		settle()
		r.wrote("v/x w/x !v/x u/a u/b !u/a u/a")
		if r.beat("u", "a") != presence.ChangeRenewed {
			t.Error("the user still waits")
		}
	})
}

// A call that began before another and fails as the breaker opens is written before it.
func TestCallThatFailsAsTheBreakerOpens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{})
		hold := make(chan struct{})
		r.back.set(func() {
			r.back.hold = hold
			r.back.fail = func([]string) error { return unavailable("connection lost") }
		})
		first := make(chan presence.Change, 2)
		go func() {
			out, err := r.Heartbeats(t.Context(), []presence.Beat{{User: "u", Session: "first", At: time.Now()}, {User: "v", Session: "first", At: time.Now()}})
			if err != nil {
				t.Error(err)
				close(first)
				return
			}
			first <- out[0].Change
			first <- out[1].Change
		}()
		synctest.Wait()
		r.away.Store(true)
		r.beat("u", "second")
		close(hold)
		if a, b := <-first, <-first; a != presence.ChangeDeferred || b != presence.ChangeDeferred {
			t.Fatalf("answers %s and %s", a, b)
		}
		r.back.set(func() { r.back.fail = nil })
		r.away.Store(false)
		r.run()
		settle()
		r.wrote("u/first u/second v/first")
	})
}

func TestFaultsWhileClosed(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{})
	fault := errors.New("a fault of ours")
	for _, tt := range []struct {
		name string
		away bool
		err  error
	}{
		{"unavailable, and the breaker stays closed", false, unavailable("full")},
		{"another fault, and the breaker opens", true, fault},
	} {
		r.back.fail = func([]string) error {
			r.away.Store(tt.away)
			return tt.err
		}
		r.away.Store(false)
		if _, err := r.Heartbeats(t.Context(), []presence.Beat{{User: "u"}}); !errors.Is(err, tt.err) {
			t.Errorf("%s: beat: %v", tt.name, err)
		}
		r.away.Store(false)
		if _, err := r.Leaves(t.Context(), []presence.Leave{{User: "u"}}); !errors.Is(err, tt.err) {
			t.Errorf("%s: leave: %v", tt.name, err)
		}
	}
	if s := r.State(); s != (State{}) {
		t.Errorf("state %+v", s)
	}
}

func TestNothingIsLostWhenWritingFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{})
		r.away.Store(true)
		const n = 2500
		for i := range n {
			r.beat("u"+strconv.Itoa(i), "s")
			if i%5 == 0 {
				r.leave("u"+strconv.Itoa(i), "s")
			}
		}
		rng := rand.New(rand.NewPCG(1, 1))
		r.back.fail = func([]string) error {
			if rng.IntN(3) > 0 {
				r.away.Store(rng.IntN(2) == 0)
				return unavailable("not yet")
			}
			return nil
		}
		r.run()
		for range 200 {
			r.away.Store(false)
			time.Sleep(200 * time.Millisecond)
		}
		synctest.Wait()
		if s := r.State(); s.Items != 0 || s.Written != n+n/5 || s.Failed == 0 || s.Expired != 0 {
			t.Errorf("state %+v", s)
		}
		count := map[string]int{}
		for _, name := range r.back.wrote {
			if count[name]++; strings.HasPrefix(name, "!") && count[name[1:]] != 1 {
				t.Fatalf("%s before its beat", name)
			}
		}
		for i := range n {
			if name := fmt.Sprintf("u%d/s", i); count[name] != 1 || count["!"+name] != map[bool]int{true: 1}[i%5 == 0] {
				t.Fatalf("%s was written %d times and left %d times", name, count[name], count["!"+name])
			}
		}
		if most := slices.Max(r.back.sizes); most != presence.MaxBatch {
			t.Errorf("the largest call had %d items", most)
		}
	})
}

// An item that the live state never takes must not hold up the others; in the end its time is over.
func TestAnItemThatNeverPasses(t *testing.T) {
	for name, fault := range map[string]func() error{
		"error": func() error { return unavailable("not this one") },
		"panic": func() error { panic("not this one") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, Config{})
				r.away.Store(true)
				const n = 1500
				for i := range n {
					r.beat("u"+strconv.Itoa(i), "s")
				}
				r.back.fail = func(users []string) error {
					if slices.Contains(users, "u700") {
						return fault()
					}
					return nil
				}
				r.run()
				r.away.Store(false)
				time.Sleep(30 * time.Second)
				synctest.Wait()
				if s := r.State(); s.Items != 1 || s.Written != n-1 {
					t.Fatalf("state %+v", s)
				}
				if r.beat("other", "s") != presence.ChangeRenewed || r.beat("u700", "t") != presence.ChangeDeferred {
					t.Error("the wrong user waits")
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				if s := r.State(); s.Items != 0 || s.Expired != 2 {
					t.Errorf("state %+v", s)
				}
			})
		})
	}
}

func TestRoom(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{MaxSessions: 2})
	r.away.Store(true)
	r.beat("a", "s")
	r.beat("b", "s")
	refused := func(err error) {
		t.Helper()
		var e *fault.Error
		if !errors.As(err, &e) || e.Kind != fault.Unavailable || e.RetryAfter != 7*time.Second {
			t.Errorf("got %v, want unavailable for 7 s", err)
		}
	}
	_, err := r.Heartbeats(t.Context(), []presence.Beat{{User: "a", Session: "s", At: time.Now()}, {User: "c", Session: "s", At: time.Now()}, {User: "d"}})
	refused(err)
	_, err = r.Leaves(t.Context(), []presence.Leave{{User: "c", Session: "s", At: time.Now()}})
	refused(err)
	if r.beat("a", "s") != presence.ChangeDeferred || r.leave("b", "s") != presence.LeaveDeferred {
		t.Error("no room for sessions that wait already")
	}
	if s := r.State(); s.Sessions != 2 || s.Items != 3 || s.Refused != 3 || s.Deferred != 5 || s.Superseded != 2 {
		t.Errorf("state %+v", s)
	}
	// While the breaker is open and as it opens: the cause is not hidden.
	r = newRig(t, Config{MaxBytes: 1})
	cause := unavailable("connection lost")
	r.back.fail = func([]string) error {
		r.away.Store(true)
		return cause
	}
	_, err = r.Heartbeats(t.Context(), []presence.Beat{{User: "a", Session: "s", At: time.Now()}})
	refused(err)
	if !errors.Is(err, cause) {
		t.Errorf("the cause is not in %v", err)
	}
}

func TestUsers(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{})
	asked := 0
	r.back.users = func() ([]*presence.User, error) {
		asked++
		return []*presence.User{{ID: "u"}}, nil
	}
	if users, err := r.Users(t.Context(), []string{"u"}); err != nil || users[0].ID != "u" {
		t.Errorf("got %v, %v", users, err)
	}
	r.away.Store(true)
	_, err := r.Users(t.Context(), []string{"u"})
	var e *fault.Error
	if !errors.As(err, &e) || e.Kind != fault.Unavailable || e.RetryAfter != 7*time.Second || asked != 1 {
		t.Errorf("got %v, asked %d times", err, asked)
	}
}

func TestTooOldWhileOpen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{})
		r.run()
		r.away.Store(true)
		r.beat("u", "s")
		time.Sleep(presence.DefaultTTL + 2*time.Second)
		synctest.Wait()
		if s := r.State(); s.Items != 0 || s.Expired != 1 {
			t.Errorf("state %+v", s)
		}
		r.away.Store(false)
		settle()
		r.wrote("")
	})
}

func TestStaleAndFullAreCounted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{})
		r.run()
		for i, change := range []presence.Change{presence.ChangeStale, presence.ChangeFull, presence.ChangeOnline} {
			r.away.Store(true)
			r.beat("u", "s")
			r.back.set(func() { r.back.change = change })
			r.away.Store(false)
			settle()
			if s := r.State(); s.Written != int64(i+1) || s.Stale != int64(min(i+1, 2)) {
				t.Errorf("after %s: %+v", change, s)
			}
		}
	})
}

// TestUsersOfALaterVersion: what is of a user whose state a later version wrote stays, and holds up neither beats nor
// leaves of others.
func TestUsersOfALaterVersion(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{})
		r.back.later = map[string]bool{"new": true, "new2": true}
		r.run()
		r.away.Store(true)
		r.beat("new", "s")
		r.leave("new2", "s")
		r.beat("u", "s")
		r.leave("v", "s")
		r.beat("w", "s")
		r.away.Store(false)
		settle()
		r.wrote("u/s w/s !v/s")
		if s := r.State(); s.Items != 2 || s.Written != 3 {
			t.Errorf("%+v", s)
		}
		r.back.set(func() { r.back.later = nil })
		settle()
		r.wrote("u/s w/s !v/s new/s !new2/s")
		if s := r.State(); s.Items != 0 || s.Written != 5 {
			t.Errorf("%+v", s)
		}
	})
}

// TestBeatsThatCannotBeWrittenHoldUpNoLeaves: each write with one beat fails.
func TestBeatsThatCannotBeWrittenHoldUpNoLeaves(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{})
		r.back.fail = func(users []string) error {
			if slices.Contains(users, "bad") {
				return unavailable("no")
			}
			return nil
		}
		r.run()
		r.away.Store(true)
		r.beat("bad", "s")
		r.leave("v", "s")
		r.away.Store(false)
		settle()
		r.wrote("!v/s")
	})
}

func TestEndOfTheProcess(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		away  bool
		fail  error
		wrote string
		lost  bool
	}{
		{"closed: written", false, nil, "u/s", false},
		{"open: lost, and said", true, nil, "", true},
		{"failing: lost, and said", false, unavailable("no"), "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var lines bytes.Buffer
				r := newRig(t, Config{Log: slog.New(slog.NewTextHandler(&lines, nil))})
				r.away.Store(true)
				r.beat("u", "s")
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				r.away.Store(tt.away)
				r.back.fail = func([]string) error { return tt.fail }
				r.Run(ctx)
				r.wrote(tt.wrote)
				if lost := strings.Contains(lines.String(), "lost with this process"); lost != tt.lost {
					t.Errorf("log:\n%s", &lines)
				}
			})
		})
	}
}

// Everything at once, for the race detector: clients that send one after the other see their beats written in
// order, each at least once unless a later one replaced it, whatever the breaker does.
func TestConcurrentClients(t *testing.T) {
	t.Parallel()
	r := newRig(t, Config{})
	var faults atomic.Int64
	r.back.fail = func([]string) error {
		runtime.Gosched()
		if n := faults.Add(1); n%7 == 0 {
			r.away.Store(n%2 == 0)
			return unavailable("a fault")
		}
		return nil
	}
	stop := r.run()
	base := time.Now()
	const clients, beats = 8, 300
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			user := strconv.Itoa(c)
			for n := range beats {
				in := []presence.Beat{{User: user, Session: strconv.Itoa(n % 3), At: base.Add(time.Duration(n)), Seq: new(int64(n))}}
				for {
					if _, err := r.Heartbeats(t.Context(), in); err == nil {
						break
					}
				}
				switch n % 40 {
				case 0:
					r.away.Store(true)
				case 20:
					r.away.Store(false)
				}
				_ = r.State()
			}
		})
	}
	wg.Wait()
	r.back.set(func() { r.back.fail = nil })
	r.away.Store(false)
	stop()
	if s := r.State(); s.Items != 0 || s.Deferred == 0 || s.Deferred != s.Written+s.Superseded {
		t.Errorf("state %+v", s)
	}
	last, final := map[string]int64{}, map[string]int64{}
	for _, b := range r.back.beats {
		if *b.Seq < last[b.User] {
			t.Fatalf("user %s: beat %d after beat %d", b.User, *b.Seq, last[b.User])
		}
		last[b.User], final[b.User+"/"+b.Session] = *b.Seq, *b.Seq
	}
	for c := range clients {
		for s := range 3 {
			if got := final[fmt.Sprintf("%d/%d", c, s)]; got != int64(beats-3+s) {
				t.Errorf("user %d, session %d: the last beat written is %d", c, s, got)
			}
		}
	}
}

// TestOneUserAway: what belongs to a server that is away waits, and nothing else does.
func TestOneUserAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{})
		r.run()
		r.awayUser.Store("b")
		at := time.Now()
		beat := func(user string) presence.Beat {
			return presence.Beat{User: user, Session: "s", TTL: new(time.Hour), At: at}
		}
		out, err := r.Heartbeats(t.Context(), []presence.Beat{beat("a"), beat("b"), beat("c")})
		if err != nil {
			t.Fatal(err)
		}
		for i, o := range out {
			if (o.Change == presence.ChangeDeferred) != (i == 1) {
				t.Errorf("beat %d: %+v", i, o)
			}
		}
		left, err := r.Leaves(t.Context(), []presence.Leave{{User: "b", Session: "s", At: at}, {User: "c", Session: "s", At: at}})
		if err != nil || left[0] != presence.LeaveDeferred || left[1] == presence.LeaveDeferred {
			t.Errorf("leaves: %v, %v", left, err)
		}
		if _, err := r.Users(t.Context(), []string{"a", "c"}); err != nil {
			t.Error(err)
		}
		if _, err := r.Users(t.Context(), []string{"a", "b"}); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("users: %v", err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		r.wrote("a/s c/s !c/s")
		if state := r.State(); state.Items != 2 || state.Failed != 0 {
			t.Errorf("state %+v", state)
		}

		// Two calls fail: as the server of one of theirs goes, and for another reason.
		r.back.set(func() {
			r.back.fail = func([]string) error {
				r.awayUser.Store("d")
				return unavailable("connection lost")
			}
		})
		if out, err = r.Heartbeats(t.Context(), []presence.Beat{beat("c"), beat("d")}); err != nil || out[0].Change != presence.ChangeDeferred {
			t.Errorf("%+v, %v", out, err)
		}
		if _, err = r.Heartbeats(t.Context(), []presence.Beat{beat("e")}); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("a user whose server is not away: %v", err)
		}
		r.back.set(func() { r.back.fail = nil })
		settle()
		r.wrote("a/s c/s !c/s b/s c/s !b/s") // b's server is back, c's never went
		if state := r.State(); state.Items != 1 {
			t.Errorf("state %+v", state)
		}
		r.awayUser.Store("")
		settle()
		r.wrote("a/s c/s !c/s b/s c/s !b/s d/s")
	})
}

func BenchmarkClosed(b *testing.B) {
	s := New(nothing{}, func() Away { return nil }, Config{Log: quiet()})
	beats := []presence.Beat{{User: "u", Session: "s", At: time.Now()}}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := s.Heartbeats(b.Context(), beats); err != nil {
				b.Error(err)
			}
		}
	})
}

// nothing is a live state that does nothing.
type nothing struct{}

func (nothing) Heartbeats(context.Context, []presence.Beat) ([]presence.BeatOutcome, error) {
	return nil, nil
}

func (nothing) Leaves(context.Context, []presence.Leave) ([]presence.LeaveOutcome, error) {
	return nil, nil
}
func (nothing) Users(context.Context, []string) ([]*presence.User, error) { return nil, nil }
