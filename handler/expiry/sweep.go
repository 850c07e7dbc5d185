package expiry

import (
	"cmp"
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"userconnectivity/handler/redisstore"
)

const (
	// claimsTogether is how many partitions' sessions are claimed in one round trip, at most 200 of each: beats beside
	// a mass expiry wait for one of them, which is a few milliseconds.
	claimsTogether = 2
	// claimsAtOnce is how many of these are under way: while Redis works on one the next is prepared.
	claimsAtOnce = 3
	// turnsOfFull is how many partitions with a backlog have a turn in one round, which takes about 15 ms with them.
	turnsOfFull = 4
)

// plan is what the sweep knows of a partition.
type plan struct {
	// next is when the partition's next deadline passes, by the clock of this process; zero for none known.
	next time.Time
	// outbox is how many entries its outbox had.
	outbox int64
	// full is set while it waits in the backlog.
	full bool
}

// sweepLoop sweeps at each deadline, whenever it is woken, and each tick.
func (l *Listener) sweepLoop(ctx context.Context) {
	for ctx.Err() == nil {
		wait := time.NewTimer(l.sweep(ctx))
		select {
		case <-ctx.Done():
		case <-l.wake:
		case <-wait.C:
		}
		wait.Stop()
	}
}

// sweep is one round: it claims what is due, up to a script's limit in each partition, and returns how long to sleep. It
// looks at the partitions whose next deadline has passed or that has an expired lease, and every tick at all of them. A partition
// that has more waits for its next turn, which a few such partitions have in each round: so no backlog, however large,
// delays the claims of other partitions by more than a round.
func (l *Listener) sweep(ctx context.Context) time.Duration {
	partitions := l.toLookAt(time.Now())
	if len(partitions) == 0 {
		return l.wellSwept(ctx)
	}
	due, err := l.claimDue(ctx, partitions)
	l.watchdog.sweep.Add(1)
	now := time.Now()
	for _, d := range due {
		l.plan[d.Partition] = plan{outbox: d.Outbox}
		if !d.Next.IsZero() {
			// A deadline has passed once Redis is a millisecond beyond it.
			l.plan[d.Partition].next = now.Add(d.Next.Sub(d.Now) + time.Millisecond)
		}
		if d.Full() {
			l.plan[d.Partition].full = true
			l.backlog = append(l.backlog, d.Partition)
		}
		if d.Outbox > 0 || len(d.Members) > 0 {
			l.relay.wake(d.Partition)
		}
	}
	if err != nil {
		l.looked = time.Time{} // afterwards everything is looked at
		if l.errorIsNew(err) && ctx.Err() == nil {
			l.log.WarnContext(ctx, "the sweep could not read or claim; it tries again", "error", err)
		}
		if len(due) > 0 {
			return tick // the other partitions go on
		}
		return retryWait
	}
	return l.wellSwept(ctx)
}

// toLookAt returns the partitions that a sweep looks at now.
func (l *Listener) toLookAt(now time.Time) []int {
	turns := min(len(l.backlog), turnsOfFull)
	partitions := slices.Clone(l.backlog[:turns])
	l.backlog = slices.Delete(l.backlog, 0, turns)
	for _, p := range partitions {
		l.expired[p].Store(false)
	}
	all := now.Sub(l.looked) >= tick
	if all {
		l.looked = now
	}
	for p := range l.plan {
		if l.plan[p].full {
			continue // it has its turn now, or waits for it
		}
		next := l.plan[p].next
		if expired := l.expired[p].Swap(false); all || expired || !next.IsZero() && !next.After(now) {
			partitions = append(partitions, p)
		}
	}
	for _, p := range partitions[:turns] {
		l.plan[p].full = false
	}
	return partitions
}

// wellSwept records a sweep that succeeded and returns how long to sleep.
func (l *Listener) wellSwept(ctx context.Context) time.Duration {
	now := time.Now()
	wake := l.looked.Add(tick)
	var outbox int64
	for _, p := range l.plan {
		outbox += p.outbox
		if !p.next.IsZero() && p.next.Before(wake) {
			wake = p.next
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state.SweepError != "" {
		l.log.InfoContext(ctx, "the sweep works again", "down_ms", now.Sub(l.state.LastSweep).Milliseconds())
	}
	l.state.Sweeps++
	l.state.LastSweep, l.state.Outbox, l.state.SweepError = now, outbox, ""
	if len(l.backlog) > 0 {
		return 0
	}
	return max(wake.Sub(now), 0)
}

// claimDue is one round: what is due in the partitions, up to a script's limit each, is claimed. With an error it
// returns the partitions that did answer: on a cluster one may be on the move, or its server away.
func (l *Listener) claimDue(ctx context.Context, partitions []int) ([]redisstore.Due, error) {
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	due, fault := l.store.Due(ctx, partitions)
	var claims errgroup.Group // not bound to the first fault
	claims.SetLimit(claimsAtOnce)
	some := slices.DeleteFunc(slices.Clone(due), func(d redisstore.Due) bool { return len(d.Members) == 0 })
	for together := range slices.Chunk(some, claimsTogether) {
		claims.Go(func() (err error) {
			defer func() {
				// Outside of this goroutine nobody could recover it, and it would end the process.
				if cause := recover(); cause != nil {
					err = fmt.Errorf("claim panicked: %v\n%s", cause, debug.Stack())
				}
			}()
			done, err := l.store.Claim(ctx, together)
			l.count(done)
			return err
		})
	}
	fault = cmp.Or(fault, claims.Wait())
	return due, fault
}

func (l *Listener) count(c redisstore.Claims) {
	if len(c.Late) == 0 && c.Quarantined == 0 {
		return
	}
	var latest time.Duration
	for _, late := range c.Late {
		latest = max(latest, late)
		l.lateness.Observe(late.Seconds())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Claimed += int64(len(c.Late))
	l.state.Lost += int64(c.Lost)
	l.state.Quarantined += int64(c.Quarantined)
	l.state.Lateness = latest
}

// errorIsNew records the fault and reports whether it is the first of an outage: one line tells of it.
func (l *Listener) errorIsNew(err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	isNew := l.state.SweepError == ""
	l.state.SweepError = err.Error()
	return isNew
}
