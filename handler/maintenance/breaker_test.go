package maintenance

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

var errDown = errors.New("connection refused")

// server answers PING, refuses it, or lets it wait until the caller's own limit.
type server struct {
	mode  atomic.Int32 // 0 up, 1 down, 2 silent
	delay time.Duration
	limit time.Duration // of a PING; 800 ms if 0
	pings atomic.Int64
}

const (
	up = iota
	down
	silent
)

func (s *server) ping(ctx context.Context) error {
	s.pings.Add(1)
	if s.delay > 0 {
		time.Sleep(s.delay)
	}
	switch s.mode.Load() {
	case down:
		return errDown
	case silent:
		ctx, cancel := context.WithTimeout(ctx, cmp.Or(s.limit, 800*time.Millisecond))
		defer cancel()
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

// start runs a breaker until the test ends, inside a synctest bubble.
func start(t *testing.T, s *server, log *slog.Logger) *Breaker {
	t.Helper()
	b := New(Config{Ping: s.ping, Log: log})
	run(t, b.Run)
	return b
}

func run(t *testing.T, loop func(context.Context)) {
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		loop(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
}

func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func expect(t *testing.T, b *Breaker, open bool) {
	t.Helper()
	synctest.Wait()
	after, is := b.Open()
	status := map[bool]Status{true: Open, false: Closed}[open]
	if is != open || b.State().Status != status || open == (after == 0) {
		t.Fatalf("at %s: open %v (retry after %s), state %+v; want open %v", time.Now().UTC().Format(time.TimeOnly), is, after, b.State(), open)
	}
}

// wire makes a message as the server sends it.
func wire(kind Type, start time.Time, replica bool) string {
	return Event{Type: kind, Start: start.UTC(), IsReplica: replica}.String()
}

// The maintenance that is walked through in the description of StackExchange.Redis's ServerMaintenanceEvent.
func TestDocumentedTimeline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s server
		b := start(t, &s, quiet())
		clock := func(text string) time.Time {
			at, err := time.Parse("15:04:05.000", text)
			if err != nil {
				t.Fatal(err)
			}
			return time.Date(2000, 1, 1, at.Hour(), at.Minute(), at.Second(), at.Nanosecond(), time.UTC)
		}
		until := func(text string) {
			time.Sleep(time.Until(clock(text)))
			synctest.Wait()
		}
		receive := func(raw string) { b.Notify(Parse(raw, time.Now())) }

		until("16:21:39.000")
		receive(wire(Scheduled, clock("16:35:57.000"), false))
		expect(t, b, false)
		if s := b.State(); !s.Scheduled.Equal(clock("16:35:57.000")) {
			t.Errorf("scheduled: %s", s.Scheduled)
		}
		until("16:34:26.000")
		receive(wire(Starting, clock("16:34:46.000"), false))
		expect(t, b, false)
		if s := b.State(); !s.Scheduled.IsZero() || !s.Next.Equal(clock("16:34:46.000")) {
			t.Errorf("announced: %+v", s)
		}
		until("16:34:45.899")
		expect(t, b, false)
		until("16:34:45.900")
		expect(t, b, true)
		if after, _ := b.Open(); after != hold+early {
			t.Errorf("retry after %s", after)
		}
		until("16:34:46.000")
		receive(wire(Start, time.Time{}, false))
		expect(t, b, true)
		until("16:34:47.000")
		s.mode.Store(down)
		b.ConnectionLost()
		expect(t, b, true)
		if after, _ := b.Open(); after != minRetry {
			t.Errorf("retry after %s once a connection was lost", after)
		}
		until("16:34:55.950")
		expect(t, b, true)
		s.mode.Store(up)
		until("16:34:56.000")
		receive(wire(FailoverComplete, time.Time{}, false))
		until("16:34:56.150")
		expect(t, b, false)
		until("16:37:48.000")
		receive(wire(Ended, clock("16:37:48.000"), true))
		expect(t, b, false)
		until("17:00:00.000")
		expect(t, b, false)

		state := b.State()
		if state.Opened != 1 || !strings.Contains(state.Reason, "2000-01-01T16:34:46Z") || !state.Next.IsZero() {
			t.Errorf("state: %+v", state)
		}
		var got []Type
		for _, e := range state.Events {
			got = append(got, e.Type)
			if state.Counts[e.Type] != 1 {
				t.Errorf("count of %s: %d", e.Type, state.Counts[e.Type])
			}
		}
		if want := []Type{Ended, FailoverComplete, Start, Starting, Scheduled}; !slices.Equal(got, want) {
			t.Errorf("events %v, want %v", got, want)
		}
	})
}

// No message about the end comes: the connection's fate decides.
func TestEndMessageLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s server
		b := start(t, &s, quiet())
		for _, downtime := range []time.Duration{0, 300 * time.Millisecond, 30 * time.Second, 10 * time.Minute} {
			b.Notify(Event{Type: Starting, Start: time.Now().Add(20 * time.Second)})
			pass(20 * time.Second)
			expect(t, b, true)
			s.mode.Store(down)
			b.ConnectionLost()
			pass(downtime)
			expect(t, b, true)
			s.mode.Store(up)
			pass(2*probeEvery + time.Millisecond)
			expect(t, b, false)
			pass(time.Hour)
		}
		// Nothing happens at all: the node was only renamed, say.
		b.Notify(Event{Type: Start, Received: time.Now()})
		pass(hold - time.Millisecond)
		expect(t, b, true)
		pass(time.Millisecond)
		expect(t, b, false)
	})
}

func TestServesAgainSoonAfterRedisAnswers(t *testing.T) {
	for name, mode := range map[string]int32{"refused": down, "silent": silent} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var s server
				b := start(t, &s, quiet())
				for range 50 {
					s.mode.Store(mode)
					b.Failed(&net.OpError{Op: "dial", Err: errDown})
					pass(time.Duration(rand.Int64N(int64(5 * time.Second))))
					expect(t, b, true)
					s.mode.Store(up)
					pass(time.Second)
					expect(t, b, false)
				}
				if s := b.State(); s.Opened != 50 || !strings.Contains(s.Reason, "connection refused") {
					t.Errorf("state: %+v", s)
				}
			})
		})
	}
}

// A reply that does not come in time: PING is asked for in time, and not more often than said.
func TestProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s server
		b := start(t, &s, quiet())
		pass(time.Hour)
		if n := s.pings.Load(); n != 0 {
			t.Errorf("%d PINGs while closed", n)
		}
		s.mode.Store(down)
		b.Failed(&net.OpError{Op: "dial", Err: errDown})
		synctest.Wait()
		if n := s.pings.Load(); n != 1 {
			t.Errorf("%d PINGs at once, want 1", n)
		}
		pass(10 * time.Second)
		if n := s.pings.Load(); n < 100 || n > 135 {
			t.Errorf("%d PINGs in 10 s", n)
		}
		s.mode.Store(up)
		pass(time.Second)
		n := s.pings.Load()
		pass(time.Hour)
		if s.pings.Load() != n {
			t.Error("PINGs while closed")
		}
	})
}

// TestASlowServer: a PING that takes long, over a connection that takes long to open, opens the breaker and is not
// given up: its answer closes it, also where each answer comes late.
func TestASlowServer(t *testing.T) {
	for name, delay := range map[string]time.Duration{"a second": time.Second, "ten seconds": 10 * time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := server{delay: delay}
				b := start(t, &s, quiet())
				b.Failed(context.DeadlineExceeded)
				pass(probeTimeout)
				expect(t, b, true)
				pass(delay - probeTimeout)
				expect(t, b, false)
				if n := s.pings.Load(); n != 1 {
					t.Errorf("%d PINGs, want 1 that is not given up", n)
				}
				// With a maintenance two answers in a row are wanted.
				b.Notify(Event{Type: Start})
				b.ConnectionLost()
				pass(2*delay + 2*probeEvery)
				expect(t, b, false)
			})
		})
	}
}

func TestFailures(t *testing.T) {
	timeout := fmt.Errorf("read tcp: %w", context.DeadlineExceeded)
	broken := errors.New("EOF")
	each := func(n int, err error, wait time.Duration) func(*Breaker) {
		return func(b *Breaker) {
			for range n {
				b.Failed(err)
				pass(wait)
			}
		}
	}
	for name, tt := range map[string]struct {
		do   func(*Breaker)
		open bool
	}{
		"two in a row":             {each(2, broken, time.Second), false},
		"three in a row":           {each(3, broken, time.Second), true},
		"three time-outs in a row": {each(3, timeout, time.Second), true},
		"a burst":                  {each(10_000, broken, 0), false},
		"bursts": {func(b *Breaker) {
			for range 3 {
				each(100, broken, 0)(b)
				pass(burst)
			}
		}, true},
		"a dial":                   {each(1, fmt.Errorf("get a connection: %w", &net.OpError{Op: "dial", Err: broken}), 0), true},
		"a read that is no dial":   {each(1, &net.OpError{Op: "read", Err: broken}, 0), false},
		"callers that give up":     {each(100, fmt.Errorf("wait: %w", context.Canceled), time.Second), false},
		"a dial that was given up": {each(1, &net.OpError{Op: "dial", Err: context.Canceled}, 0), false},
		"no error":                 {each(100, nil, time.Second), false},
		"successes between failures": {func(b *Breaker) {
			for range 10 {
				each(2, broken, time.Second)(b)
				b.Succeeded()
			}
		}, false},
		"lost connections": {func(b *Breaker) {
			for range 10 {
				b.ConnectionLost()
				pass(time.Second)
			}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var s server
				b := start(t, &s, quiet())
				tt.do(b)
				synctest.Wait()
				if n := b.State().Opened; (n > 0) != tt.open {
					t.Errorf("opened %d times", n)
				}
				pass(time.Second)
				expect(t, b, false) // PING answers
				if n := b.State().Failures; tt.open && n != 0 {
					t.Errorf("%d failures are left", n)
				}
			})
		})
	}
}

// After one failure a PING decides: a server that is silent must not cost one time-out after the other.
func TestPingAfterAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s server
		b := start(t, &s, quiet())
		for range 100 {
			b.Failed(context.DeadlineExceeded)
			pass(time.Millisecond)
			b.Succeeded()
		}
		if n := s.pings.Load(); n < 1 || n > 2 {
			t.Errorf("%d PINGs in 100 ms", n)
		}
		expect(t, b, false)
		s.mode.Store(silent)
		pass(time.Minute)
		expect(t, b, false)
		b.Failed(context.DeadlineExceeded)
		pass(probeTimeout)
		expect(t, b, true)
		s.mode.Store(up)
		pass(time.Second)
		expect(t, b, false)
	})
}

// A command that breaks on its connection tells that a connection was lost, as ConnectionLost does; a time-out
// does not.
func TestFailureIsALostConnection(t *testing.T) {
	for _, tt := range []struct {
		err    error
		closed bool
	}{{errors.New("EOF"), true}, {context.DeadlineExceeded, false}} {
		synctest.Test(t, func(t *testing.T) {
			var s server
			b := start(t, &s, quiet())
			b.Notify(Event{Type: Start})
			pass(50 * time.Millisecond)
			b.Failed(tt.err)
			pass(2*probeEvery + time.Millisecond)
			expect(t, b, !tt.closed)
		})
	}
}

func TestStopsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s server
		s.mode.Store(silent)
		b := New(Config{Ping: s.ping, Log: quiet()})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			b.Run(ctx)
		}()
		b.Failed(&net.OpError{Op: "dial", Err: errDown})
		expect(t, b, true)
		stop()
		<-done
		expect(t, b, false)
		b.Notify(Event{Type: Start})
		b.Failed(&net.OpError{Op: "dial", Err: errDown})
		expect(t, b, false) // nobody would close it
	})
}

func TestPingThatPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calm atomic.Bool
		b := New(Config{Log: quiet(), Ping: func(context.Context) error {
			if !calm.Load() {
				panic("a fault")
			}
			return nil
		}})
		run(t, b.Run)
		b.Failed(&net.OpError{Op: "dial", Err: errDown})
		pass(10 * time.Second)
		expect(t, b, true)
		calm.Store(true)
		pass(time.Second)
		expect(t, b, false)
	})
}

func TestSubscribers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s server
		b := start(t, &s, quiet())
		var got []string
		cancel := b.Subscribe(func(e Event) { got = append(got, e.Raw) })
		release := make(chan struct{})
		b.Subscribe(func(e Event) {
			if e.Raw == "slow" {
				<-release
			}
			panic("a fault of the application's")
		})
		later := 0
		b.Subscribe(func(Event) { later++ })

		for i := range 100 {
			b.Notify(Event{Type: Unknown, Raw: fmt.Sprint(i)})
			synctest.Wait()
		}
		if len(got) != 100 || got[0] != "0" || got[99] != "99" || later != 100 {
			t.Fatalf("%d and %d calls: %v", len(got), later, got)
		}

		// A slow one holds up the others, not the breaker, and what does not fit is counted.
		b.Notify(Event{Type: Unknown, Raw: "slow"})
		synctest.Wait()
		for range maxUndelivered + 5 {
			b.Notify(Event{Type: Unknown, Raw: "behind"})
		}
		b.Notify(Event{Type: Start})
		expect(t, b, true)
		pass(hold)
		expect(t, b, false)
		if n := b.State().Dropped; n != 6 {
			t.Errorf("%d dropped, want 6", n)
		}
		if later != 100 {
			t.Errorf("called %d times", later)
		}
		close(release)
		synctest.Wait()
		if want := 101 + maxUndelivered; len(got) != want || later != want {
			t.Errorf("%d and %d calls, want %d", len(got), later, want)
		}
		cancel()
		cancel()
		b.Notify(Event{Type: Unknown, Raw: "after cancel"})
		synctest.Wait()
		if slices.Contains(got, "after cancel") {
			t.Error("called after cancel")
		}
	})
}

func TestStormOfMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s server
		var text bytes.Buffer
		b := start(t, &s, slog.New(slog.NewTextHandler(&text, nil)))
		for i := range 10_000 {
			b.Notify(Parse(fmt.Sprintf("NotificationType|junk%d", i), time.Now()))
		}
		b.Notify(Parse(wire(Start, time.Time{}, false), time.Now()))
		expect(t, b, true)
		pass(hold)
		state := b.State()
		if len(state.Events) != maxEvents || state.Events[0].Type != Start || state.Events[1].RawType != "junk9999" ||
			state.Counts[Unknown] != 10_000 || state.Counts[Start] != 1 || len(state.Counts) != 2 || state.Dropped != 0 {
			t.Errorf("state: %+v", state)
		}
		if lines := strings.Count(text.String(), "\n"); lines != maxLines+2 {
			t.Errorf("%d lines were logged", lines)
		}
		for _, want := range []string{"breaker of Redis opened", "breaker of Redis closed", "junk0"} {
			if !strings.Contains(text.String(), want) {
				t.Errorf("no line about %q", want)
			}
		}
	})
}

// Random messages, failures and outages against a running breaker: never open for over 60 s while PING answers,
// and closed within a second once all is quiet and PING answers.
func TestRandomTroubles(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 0))
			s := server{delay: time.Duration(rng.IntN(3)) * 20 * time.Millisecond}
			b := start(t, &s, quiet())
			var answersSince, openSince time.Time
			answersSince = time.Now()
			observe := func(d time.Duration) {
				for end := time.Now().Add(d); time.Now().Before(end); {
					pass(min(50*time.Millisecond, time.Until(end)))
					switch _, open := b.Open(); {
					case !open:
						openSince = time.Time{}
					case openSince.IsZero():
						openSince = time.Now()
					case s.mode.Load() == up && time.Since(openSince) > longest+probeEvery && time.Since(answersSince) > longest+time.Second:
						t.Fatalf("seed %d: open since %s, PING answers since %s", seed, openSince, answersSince)
					}
				}
			}
			for range 150 {
				about := time.Now().Add(time.Duration(rng.IntN(40)-10) * time.Second)
				switch rng.IntN(9) {
				case 0:
					b.Notify(Event{Type: Start})
				case 1, 2:
					b.Notify(Event{Type: Starting, Start: about})
				case 3:
					b.Notify(Event{Type: Ended, Start: about})
				case 4:
					b.ConnectionLost()
				case 5:
					b.Failed(&net.OpError{Op: "dial", Err: errDown})
				case 6:
					s.mode.Store(int32(1 + rng.IntN(2)))
				default:
					if s.mode.Swap(up) != up {
						answersSince = time.Now()
					}
				}
				observe(time.Duration(rng.IntN(15_000)) * time.Millisecond)
			}
			if s.mode.Swap(up) != up {
				answersSince = time.Now()
			}
			observe(2 * time.Minute)
			expect(t, b, false)
		})
	}
}

// Everything at once, with the real clock, for the race detector.
func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	var s server
	b := New(Config{Ping: s.ping, Log: quiet()})
	run(t, b.Run)
	var told atomic.Int64
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			cancel := b.Subscribe(func(Event) { told.Add(1) })
			defer cancel()
			for n := range 300 {
				switch (n + i) % 6 {
				case 0:
					b.Notify(Event{Type: Starting, Start: time.Now().Add(time.Second), Received: time.Now()})
				case 1:
					b.Notify(Event{Type: Ended, Received: time.Now()})
				case 2:
					b.Failed(errDown)
				case 3:
					b.Succeeded()
				case 4:
					b.ConnectionLost()
				case 5:
					b.Failed(&net.OpError{Op: "dial", Err: errDown})
				}
				b.Open()
				_ = b.State()
			}
		})
	}
	wg.Wait()
	state := b.State()
	if state.Counts[Starting] != 200 || state.Counts[Ended] != 200 || state.Opened == 0 {
		t.Errorf("state: %+v", state)
	}
}

func BenchmarkOpen(b *testing.B) {
	breaker := New(Config{Log: quiet()})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, open := breaker.Open(); open {
				b.Error("open")
			}
			breaker.Succeeded()
		}
	})
}
