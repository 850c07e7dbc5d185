package expiry_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"userconnectivity/handler/expiry"
	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/queue"
)

// look is how often the watchdog looks in tests; a loop is stuck after thirty of them.
const look = 100 * time.Millisecond

// interceptor is a log whose lines may do something to the loop that writes them.
type interceptor struct {
	slog.Handler
	on func(ctx context.Context, line string)
}

func (i interceptor) Handle(ctx context.Context, r slog.Record) error {
	i.on(ctx, r.Message)
	return i.Handler.Handle(ctx, r)
}

// intercepted returns a listener whose log lines go through on first.
func (b *bench) intercepted(on func(ctx context.Context, line string)) *expiry.Listener {
	client, store := b.connect()
	log := slog.New(interceptor{slog.NewTextHandler(b.log, nil), on})
	relay := expiry.NewRelay(store.Outbox("one"), partitions, b, b, codec, queue.Destinations{Events: "events-topic"}, log)
	l := expiry.NewListener(client, store, relay, log)
	l.LookEvery(look)
	return l
}

// run runs a listener; the error of Run comes out of the channel, which stop makes come soon.
func run(t *testing.T, l *expiry.Listener) (ended <-chan error, stop context.CancelFunc) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	errs, done := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(done)
		errs <- l.Run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
	return errs, stop
}

// breakSweep makes the sweep fail, so that it writes a line; mend makes it well.
func (b *bench) breakSweep() (mend func()) {
	b.t.Helper()
	if err := b.raw.Set(b.t.Context(), b.key(0, "due"), "junk", 0).Err(); err != nil {
		b.t.Fatal(err)
	}
	return func() { b.raw.Del(b.t.Context(), b.key(0, "due")) }
}

const sweepFails = "the sweep could not read or claim; it tries again"

// TestLoopThatHangs is begun anew by the watchdog, without a call of anybody, and sweeps and relays as before.
func TestLoopThatHangs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	hung := make(chan struct{}, 1)
	l := b.intercepted(func(ctx context.Context, line string) {
		if line == sweepFails {
			hung <- struct{}{}
			<-ctx.Done()
		}
	})
	run(t, l)
	b.until("it sweeps", func() bool { return l.State().Sweeps > 0 })
	if err := l.Live(); err != nil {
		t.Errorf("a listener that is well: %v", err)
	}
	started := l.State().Started
	mend := b.breakSweep()
	<-hung
	mend()
	b.until("the loops began anew", func() bool { return l.State().Started.After(started) })
	b.beat("ann", 5*time.Second)
	b.pass(6 * time.Second)
	b.settled(2)
	b.chains()
	b.until("it is well again", func() bool { return l.Live() == nil })
	b.until("a line tells of it", func() bool { return b.log.Count("a loop of the listener hung") == 1 })
	if !strings.Contains(b.log.String(), "loop=sweep") {
		t.Errorf("the line does not name the loop: %s", b.log)
	}
}

// TestLoopThatDoesNotEnd: Run returns, so that the process can end and be started again. Until then, and afterwards,
// the process is not live, also while the loop holds the lock of the state.
func TestLoopThatDoesNotEnd(t *testing.T) {
	t.Parallel()
	for _, line := range []string{sweepFails, "the sweep works again"} { // the second is written under the lock
		t.Run(line, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			hung, release := make(chan struct{}, 1), make(chan struct{})
			t.Cleanup(func() { close(release) })
			l := b.intercepted(func(_ context.Context, written string) {
				if written == line {
					hung <- struct{}{}
					<-release
				}
			})
			ended, _ := run(t, l)
			mend := b.breakSweep()
			b.until("the sweep fails", func() bool { return b.log.Count(sweepFails) == 1 || len(hung) == 1 })
			mend()
			<-hung
			b.until("it is not live", func() bool { return l.Live() != nil })
			// Who waits for the lock hangs, too, and may be found first.
			names := func(err error) bool {
				return strings.Contains(err.Error(), "sweep") || line != sweepFails && strings.Contains(err.Error(), "settings")
			}
			if err := l.Live(); !names(err) {
				t.Errorf("it does not name the loop: %v", err)
			}
			if err := <-ended; !errors.Is(err, expiry.ErrStuck) || !names(err) {
				t.Errorf("Run returned %v", err)
			}
			if l.Live() == nil {
				t.Error("it is live without loops")
			}
		})
	}
}

// TestLoopThatPanics goes on at once, without the watchdog.
func TestLoopThatPanics(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.intercepted(func(_ context.Context, line string) {
		if line == sweepFails {
			panic("a fault in one event")
		}
	})
	run(t, l)
	b.until("it sweeps", func() bool { return l.State().Sweeps > 0 })
	mend := b.breakSweep()
	b.until("it panicked", func() bool { return b.log.Count("listener loop panicked; it goes on") > 0 })
	mend()
	b.beat("ann", 5*time.Second)
	b.pass(6 * time.Second)
	b.settled(2)
	b.chains()
	if err := l.Live(); err != nil {
		t.Errorf("after a panic: %v", err)
	}
}

// TestLoopThatPanicsAtEachTurn never comes round, so the process is not live; the other loops go on.
func TestLoopThatPanicsAtEachTurn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.intercepted(func(_ context.Context, line string) {
		if line == "listener report" {
			panic("a fault in the settings loop")
		}
	})
	run(t, l)
	b.until("it is not live", func() bool { return l.Live() != nil })
	b.beat("ann", 5*time.Second)
	b.pass(6 * time.Second)
	b.settled(2)
	b.chains()
	if err := l.Live(); err == nil || !strings.Contains(err.Error(), `"settings"`) {
		t.Errorf("after it was begun anew: %v", err)
	}
}

// TestLiveWhileRedisIsAway: a platform that replaced the process would gain nothing.
func TestLiveWhileRedisIsAway(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t)
	b := setupOn(t, server, "uc:")
	l := b.intercepted(func(context.Context, string) {})
	run(t, l)
	b.until("it sweeps", func() bool { return l.State().Sweeps > 0 })
	server.Kill()
	b.until("the sweep fails", func() bool { return l.State().SweepError != "" })
	started, looks := l.State().Started, l.Looks()
	b.until("it was looked at for longer than a loop may hang", func() bool {
		if err := l.Live(); err != nil {
			t.Fatal(err)
		}
		return l.Looks() > looks+expiry.StuckLooks+5
	})
	if !l.State().Started.Equal(started) {
		t.Error("the loops were begun anew, which cannot help")
	}
}

// TestNeverBegun: loops that should run and were never begun are told of, after a while.
func TestNeverBegun(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l := b.intercepted(func(context.Context, string) {})
	if err := l.Live(); err != nil {
		t.Errorf("while the process starts: %v", err)
	}
	l.LookEvery(time.Nanosecond)
	b.until("it is told", func() bool { return l.Live() != nil })
	if s := l.State(); s.Running {
		t.Errorf("%+v", s)
	}
}
