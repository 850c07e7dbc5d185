package expiry

import (
	"slices"
	"sync"
	"time"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/redisstore"
)

// item is one event in hand: read from the outbox, and not yet acknowledged.
type item struct {
	entry redisstore.Entry
	since time.Time // when it was read
	to    string    // its queue; "" for a key that no route matches any more
	sent  bool
	end   eventlog.Step // what its history tells after detected
	// refusals are why the queue or the log refused it for good.
	refusals []string
	fate     fate // what the step that has it made of it
}

// fate is what becomes of an item after a step.
type fate int

const (
	// waits: the step is tried again.
	waits fate = iota
	// passed: it goes on to the next step.
	passed
	// left: it is not in hand any more, and stays in the outbox until it is taken over.
	left
)

// itemBytes is about what an item takes beside its entry.
const itemBytes = 1024

func (i *item) bytes() int64 { return int64(i.entry.Size()) + itemBytes }

// lane is what the relay knows of one partition. Each step of it has a goroutine of its own.
type lane struct {
	bells  []chan struct{} // by step: there may be something to do
	failed []bool          // by step: the last try did; each is used by its step alone

	// How far the outbox was read. The first step alone uses these.
	own     string              // entries that this relay was given before were looked for up to here
	fresh   bool                // all of them
	inherit bool                // entries that others left are to be looked for
	looked  string              // up to here
	due     time.Time           // when they are to be looked for again
	seen    map[string]struct{} // entries of a later version that this pass met

	mu      sync.Mutex
	waiting [][]*item // by step, oldest first
	held    map[string]*item
	bytes   int64
	full    bool                // there was no room for more
	newer   map[string]struct{} // pending entries of a later version
}

func newLane(steps int) *lane {
	l := &lane{
		bells: make([]chan struct{}, steps), failed: make([]bool, steps), waiting: make([][]*item, steps),
		held: map[string]*item{}, newer: map[string]struct{}{}, seen: map[string]struct{}{},
	}
	for s := range steps {
		l.bells[s] = make(chan struct{}, 1)
	}
	return l
}

// wake tells a step that there may be something to do.
func (l *lane) wake(step int) {
	select {
	case l.bells[step] <- struct{}{}:
	default: // it is awake already
	}
}

// add takes entries in hand, unless they are already or are of a later version, and returns the items of the others.
func (l *lane) add(entries []redisstore.Entry, now time.Time) (items []*item) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range entries {
		if e.Newer {
			l.seen[e.StreamID] = struct{}{}
			if len(l.newer) < maxNewer {
				l.newer[e.StreamID] = struct{}{}
			}
			continue
		}
		if l.held[e.StreamID] != nil {
			continue
		}
		it := &item{entry: e, since: now}
		l.held[e.StreamID] = it
		l.bytes += it.bytes()
		items = append(items, it)
	}
	l.waiting[0] = append(l.waiting[0], items...)
	return items
}

// known reports whether a pending entry needs no look: it is in hand, or of a later version.
func (l *lane) known(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.newer[id]; ok {
		l.seen[id] = struct{}{}
		return true
	}
	return l.held[id] != nil
}

// passOver forgets the entries of a later version that the pass over all pending ones did not meet: a process of that
// version has them.
func (l *lane) passOver() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.newer {
		if _, ok := l.seen[id]; !ok {
			delete(l.newer, id)
		}
	}
	clear(l.seen)
}

// first returns up to n items that wait for a step, oldest first.
func (l *lane) first(step, n int) []*item {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.waiting[step]
	return slices.Clone(w[:min(n, len(w))])
}

// settle brings the first items of a step to where their fate sends them. It returns those that are not in hand any
// more, and whether one of them makes room that was missing.
func (l *lane) settle(step int, items []*item) (released []*item, room bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var again, on []*item
	for _, it := range items {
		switch {
		case it.fate == waits:
			again = append(again, it)
			continue
		case it.fate == passed && step+1 < len(l.waiting):
			on = append(on, it)
		default:
			delete(l.held, it.entry.StreamID)
			l.bytes -= it.bytes()
			released = append(released, it)
		}
		it.fate = waits
	}
	l.waiting[step] = append(again, l.waiting[step][len(items):]...)
	if len(on) > 0 {
		l.waiting[step+1] = append(l.waiting[step+1], on...)
	}
	if room = l.full && len(released) > 0; room {
		l.full = false
	}
	return released, room
}

// size is how many events are in hand, and their bytes.
func (l *lane) size() (events int, bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.held), l.bytes
}

// setFull has settle tell when there is room again.
func (l *lane) setFull() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.full = true
}

// olderThan returns the StreamIDs of what is in hand for so long.
func (l *lane) olderThan(age time.Duration, now time.Time) (ids []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, it := range l.held {
		if now.Sub(it.since) >= age {
			ids = append(ids, id)
		}
	}
	return ids
}

// hasNewer reports whether entries of a later version are pending.
func (l *lane) hasNewer() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.newer) > 0
}

// counts is how many events wait after the first step, and how many entries of a later version are pending.
func (l *lane) counts() (sent, newer int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.waiting[1:] {
		sent += len(w)
	}
	return sent, len(l.newer)
}
