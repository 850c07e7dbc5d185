// Package expiry is the dedicated listener: it takes the sessions whose deadline has passed (the sweep), and
// brings their events from the outbox to the queue (the relay). Any number of listeners may run at once: the
// claim in Redis decides who takes a session, the consumer group who relays an event.
//
// In the order of an event: notifications.go (what wakes the sweep), sweep.go (claims), relay.go (the steps of each
// partition in turn), lane.go (the events between two steps), steps.go (send, log, acknowledge). Beside it: foreign.go
// (keys of other applications that expire), report.go (how all of it is), watchdog.go (begins anew what hangs).
package expiry

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"userconnectivity/handler/redisconn"
	"userconnectivity/handler/redisstore"
)

const (
	// tick is how long the sweep sleeps at most. It bounds what nothing announces: entries that other
	// processes write to the outbox, and deadlines moved forward by a leave.
	tick = 40 * time.Millisecond
	// sweepTimeout bounds one round trip of the sweep.
	sweepTimeout = 5 * time.Second
	// retryWait is how long a failed sweep or a lost subscription waits.
	retryWait = 100 * time.Millisecond
	// settingsCheck is how often notify-keyspace-events is looked at: a server that cycles may lose it.
	settingsCheck = 15 * time.Second
	// settingsAsks is how often, a second apart, the settings are asked for after the subscription stands again, until
	// they are known: the circuit breaker may still be open.
	settingsAsks = 5
	// reportEvery is how often the listener logs how it is.
	reportEvery = time.Minute
)

// Listener wakes for each deadline and for each expired event, and sweeps. The deadline index is the truth;
// an expired event only wakes it (design D1).
type Listener struct {
	client  *redisconn.Client
	store   *redisstore.Store
	relay   *Relay
	log     *slog.Logger
	wake    chan struct{}
	expired []atomic.Bool // by partition: an expired event of one of its leases came in
	asks    atomic.Int32  // how often the settings of Redis are still to be asked for out of turn
	foreign chan foreignKey
	plan    []plan    // by partition; only the sweep uses it
	backlog []int     // partitions that had more due than was claimed at once, in the order of their turns
	looked  time.Time // when the sweep last looked at every partition
	// lateness is that of every claim.
	lateness prometheus.Histogram

	watchdog watchdog

	mu    sync.Mutex
	state State
}

// NewListener returns a Listener; Run starts it.
func NewListener(c *redisconn.Client, s *redisstore.Store, r *Relay, log *slog.Logger) *Listener {
	l := &Listener{
		client: c, store: s, relay: r, log: log, wake: make(chan struct{}, 1), foreign: make(chan foreignKey, foreignWaiting),
		expired: make([]atomic.Bool, s.Partitions()), plan: make([]plan, s.Partitions()),
		lateness: newLateness(),
	}
	l.state.Notifications = redisconn.NotificationsUnknown
	l.watchdog.made, l.watchdog.lookEvery = time.Now(), lookEvery
	return l
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

// guard runs a loop, and runs it again after a panic: a fault in one event must not end the listener.
func (l *Listener) guard(ctx context.Context, name string, loop func(context.Context)) {
	for ctx.Err() == nil {
		func() {
			defer func() {
				if p := recover(); p != nil {
					l.log.ErrorContext(ctx, "listener loop panicked; it goes on", "loop", name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				}
			}()
			loop(ctx)
		}()
		sleep(ctx, retryWait)
	}
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
