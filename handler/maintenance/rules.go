package maintenance

import (
	"slices"
	"time"
)

// The times of design D9.
const (
	// early is how long before an announced start the breaker opens.
	early = 100 * time.Millisecond
	// hold is how long after its start a maintenance keeps the breaker open when no connection is lost.
	hold = 10 * time.Second
	// longest is how long the breaker may be open while PING answers.
	longest = 60 * time.Second
	// apart is how far the clocks, and the messages about one maintenance, may be from each other.
	apart = 5 * time.Second
	// again is how long after a maintenance began a further Start is taken for the same one, sent again; and how
	// long the breaker leaves maintenance alone after it had to be closed for being open too long.
	again = 60 * time.Second
	// maxPending bounds the announced starts that are waited for.
	maxPending = 16
)

// minRetry is the least time after which a caller is asked to come back.
const minRetry = time.Second

// When plain failures open the breaker.
const (
	// tripAfter is the number of failures in a row, without a success between them.
	tripAfter = 3
	// burst is the time in which failures count as one: a connection that breaks fails everything on it at once.
	burst = 20 * time.Millisecond
)

// rules decide whether the breaker of one node is open. They have no clock: every method is told the time, and
// must be followed by settle. The zero value is a closed breaker.
//
//	closed --> open      100 ms before an announced start; at a Start; a failed dial; a failure, and then a PING
//	                     that does not answer, or not in time; tripAfter failures in a row
//	open   --> closed    for a maintenance, the first of:
//	                       its end was announced, and then one PING answered
//	                       a connection was lost since it began, and then two PINGs in a row answered
//	                       10 s after its start no connection was lost
//	                     for failures: one PING answered, two while a maintenance is on
//	                     in any case: open for 60 s, and the last PING answered
//
// A PING that does not answer counts as a lost connection.
type rules struct {
	open  bool
	since time.Time // when open last changed

	failing  bool // plain failures keep the breaker open
	failures int  // in a row
	counted  time.Time
	suspect  bool // a PING is wanted though the breaker is closed: something failed

	last      maintenance
	pending   []time.Time // announced starts, soonest first
	scheduled time.Time   // the rough start of what is scheduled, zero for none; it opens nothing
	lostAt    time.Time   // when a connection was last lost
	muted     time.Time   // a maintenance that starts before this opens nothing

	countFrom time.Time // PINGs sent earlier do not count
	answered  int       // PINGs in a row that answered and count
	alive     bool      // the last PING answered
}

// maintenance is one that began.
type maintenance struct {
	start   time.Time // zero while there was none
	holding bool      // it keeps the breaker open
	lost    bool      // a connection was lost since it began
	ended   bool      // its end was announced
}

// on reports whether a maintenance is under way, as far as can be told.
func (r *rules) on(now time.Time) bool {
	return !r.last.start.IsZero() && !r.last.ended && now.Sub(r.last.start) < again
}

// notify takes a message in. Only known types change anything.
func (r *rules) notify(now time.Time, e Event) {
	switch e.Type {
	case Scheduled:
		if !e.IsReplica {
			r.scheduled = e.Start
		}
	case Starting, Moving, Migrating, FailingOver:
		if !e.IsReplica && !e.Start.IsZero() {
			r.announce(now, e.Start)
		}
	case Start:
		if !e.IsReplica && (e.Start.IsZero() || now.Sub(e.Start) < hold) {
			r.startNow(now)
		}
	case FailoverComplete, Ended, Migrated, FailedOver:
		r.end(now, e.Start)
	}
}

// announce waits for a start. One that is long past, or of a maintenance that began already, changes nothing:
// the message came late, or again.
func (r *rules) announce(now, start time.Time) {
	r.scheduled = time.Time{}
	if now.Sub(start) >= hold || r.began(start) {
		return
	}
	if i := slices.IndexFunc(r.pending, func(p time.Time) bool { return p.Sub(start).Abs() <= apart }); i >= 0 {
		r.pending = slices.Delete(r.pending, i, i+1) // the newest message about a start counts
	}
	i, _ := slices.BinarySearchFunc(r.pending, start, time.Time.Compare)
	r.pending = slices.Insert(r.pending, i, start)
	r.pending = r.pending[:min(len(r.pending), maxPending)]
}

// began reports whether a start is that of the last maintenance, or before it while it holds the breaker.
func (r *rules) began(start time.Time) bool {
	return !r.last.start.IsZero() &&
		(start.Sub(r.last.start).Abs() <= apart || r.last.holding && start.Before(r.last.start))
}

// startNow begins a maintenance, unless the last one began a short while ago: then this is about the same.
func (r *rules) startNow(now time.Time) {
	if !r.last.start.IsZero() && now.Sub(r.last.start).Abs() < again {
		return
	}
	start := now
	for len(r.pending) > 0 && r.pending[0].Sub(now) <= apart {
		if r.pending[0].After(start) {
			start = r.pending[0] // imminent: the announced time is the exact one
		}
		r.pending = r.pending[1:]
	}
	r.begin(now, start)
}

// begin opens the breaker for a maintenance.
func (r *rules) begin(now, start time.Time) {
	if now.Sub(start) >= hold || r.began(start) || start.Before(r.muted) {
		return
	}
	r.scheduled = time.Time{}
	lost := !r.lostAt.IsZero() && !r.lostAt.Before(start.Add(-early)) && !r.lostAt.After(now)
	r.last = maintenance{start: start, holding: true, lost: lost}
	r.recount(now)
}

// end notes that a maintenance is over; at is when, if the message says. An end of an earlier maintenance than
// the last changes nothing.
func (r *rules) end(now, at time.Time) {
	m := &r.last
	if m.start.IsZero() || m.ended || !at.IsZero() && m.start.Sub(at) > apart {
		return
	}
	m.ended = true
	r.recount(now)
}

// lost notes that an established connection broke.
func (r *rules) lost(now time.Time) {
	r.lostAt = now
	if r.last.holding && !r.last.lost {
		r.last.lost = true
		r.recount(now)
	}
}

// recount makes only PINGs count that are sent from now on.
func (r *rules) recount(now time.Time) { r.answered, r.countFrom = 0, now }

// failed counts a command that failed on its connection; a dial that failed opens at once.
func (r *rules) failed(now time.Time, dial bool) {
	if r.open {
		return
	}
	if r.failures == 0 || now.Sub(r.counted) >= burst || now.Before(r.counted) {
		r.failures++
		r.counted, r.suspect = now, true
	}
	if dial || r.failures >= tripAfter {
		r.failing = true
		r.recount(now)
	}
}

func (r *rules) succeeded() { r.failures, r.suspect = 0, false }

// pinged takes the outcome of a PING in.
func (r *rules) pinged(now, sent time.Time, answered bool) {
	r.alive, r.suspect = answered, false
	switch {
	case !answered:
		r.lost(now)
		r.answered = 0
		if !r.open {
			r.failing = true
			r.recount(now)
		}
	case !sent.Before(r.countFrom):
		r.answered++
	}
}

// overdue notes that a PING has waited long for its answer. It may still come, and counts then.
func (r *rules) overdue() {
	if !r.open {
		r.failing, r.answered = true, 0
	}
}

// settle begins what is due and closes what is over. It reports whether the breaker opened or closed.
func (r *rules) settle(now time.Time) (changed bool) {
	for len(r.pending) > 0 && r.pending[0].Add(-early).Compare(now) <= 0 {
		start := r.pending[0]
		r.pending = r.pending[1:]
		r.begin(now, start)
	}
	m := &r.last
	if m.ended && r.answered >= 1 || m.lost && r.answered >= 2 || !m.lost && now.Sub(m.start) >= hold {
		m.holding = false
	}
	if r.answered >= 2 || r.answered == 1 && !r.on(now) {
		r.failing = false
	}
	if r.open && r.alive && now.Sub(r.since) >= longest {
		m.holding, r.failing, r.muted = false, false, now.Add(again)
	}
	open := m.holding || r.failing
	if changed = open != r.open; changed {
		r.open, r.since, r.failures, r.suspect, r.alive = open, now, 0, false, false
	}
	return changed
}

// wantsPing reports whether a PING should be sent.
func (r *rules) wantsPing() bool { return r.open || r.suspect }

// next returns when settle has something to do even if nothing happens; zero for never.
func (r *rules) next() (t time.Time) {
	soonest := func(other time.Time) {
		if t.IsZero() || other.Before(t) {
			t = other
		}
	}
	if len(r.pending) > 0 {
		soonest(r.pending[0].Add(-early))
	}
	if r.last.holding && !r.last.lost {
		soonest(r.last.start.Add(hold))
	}
	if r.open && r.alive {
		soonest(r.since.Add(longest))
	}
	return t
}

// retryAt is when a caller may expect the breaker to be closed.
func (r *rules) retryAt(now time.Time) time.Time {
	if m := r.last; m.holding && !m.lost && !m.ended {
		return m.start.Add(hold)
	}
	return now.Add(minRetry)
}
