package maintenance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// probeEvery is the time between two PINGs while the breaker is open, less up to a quarter by chance, so that
	// many processes do not knock in step.
	probeEvery = 100 * time.Millisecond
	// probeTimeout is when a PING without an answer opens the breaker. It is not given up then: it may have to open a
	// connection, and its answer counts whenever it comes. probeLimit bounds it in any case.
	probeTimeout = 750 * time.Millisecond
	probeLimit   = time.Minute
	// maxReason bounds the text of an error in a reason, in bytes.
	maxReason = 200
)

// Status says whether commands may be sent.
type Status string

// The two statuses of a breaker.
const (
	Closed Status = "closed" // commands are sent
	Open   Status = "open"   // commands fail at once
)

// Config is what a Breaker works with.
type Config struct {
	// Ping asks the server for a PING, past the breaker and past any queue of commands, over a new connection where
	// there is none. It has its own limits, for how long a server may take, and must return soon after its context
	// ended. Only one runs at a time, while the breaker is open and after a failure.
	Ping func(context.Context) error
	// Broke is called each time that failures have opened the breaker: what still waits for the server may be given
	// up. It must be quick. It may be nil.
	Broke func()
	// Log gets one line for each opening and closing and for each message, and none for commands.
	Log *slog.Logger
}

// Breaker is the circuit breaker of one Redis server. It is safe for concurrent use; Run must be running, because
// it alone closes what was opened. Maintenance is advice: nothing may depend on a message to come, or to be true.
type Breaker struct {
	ping    func(context.Context) error
	broke   func()
	log     *slog.Logger
	journal *journal
	wake    chan struct{}

	// What the rules say, for callers that do not wait: the time in Unix nanoseconds at which to try again, 0
	// while closed; and whether there are failures that a success would end.
	retryAt atomic.Int64
	failing atomic.Bool

	mu      sync.Mutex
	rules   rules
	stopped bool
	failure error  // the last one
	reason  string // why it opened last
	opened  int64
}

// New returns a closed Breaker. It does no I/O.
func New(cfg Config) *Breaker {
	return &Breaker{ping: cfg.Ping, broke: cfg.Broke, log: cfg.Log, journal: newJournal(cfg.Log), wake: make(chan struct{}, 1)}
}

// Open reports whether commands must not be sent now, and when the caller may try again (at least a second). It
// takes no lock.
func (b *Breaker) Open() (retryAfter time.Duration, open bool) {
	at := b.retryAt.Load()
	if at == 0 {
		return 0, false
	}
	return max(time.Until(time.Unix(0, at)), minRetry), true
}

// Notify takes a maintenance message in. A message of an unknown type is recorded and told to subscribers, and
// changes nothing.
func (b *Breaker) Notify(e Event) {
	b.journal.write(e)
	b.take(e)
}

// take is Notify without the log line.
func (b *Breaker) take(e Event) {
	b.journal.record(e)
	if !e.Valid() {
		return
	}
	b.change(func(now time.Time) { b.rules.notify(now, e) })
}

// ConnectionLost says that an established connection broke. A dial that failed is a Failed.
func (b *Breaker) ConnectionLost() {
	b.change(func(now time.Time) { b.rules.lost(now) })
}

// Failed says that a command failed on its connection: the dial failed, the connection broke, no reply came in
// time, or the server is not ready to serve (LOADING, MASTERDOWN). An error that the server answered for the
// command itself is a success here. A caller that gave up says nothing about the server: context.Canceled is not
// counted.
func (b *Breaker) Failed(err error) {
	if err == nil || errors.Is(err, context.Canceled) {
		return
	}
	dial, timeout := kindOf(err)
	b.change(func(now time.Time) {
		b.failure = err
		if !timeout && !dial {
			b.rules.lost(now)
		}
		b.rules.failed(now, dial)
	})
}

// kindOf tells a failed dial and a reply that did not come in time from the rest.
func kindOf(err error) (dial, timeout bool) {
	var op *net.OpError
	var slow interface{ Timeout() bool }
	return errors.As(err, &op) && op.Op == "dial", errors.As(err, &slow) && slow.Timeout()
}

// Succeeded says that the server answered a command. Without failures before it takes no lock.
func (b *Breaker) Succeeded() {
	if b.failing.Load() {
		b.change(func(time.Time) { b.rules.succeeded() })
	}
}

// change applies one change to the rules and makes what follows from it known.
func (b *Breaker) change(apply func(now time.Time)) {
	b.mu.Lock()
	now := time.Now()
	wasSince, next, wanted := b.rules.since, b.rules.next(), b.rules.wantsPing()
	apply(now)
	changed := b.rules.settle(now) && !b.stopped
	if b.stopped {
		b.rules = rules{}
	}
	open, retryAt := b.rules.open, int64(0)
	if open {
		retryAt = b.rules.retryAt(now).UnixNano()
	}
	if changed && open {
		b.opened++
		b.reason = b.because()
	}
	reason, broke := b.reason, b.rules.failing
	b.retryAt.Store(retryAt)
	b.failing.Store(b.rules.failures > 0)
	wake := changed || !next.Equal(b.rules.next()) || wanted != b.rules.wantsPing()
	b.mu.Unlock()

	if wake {
		select {
		case b.wake <- struct{}{}:
		default:
		}
	}
	switch {
	case changed && open:
		b.log.Warn("the circuit breaker of Redis opened", "reason", reason)
		if broke && b.broke != nil {
			b.broke()
		}
	case changed:
		b.log.Info("the circuit breaker of Redis closed", "reason", reason, "open_for", now.Sub(wasSince))
	}
}

// because says why the breaker is open.
func (b *Breaker) because() string {
	if b.rules.failing {
		return "failures: " + bounded(b.failure.Error(), maxReason)
	}
	return "maintenance that starts at " + b.rules.last.start.UTC().Format(time.RFC3339)
}

// probe is the outcome of one PING.
type probe struct {
	sent time.Time
	err  error
}

// Run keeps the times, and asks for PINGs while the breaker is open, until ctx ends. Then the breaker is closed
// for good. It waits for the PING and the subscriber that are under way.
func (b *Breaker) Run(ctx context.Context) {
	var delivery sync.WaitGroup
	delivery.Go(func() { b.journal.deliver(ctx) })
	defer delivery.Wait()
	b.watch(ctx)
	b.change(func(time.Time) { b.stopped = true })
}

func (b *Breaker) watch(ctx context.Context) {
	probes := make(chan probe, 1)
	probing := false
	var nextProbe, overdue time.Time // overdue is when the PING under way should have been answered, zero once that is known
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		b.change(func(now time.Time) { // what is due by the clock
			if !overdue.IsZero() && !now.Before(overdue) {
				overdue = time.Time{}
				b.rules.overdue()
			}
		})
		b.mu.Lock()
		wanted, next := b.rules.wantsPing(), b.rules.next()
		b.mu.Unlock()
		now := time.Now()
		switch {
		case !wanted || probing:
		case now.Before(nextProbe):
			if next.IsZero() || nextProbe.Before(next) {
				next = nextProbe
			}
		default:
			probing, nextProbe, overdue = true, now.Add(probeEvery-rand.N(probeEvery/4)), now.Add(probeTimeout)
			go func() { probes <- b.probe(ctx, now) }()
		}
		if !overdue.IsZero() && (next.IsZero() || overdue.Before(next)) {
			next = overdue
		}
		var due <-chan time.Time
		if !next.IsZero() {
			timer.Reset(time.Until(next))
			due = timer.C
		}
		select {
		case <-ctx.Done():
			if probing {
				<-probes
			}
			return
		case <-b.wake:
		case <-due:
		case p := <-probes:
			probing, overdue = false, time.Time{}
			if ctx.Err() == nil { // else the PING may have failed for that alone
				b.change(func(now time.Time) {
					if p.err != nil {
						b.failure = p.err
					}
					b.rules.pinged(now, p.sent, p.err == nil)
				})
			}
		}
	}
}

// probe asks for one PING.
func (b *Breaker) probe(ctx context.Context, now time.Time) (p probe) {
	p.sent = now
	defer func() {
		if v := recover(); v != nil {
			p.err = fmt.Errorf("ping panicked: %v", v)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	p.err = b.ping(ctx)
	return p
}

// Subscribe has call called with every message from now on, in order, by one goroutine of Run. A call that is slow
// or panics holds up other subscribers, never the breaker; when 256 messages wait, further ones are dropped and
// counted. After cancel no further call begins, except one that is beginning at the same moment.
func (b *Breaker) Subscribe(call func(Event)) (cancel func()) { return b.journal.subscribe(call) }

// State is what a breaker did and how it is.
type State struct {
	Status Status
	// Since is when the status began, zero for a breaker that was never open. Reason is why it is open, or was
	// the last time.
	Since  time.Time
	Reason string
	// Opened counts the openings.
	Opened int64
	// Failures is how many commands failed in a row.
	Failures int
	// Scheduled is the rough start of a maintenance that was scheduled, Next the announced start of the next one;
	// zero for none.
	Scheduled, Next time.Time
	// Events are the last messages, newest first, at most 20; Counts how many came of each type.
	Events []Event
	Counts map[Type]int64
	// Dropped counts the messages that slow subscribers missed.
	Dropped int64
	// Nodes are the breakers of a Set by their nodes, nil for a single server.
	Nodes map[string]State
}

// State returns how the breaker is.
func (b *Breaker) State() State {
	var s State
	s.Events, s.Counts, s.Dropped = b.journal.last()
	b.mu.Lock()
	defer b.mu.Unlock()
	s.Status = Closed
	if b.rules.open {
		s.Status = Open
	}
	s.Since, s.Reason, s.Opened = b.rules.since, b.reason, b.opened
	s.Failures, s.Scheduled = b.rules.failures, b.rules.scheduled
	if len(b.rules.pending) > 0 {
		s.Next = b.rules.pending[0]
	}
	return s
}
