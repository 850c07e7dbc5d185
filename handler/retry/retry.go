// Package retry repeats what failed for a passing reason, within the time of its caller.
//
// The Functions host gives a batch that failed back at once, and the broker counts that as a delivery. So a batch that
// meets a passing fault must wait by itself, or all its deliveries are used up in less than a second.
package retry

import (
	"context"
	"math/rand/v2"
	"time"

	"userconnectivity/handler/fault"
)

// Backoff is how long to wait between tries: First after the first fault, twice as long after each further one, at
// most Most. Each pause is a half to the whole of that, by chance, so that instances do not come all at once.
type Backoff struct{ First, Most time.Duration }

// awayPoll is how often it is looked whether what is known to be away has come back.
const awayPoll = 10 * time.Millisecond

// Do calls try until it returns nil or an error that does not pass (fault.Passing), or until ctx ends, and returns
// its last error. away may be nil. While it reports true no try is made, and the first one follows as soon as it
// reports false: what was away is back then. An error that only says that ctx has ended does not replace the fault of
// the try before.
func (b Backoff) Do(ctx context.Context, away func() bool, try func() error) error {
	var last error
	for pause := b.First; ; pause = min(2*pause, b.Most) {
		err := try()
		if err == nil || !fault.Passing(err) {
			return err
		}
		if ctx.Err() != nil {
			if last != nil {
				err = last
			}
			return err
		}
		last = err
		if !wait(ctx, pause/2+rand.N(pause/2+1), away) {
			return last
		}
	}
}

// wait waits for d, or until what is away is back. It reports false when ctx ended before.
func wait(ctx context.Context, d time.Duration, away func() bool) bool {
	if away == nil || !away() {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			return true
		case <-ctx.Done():
			return false
		}
	}
	poll := time.NewTicker(awayPoll)
	defer poll.Stop()
	for away() {
		select {
		case <-poll.C:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// Limit ends a context early when a part of a batch fails for itself. While nothing of a batch succeeds, its sinks are
// away and all that waits behind it could not be done either. But where others succeed, the rest holds them up: the batch
// fails sooner then, and what is behind it comes along with the next delivery.
type Limit struct {
	cancel context.CancelFunc
	timer  *time.Timer
}

// maxPartial is how long a batch is held once a part of it is done.
const maxPartial = 15 * time.Second

// WithLimit returns a context that Partly ends.
func WithLimit(ctx context.Context) (context.Context, *Limit) {
	ctx, cancel := context.WithCancel(ctx)
	return ctx, &Limit{cancel: cancel}
}

// Partly tells that a part of the batch is done: the context ends 15 s after the first call.
func (l *Limit) Partly() {
	if l.timer == nil {
		l.timer = time.AfterFunc(maxPartial, l.cancel)
	}
}

// End releases what the limit holds.
func (l *Limit) End() {
	if l.timer != nil {
		l.timer.Stop()
	}
	l.cancel()
}

// Reserve returns a context that ends a little before ctx: a tenth of the time that ctx has left, at most 10 s. What is
// left is for telling of what failed. Without a deadline it is ctx itself.
func Reserve(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return ctx, func() {}
	}
	return context.WithDeadline(ctx, deadline.Add(-min(time.Until(deadline)/10, 10*time.Second)))
}
