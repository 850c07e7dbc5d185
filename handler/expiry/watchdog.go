package expiry

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// lookEvery is how often the watchdog looks at the loops.
	lookEvery = time.Second
	// stuckLooks is after how many looks in a row a loop that has not turned is stuck. A turn of the sweep and of the
	// settings ends within two times sweepTimeout, also while Redis is away.
	stuckLooks = 30
	// endLooks is how many looks long loops that were told to end may take.
	endLooks = 10
)

// ErrStuck is returned by Run when a loop hangs and does not even end when it is told to. No goroutine can be ended
// from outside: only a new process helps.
var ErrStuck = errors.New("a loop of the listener hangs and does not end")

// watchdog is what the loops show of themselves. Nothing in it waits for a lock, which a loop that hangs may hold.
type watchdog struct {
	// sweep and settings count the turns of these loops. A turn counts however it went: Redis may be away for long.
	sweep, settings atomic.Int64
	looks           atomic.Int64
	running         atomic.Bool
	stuck           atomic.Pointer[string] // the loop that hangs, nil for none
	made            time.Time
	lookEvery       time.Duration
}

// Run sweeps and relays until ctx ends; then it returns nil. No fault of Redis, of the queue or of the event log ends
// it. A loop that panics goes on, and when one has not turned for stuckLooks looks all are begun anew. Where that does
// not help, because the loop does not end, Run returns ErrStuck.
func (l *Listener) Run(ctx context.Context) error {
	why := ""
	for ctx.Err() == nil {
		run, cancel := context.WithCancel(ctx)
		ended := l.begin(run, why)
		why = l.watch(run, ended)
		cancel()
		patience := time.NewTimer(endLooks * l.watchdog.lookEvery)
		select {
		case <-ended:
			patience.Stop()
		case <-patience.C:
			l.watchdog.running.Store(false)
			return fmt.Errorf("%w: %s", ErrStuck, why)
		}
	}
	l.watchdog.running.Store(false)
	l.mu.Lock()
	l.state.Running = false
	l.mu.Unlock()
	return nil
}

// begin starts the loops and returns a channel that is closed when all have ended, after run. why says which loop hung
// before, "" at the start.
func (l *Listener) begin(run context.Context, why string) <-chan struct{} {
	l.watchdog.running.Store(true)
	l.mu.Lock()
	l.state.Running, l.state.Started = true, time.Now()
	l.mu.Unlock()
	var g errgroup.Group
	loops := map[string]func(context.Context){"sweep": l.sweepLoop, "relay": l.relay.loop, "settings": l.settingsLoop}
	if l.relay.to.Routes != "" {
		loops["foreign keys"] = l.foreignLoop
	}
	for name, loop := range loops {
		g.Go(func() error {
			l.guard(run, name, loop)
			return nil
		})
	}
	if why != "" {
		g.Go(func() error { // the watchdog itself must not wait for whoever reads the log
			l.log.ErrorContext(run, "a loop of the listener hung: all were begun anew", "loop", why)
			return nil
		})
	}
	ended := make(chan struct{})
	go func() { // ends with the loops
		defer close(ended)
		_ = g.Wait() // the loops return nothing
	}()
	return ended
}

// watch looks at the loops until run is done, or one of them is stuck, whose name it returns. It counts looks and does
// not read the clock: a process that was stopped for an hour had no turns in it, and no looks either. The relay and the
// foreign keys have no turns of their own: they wait for work, and each step of it has its deadline.
func (l *Listener) watch(run context.Context, ended <-chan struct{}) (stuck string) {
	w := &l.watchdog
	loops := []struct {
		name  string
		turns *atomic.Int64
		seen  int64
		still int // looks in a row without a turn
	}{
		{name: "sweep", turns: &w.sweep}, {name: "settings", turns: &w.settings},
	}
	for i := range loops {
		loops[i].seen = loops[i].turns.Load()
	}
	look := time.NewTicker(w.lookEvery)
	defer look.Stop()
	for {
		select {
		case <-run.Done():
			return ""
		case <-ended:
			return ""
		case <-look.C:
		}
		for i := range loops {
			loop := &loops[i]
			turns := loop.turns.Load()
			if turns != loop.seen {
				loop.seen, loop.still = turns, 0
				if hung := w.stuck.Load(); hung != nil && *hung == loop.name {
					w.stuck.Store(nil)
				}
				continue
			}
			if loop.still++; loop.still >= stuckLooks {
				w.stuck.Store(&loop.name)
				return loop.name
			}
		}
		w.looks.Add(1)
	}
}

// Live returns nil while the loops of this process turn, and what is wrong when one hangs or they were never begun.
// Redis, the queue and the event log do not count, however long they are away: a new process would find them away, too.
func (l *Listener) Live() error {
	w := &l.watchdog
	if loop := w.stuck.Load(); loop != nil {
		return fmt.Errorf("the listener's loop %q hangs: sessions of users that have gone are not reported by this process", *loop)
	}
	if !w.running.Load() && time.Since(w.made) > stuckLooks*w.lookEvery {
		return errors.New("the listener's loops do not run in this process, though they should")
	}
	return nil
}
