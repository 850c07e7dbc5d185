package maintenance

import (
	"encoding/binary"
	"testing"
	"time"
)

// world drives rules as a Breaker does, with a clock of its own and a server that may be down.
type world struct {
	t        *testing.T
	rules    rules
	now      time.Time
	up       bool
	nextPing time.Time
	upSince  time.Time
	cause    bool // something came that may open the breaker
	opened   int
}

func newWorld(t *testing.T) *world {
	start := time.Date(2026, 11, 21, 16, 0, 0, 0, time.UTC)
	return &world{t: t, now: start, up: true, upSince: start}
}

// settle applies what follows from a change, and checks what must always hold.
func (w *world) settle() {
	w.t.Helper()
	if w.rules.settle(w.now) && w.rules.open {
		w.nextPing = w.now
		w.opened++
		if !w.cause {
			w.t.Fatal("opened without a cause")
		}
	}
	r := &w.rules
	if next := r.next(); !next.IsZero() && !next.After(w.now) {
		w.t.Fatalf("settle left something to do: %+v", r)
	}
	// The first PING that answers may come as late as one round after the server does.
	if answers := w.now.Sub(w.upSince); r.open && w.up && answers > 2*probeEvery && w.now.Sub(r.since) > longest {
		w.t.Fatalf("open for %s, PING answers for %s: %+v", w.now.Sub(r.since), answers, r)
	}
	if len(r.pending) > maxPending {
		w.t.Fatalf("%d starts are waited for", len(r.pending))
	}
}

// pass lets time go by, with everything that the clock brings.
func (w *world) pass(d time.Duration) {
	w.t.Helper()
	for end := w.now.Add(d); ; {
		next := end
		if due := w.rules.next(); !due.IsZero() && due.Before(next) {
			next = due
		}
		if w.rules.wantsPing() && w.nextPing.Before(next) {
			next = maxTime(w.nextPing, w.now)
		}
		w.now = next
		if w.rules.wantsPing() && !w.nextPing.After(w.now) {
			w.rules.pinged(w.now, w.now, w.up)
			w.nextPing = w.now.Add(probeEvery)
		}
		w.settle()
		if !w.now.Before(end) {
			return
		}
	}
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (w *world) set(up bool) {
	if up && !w.up {
		w.upSince = w.now
	}
	w.up = up
}

func (w *world) notify(e Event) {
	w.t.Helper()
	w.cause = w.cause || e.Valid()
	w.rules.notify(w.now, e)
	w.settle()
}

func (w *world) fail(dial bool) {
	w.t.Helper()
	w.cause = true
	w.rules.failed(w.now, dial)
	w.settle()
}

func (w *world) lose() {
	w.t.Helper()
	w.rules.lost(w.now)
	w.settle()
}

// is checks the status, and how long it has been so.
func (w *world) is(open bool, since time.Duration) {
	w.t.Helper()
	if w.rules.open != open || since >= 0 && w.now.Sub(w.rules.since) != since {
		w.t.Fatalf("open %v for %s, want %v for %s: %+v", w.rules.open, w.now.Sub(w.rules.since), open, since, w.rules)
	}
}

const anyTime = -1

func (w *world) in(d time.Duration) time.Time { return w.now.Add(d) }

func TestOpening(t *testing.T) {
	t.Parallel()
	tests := map[string]func(*world){
		"100 ms before an announced start": func(w *world) {
			w.notify(Event{Type: Starting, Start: w.in(20 * time.Second)})
			w.pass(20*time.Second - early - time.Millisecond)
			w.is(false, anyTime)
			w.pass(time.Millisecond)
			w.is(true, 0)
		},
		"at once at a start": func(w *world) {
			w.notify(Event{Type: Start})
			w.is(true, 0)
		},
		"at once when the start is announced late": func(w *world) {
			w.notify(Event{Type: Starting, Start: w.in(-4 * time.Second)})
			w.is(true, 0)
			w.pass(6 * time.Second)
			w.is(false, 0)
		},
		"two announced starts": func(w *world) {
			w.notify(Event{Type: Starting, Start: w.in(60 * time.Second)})
			w.notify(Event{Type: Starting, Start: w.in(20 * time.Second)})
			w.pass(20 * time.Second)
			w.is(true, early)
			w.pass(11 * time.Second)
			w.is(false, time.Second)
			w.pass(29 * time.Second)
			w.is(true, early)
		},
		"a start announced again with another time": func(w *world) {
			w.notify(Event{Type: Starting, Start: w.in(20 * time.Second)})
			w.notify(Event{Type: Starting, Start: w.in(23 * time.Second)})
			w.pass(22 * time.Second)
			w.is(false, anyTime)
			w.pass(time.Second)
			w.is(true, early)
		},
		"a start that comes a little before its time counts from its time": func(w *world) {
			w.notify(Event{Type: Starting, Start: w.in(3 * time.Second)})
			w.notify(Event{Type: Start})
			w.is(true, 0)
			w.pass(13*time.Second - time.Millisecond)
			w.is(true, anyTime)
			w.pass(time.Millisecond)
			w.is(false, 0)
		},
		"by notifications of Redis": func(w *world) {
			for _, name := range []string{"MOVING", "MIGRATING", "FAILING_OVER"} {
				w.notify(ParsePush([]any{name, int64(1), int64(2)}, w.now))
				w.pass(2 * time.Second)
				w.is(true, early)
				w.pass(70 * time.Second)
				w.is(false, anyTime)
			}
		},
		"by a failed dial": func(w *world) {
			w.fail(true)
			w.is(true, 0)
		},
		"by a failure and a PING that does not answer": func(w *world) {
			w.set(false)
			w.fail(false)
			w.is(false, anyTime)
			w.pass(time.Millisecond)
			w.is(true, anyTime)
		},
		"by three failures in a row": func(w *world) {
			for range 3 {
				w.is(false, anyTime)
				w.pass(burst)
				w.fail(false)
			}
			w.is(true, 0)
		},
	}
	for name, run := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(newWorld(t))
		})
	}
}

func TestNotOpening(t *testing.T) {
	t.Parallel()
	tests := map[string]func(*world){
		"a schedule, before and after its rough time": func(w *world) {
			w.notify(Event{Type: Scheduled, Start: w.in(10 * time.Minute)})
		},
		"a schedule without a time":         func(w *world) { w.notify(Event{Type: Scheduled}) },
		"a replica's schedule":              func(w *world) { w.notify(Event{Type: Scheduled, IsReplica: true, Start: w.in(time.Minute)}) },
		"a replica's announced start":       func(w *world) { w.notify(Event{Type: Starting, IsReplica: true, Start: w.in(time.Minute)}) },
		"a replica's start":                 func(w *world) { w.notify(Event{Type: Start, IsReplica: true}) },
		"an announced start without a time": func(w *world) { w.notify(Event{Type: Starting}) },
		"an announced start long past":      func(w *world) { w.notify(Event{Type: Starting, Start: w.in(-hold)}) },
		"a start long past":                 func(w *world) { w.notify(Event{Type: Start, Start: w.in(-hold)}) },
		"a start at the beginning of time":  func(w *world) { w.notify(Event{Type: Starting, Start: time.Unix(-1<<40, 0)}) },
		"an end":                            func(w *world) { w.notify(Event{Type: Ended, Start: w.now}) },
		"a failover":                        func(w *world) { w.notify(Event{Type: FailoverComplete}) },
		"a new size":                        func(w *world) { w.notify(Event{Type: ScaleComplete, Start: w.now}) },
		"slots that move":                   func(w *world) { w.notify(ParsePush([]any{"SMIGRATING", int64(1), int64(0)}, w.now)) },
		"ends of Redis's own":               func(w *world) { w.notify(Event{Type: Migrated}); w.notify(Event{Type: FailedOver}) },
		"an unknown type":                   func(w *world) { w.notify(Event{Type: Unknown, RawType: string(Start) + "1", Start: w.now}) },
		"no type":                           func(w *world) { w.notify(Event{Start: w.now}) },
		"a lost connection":                 func(w *world) { w.lose() },
		"a burst of failures": func(w *world) {
			for range 1000 {
				w.fail(false)
				w.pass(burst / 2000)
			}
		},
		"failures with successes between": func(w *world) {
			for range 100 {
				w.fail(false)
				w.pass(burst)
				w.fail(false)
				w.rules.succeeded()
				w.pass(burst)
			}
		},
	}
	for name, run := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			run(w)
			w.is(false, anyTime)
			w.pass(time.Hour)
			w.is(false, anyTime)
			if !w.rules.since.IsZero() {
				t.Errorf("it was open: %+v", w.rules)
			}
		})
	}
}

func TestClosing(t *testing.T) {
	t.Parallel()
	tests := map[string]func(*world){
		"the end is announced, then PING answers": func(w *world) {
			w.notify(Event{Type: Start})
			w.pass(3050 * time.Millisecond)
			w.notify(Event{Type: Ended, Start: w.now})
			w.is(true, anyTime)
			w.pass(50 * time.Millisecond)
			w.is(false, 0)
		},
		"the failover is announced while PING does not answer yet": func(w *world) {
			w.notify(Event{Type: Start})
			w.pass(time.Second)
			w.set(false)
			w.pass(5 * time.Second)
			w.notify(Event{Type: FailoverComplete})
			w.pass(30 * time.Second)
			w.is(true, anyTime)
			w.set(true)
			w.pass(probeEvery)
			w.is(false, anyTime)
		},
		"the end by a notification of Redis": func(w *world) {
			w.notify(ParsePush([]any{"FAILING_OVER", int64(1), int64(0)}, w.now))
			w.is(true, 0)
			w.pass(time.Second)
			w.notify(Event{Type: FailedOver})
			w.pass(probeEvery)
			w.is(false, anyTime)
		},
		"the end of an earlier maintenance closes nothing": func(w *world) {
			w.notify(Event{Type: Start})
			w.notify(Event{Type: Ended, Start: w.in(-time.Minute)})
			w.pass(hold - time.Millisecond)
			w.is(true, anyTime)
		},
		"a lost connection and two PINGs that answer": func(w *world) {
			w.notify(Event{Type: Start})
			w.pass(1050 * time.Millisecond)
			w.lose()
			w.pass(50 * time.Millisecond)
			w.is(true, anyTime)
			w.pass(probeEvery)
			w.is(false, 0)
		},
		"only PINGs in a row count": func(w *world) {
			w.notify(Event{Type: Start})
			w.pass(50 * time.Millisecond)
			w.lose()
			for range 20 { // one answers, one does not
				w.pass(probeEvery)
				w.set(false)
				w.pass(probeEvery)
				w.set(true)
				w.is(true, anyTime)
			}
			w.pass(2 * probeEvery)
			w.is(false, anyTime)
		},
		"a PING that does not answer is a lost connection": func(w *world) {
			w.notify(Event{Type: Start})
			w.pass(time.Second)
			w.set(false)
			w.pass(time.Minute)
			w.is(true, anyTime)
			w.set(true)
			w.pass(2 * probeEvery)
			w.is(false, anyTime)
		},
		"a connection lost in the 100 ms before the start": func(w *world) {
			w.notify(Event{Type: Starting, Start: w.in(10 * time.Second)})
			w.pass(10*time.Second - early/2)
			w.lose()
			w.pass(2 * probeEvery)
			w.is(false, anyTime)
		},
		"a connection lost long before does not count": func(w *world) {
			w.lose()
			w.pass(time.Second)
			w.notify(Event{Type: Start})
			w.pass(hold - time.Millisecond)
			w.is(true, anyTime)
			w.pass(time.Millisecond)
			w.is(false, 0)
		},
		"a PING that was sent before does not count": func(w *world) {
			w.notify(Event{Type: Start})
			sent := w.now
			w.pass(10 * time.Millisecond)
			w.notify(Event{Type: Ended})
			w.rules.pinged(w.now, sent, true)
			w.settle()
			w.is(true, anyTime)
			w.rules.pinged(w.now, w.now, true)
			w.settle()
			w.is(false, 0)
		},
		"connections that are lost again and again": func(w *world) {
			w.notify(Event{Type: Start})
			w.pass(time.Second)
			for range 10 {
				w.lose()
				w.pass(30 * time.Millisecond)
			}
			w.is(false, anyTime)
		},
		"an end that is announced again and again": func(w *world) {
			w.notify(Event{Type: Start})
			w.pass(1050 * time.Millisecond)
			for range 10 {
				w.notify(Event{Type: Ended})
				w.now = w.in(10 * time.Millisecond)
				w.notify(Event{Type: Ended})
				w.rules.pinged(w.now, w.in(-time.Millisecond), true) // sent between two of them
				w.settle()
			}
			w.is(false, anyTime)
		},
		"10 s after the start without a lost connection": func(w *world) {
			w.notify(Event{Type: Starting, Start: w.in(time.Minute)})
			w.pass(time.Minute + hold - time.Millisecond)
			w.is(true, hold+early-time.Millisecond)
			w.pass(time.Millisecond)
			w.is(false, 0)
		},
		"60 s, with a PING that answers now and then": func(w *world) {
			w.notify(Event{Type: Start})
			w.pass(50 * time.Millisecond)
			for w.rules.open {
				w.set(true)
				w.pass(probeEvery)
				w.set(false)
				w.pass(probeEvery)
				if w.now.Sub(w.rules.since) > longest+2*probeEvery {
					t.Fatalf("open for %s", w.now.Sub(w.rules.since))
				}
			}
		},
		"60 s, with one start after the other; then maintenance is left alone": func(w *world) {
			opened := w.now
			for range 12 {
				w.notify(Event{Type: Starting, Start: w.now})
				w.pass(7 * time.Second)
				if w.now.Sub(opened) < longest {
					w.is(true, w.now.Sub(opened))
				}
			}
			w.is(false, 24*time.Second)
			w.pass(again)
			w.notify(Event{Type: Starting, Start: w.now})
			w.is(true, 0)
		},
		"not before PING answers, however long": func(w *world) {
			w.notify(Event{Type: Start})
			w.set(false)
			w.pass(time.Hour)
			w.is(true, time.Hour)
			w.set(true)
			w.pass(probeEvery)
			w.is(false, anyTime)
		},
		"after failures one PING": func(w *world) {
			w.set(false)
			w.fail(true)
			w.pass(time.Minute + 50*time.Millisecond)
			w.is(true, anyTime)
			w.set(true)
			w.pass(50 * time.Millisecond)
			w.is(false, 0)
		},
		"after failures in a maintenance two PINGs": func(w *world) {
			w.notify(Event{Type: Start})
			w.pass(hold + time.Second)
			w.is(false, time.Second)
			w.set(false)
			w.fail(true)
			w.pass(time.Second + 50*time.Millisecond)
			w.set(true)
			w.pass(50 * time.Millisecond)
			w.is(true, anyTime)
			w.pass(probeEvery)
			w.is(false, 0)
		},
		"a PING under way that does not answer opens it again": func(w *world) {
			w.notify(Event{Type: Start})
			sent := w.now
			w.pass(hold)
			w.is(false, 0)
			w.rules.pinged(w.now, sent, false)
			w.settle()
			w.is(true, 0)
			w.pass(2 * probeEvery)
			w.is(false, anyTime)
		},
	}
	for name, run := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(newWorld(t))
		})
	}
}

// A maintenance that is announced twice, or after it was over, opens the breaker once.
func TestMessagesAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	start := w.in(20 * time.Second)
	for range 100 {
		w.notify(Event{Type: Starting, Start: start})
		w.pass(200 * time.Millisecond)
	}
	w.notify(Event{Type: Start})
	w.lose()
	w.pass(time.Second)
	w.is(false, anyTime)
	w.pass(8 * time.Second)
	w.notify(Event{Type: FailoverComplete})
	for range 100 {
		w.notify(Event{Type: Starting, Start: start})
		w.notify(Event{Type: Start})
		w.notify(Event{Type: Ended, Start: w.now})
		w.pass(500 * time.Millisecond)
	}
	w.is(false, anyTime)
	if w.opened != 1 {
		t.Errorf("opened %d times", w.opened)
	}
}

// A storm of starts keeps the breaker open a sixth of the time at most: 10 s of each minute.
func TestStormOfStarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	open := 0
	const n = 10 * 60 * 100
	for range n {
		w.notify(Event{Type: Start})
		w.pass(10 * time.Millisecond)
		if w.rules.open {
			open++
		}
	}
	if open > n/6+n/100 || open < n/10 {
		t.Errorf("open in %d of %d moments", open, n)
	}
}

// FuzzRules: whatever comes, in whatever order, the breaker is never opened without a cause, never open for more
// than 60 s while PING answers, and closed in the end.
func FuzzRules(f *testing.F) {
	f.Add([]byte{0, 0, 10, 1, 200, 0, 5, 0, 200, 0, 8, 0})
	f.Add([]byte{1, 20, 10, 200, 2, 0, 7, 0, 10, 50, 3, 0, 8, 0, 10, 255, 4, 0})
	f.Add([]byte{6, 1, 7, 0, 11, 255, 8, 0, 11, 255, 9, 3, 10, 10, 9, 3, 10, 10, 9, 3})
	f.Fuzz(func(t *testing.T, steps []byte) {
		if len(steps) > 1000 {
			return
		}
		w := newWorld(t)
		far := 0 * time.Second
		for len(steps) >= 2 {
			what, arg := steps[0], time.Duration(steps[1])
			steps = steps[2:]
			about := w.in((arg - 100) * time.Second)
			replica := arg%7 == 0
			switch what % 14 {
			case 0:
				w.notify(Event{Type: Start, IsReplica: replica})
			case 1:
				w.notify(Event{Type: Starting, Start: about, IsReplica: replica})
			case 2:
				w.notify(Event{Type: Starting, Start: w.in(arg * 100 * time.Millisecond)})
			case 3:
				w.notify(Event{Type: FailoverComplete})
			case 4:
				w.notify(Event{Type: Ended, Start: about, IsReplica: replica})
			case 5:
				w.notify(Event{Type: Scheduled, Start: about})
			case 6:
				w.fail(arg%3 == 0)
			case 7:
				w.set(false)
			case 8:
				w.set(true)
			case 9:
				w.rules.lost(w.now)
				w.settle()
			case 10:
				w.pass(arg * 10 * time.Millisecond)
			case 11:
				w.pass(arg * time.Second)
			case 12:
				w.rules.succeeded()
				w.settle()
			case 13:
				w.notify(Event{Type: Unknown, Start: about})
				w.notify(Event{Type: ScaleComplete, Start: about})
			}
			far = max(far, w.rules.latest().Sub(w.now))
		}
		w.set(true)
		w.pass(max(far, 0) + longest + hold + time.Second)
		w.is(false, anyTime)
		if len(w.rules.pending) > 0 {
			t.Fatalf("still waits for %v", w.rules.pending)
		}
	})
}

// latest is the last announced start, zero for none.
func (r *rules) latest() (t time.Time) {
	if n := len(r.pending); n > 0 {
		t = r.pending[n-1]
	}
	return t
}

// FuzzInvalid: messages of any text that name no known type never open the breaker.
func FuzzInvalid(f *testing.F) {
	f.Add([]byte("NotificationType|NodeMaintenanceStarting1|StartTimeInUTC|2026-11-21T16:00:10"), uint16(10))
	f.Add([]byte("NotificationType||StartTimeInUTC|2026-11-21T16:00:10"), uint16(1000))
	f.Fuzz(func(t *testing.T, raw []byte, wait uint16) {
		w := newWorld(t)
		e := Parse(string(raw), w.now)
		if e.Valid() {
			return
		}
		w.notify(e)
		e.Start = w.in(time.Duration(binary.BigEndian.Uint16(append(raw, 0, 0))) * time.Millisecond)
		w.notify(e)
		w.pass(time.Duration(wait) * time.Second)
		if w.rules.open || !w.rules.since.IsZero() {
			t.Fatalf("opened by %q", raw)
		}
	})
}
