package expiry

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
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
