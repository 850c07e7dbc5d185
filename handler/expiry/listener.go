// Package expiry is the dedicated listener: it takes the sessions whose deadline has passed (the sweep), and
// brings their events from the outbox to the queue (the relay). Any number of listeners may run at once: the
// claim in Redis decides who takes a session, the consumer group who relays an event.
package expiry

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"userconnectivity/handler/redisconn"
	"userconnectivity/handler/redisstore"
)

const (
	// tick is how long the sweep sleeps at most. It bounds what no doorbell announces: entries that other
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
// an expired event is a doorbell only (design D1).
type Listener struct {
	client  *redisconn.Client
	store   *redisstore.Store
	relay   *Relay
	log     *slog.Logger
	bell    chan struct{}
	rung    []atomic.Bool // by partition: an expired event of one of its leases came in
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

// plan is what the sweep knows of a partition.
type plan struct {
	// next is when the partition's next deadline passes, by the clock of this process; zero for none known.
	next time.Time
	// outbox is how many entries its outbox had.
	outbox int64
	// full is set while it waits in the backlog.
	full bool
}

// State is what the listener did and how it is.
type State struct {
	Running bool
	// Started is when the loop began, LastSweep when a sweep last succeeded; zero when none did.
	Started, LastSweep time.Time
	// Sweeps, Claimed, Lost and Quarantined count since the process began.
	Sweeps, Claimed, Lost, Quarantined int64
	// Lateness is that of the latest claim in the last sweep that had any.
	Lateness time.Duration
	// Rings counts the expired events of our leases that came in, Foreign those of other keys.
	Rings   int64
	Foreign Foreign
	// Outbox is how many events wait to be relayed, by the last sweep; Oldest how long the oldest has waited.
	Outbox int64
	Oldest time.Duration
	// Notifications says whether Redis publishes expired events; NotificationsDetail why it does not.
	Notifications       redisconn.Notifications
	NotificationsDetail string
	// SweepError and RelayError are the last faults, "" once it went well again.
	SweepError, RelayError string
	// Relayed counts the events that were sent, logged and acknowledged.
	Relayed int64
	// Relay is what else the relay did and how it is.
	Relay RelayState
}

// Lag is how long due sessions may have been waiting: the time since the last good sweep beyond its tick.
func (s State) Lag(now time.Time) time.Duration {
	since := s.LastSweep
	if since.IsZero() {
		since = s.Started
	}
	return max(now.Sub(since)-2*tick, 0)
}

// NewListener returns a Listener; Run starts it.
func NewListener(c *redisconn.Client, s *redisstore.Store, r *Relay, log *slog.Logger) *Listener {
	l := &Listener{
		client: c, store: s, relay: r, log: log, bell: make(chan struct{}, 1), foreign: make(chan foreignKey, foreignWaiting),
		rung: make([]atomic.Bool, s.Partitions()), plan: make([]plan, s.Partitions()),
		lateness: newLateness(),
	}
	l.state.Notifications = redisconn.NotificationsUnknown
	l.watchdog.made, l.watchdog.lookEvery = time.Now(), lookEvery
	return l
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

// sweepLoop sweeps at each deadline, each ring and each tick.
func (l *Listener) sweepLoop(ctx context.Context) {
	for ctx.Err() == nil {
		wait := time.NewTimer(l.sweep(ctx))
		select {
		case <-ctx.Done():
		case <-l.bell:
		case <-wait.C:
		}
		wait.Stop()
	}
}

// sweep is one round: it claims what is due, up to a script's limit in each partition, and returns how long to sleep. It
// looks at the partitions whose next deadline has passed or whose bell rang, and every tick at all of them. A partition
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
			l.relay.ring(d.Partition)
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
		l.rung[p].Store(false)
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
		if rung := l.rung[p].Swap(false); all || rung || !next.IsZero() && !next.After(now) {
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

const (
	// claimsTogether is how many partitions' sessions are claimed in one round trip, at most 200 of each: beats beside
	// a mass expiry wait for one of them, which is a few milliseconds.
	claimsTogether = 2
	// claimsAtOnce is how many of these are under way: while Redis works on one the next is prepared.
	claimsAtOnce = 3
	// turnsOfFull is how many partitions with a backlog have a turn in one round, which takes about 15 ms with them.
	turnsOfFull = 4
)

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

// tell logs what was claimed since the last call, and every reportEvery how the listener is: the alerts read
// that line (infra/modules/alerts.bicep).
func (l *Listener) tell(ctx context.Context, before State, report bool) State {
	s := l.State()
	if claimed, junk := s.Claimed-before.Claimed, s.Quarantined-before.Quarantined; claimed > 0 || junk > 0 {
		l.log.InfoContext(ctx, "claimed", "sessions", claimed, "latest_ms", s.Lateness.Milliseconds(), "lost", s.Lost-before.Lost, "quarantined", junk)
	}
	if claimed, dropped := s.Foreign.Claimed-before.Foreign.Claimed, s.Foreign.Dropped-before.Foreign.Dropped; claimed > 0 || dropped > 0 {
		l.log.InfoContext(ctx, "foreign keys expired", "claimed", claimed, "dropped", dropped, "error", s.Foreign.Error)
	}
	if report {
		l.log.InfoContext(ctx, "listener report", "lagMs", s.Lag(time.Now()).Milliseconds(), "outboxDepth", s.Outbox,
			"oldestOutboxMs", s.Oldest.Milliseconds(), "claimed", s.Claimed, "relayed", s.Relayed, "notifications", string(s.Notifications))
	}
	return s
}

// errorIsNew records the fault and reports whether it is the first of an outage: one line tells of it.
func (l *Listener) errorIsNew(err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	isNew := l.state.SweepError == ""
	l.state.SweepError = err.Error()
	return isNew
}

// Ring wakes the sweep for the partition of a key that expired. Keys that are no lease of ours ring nothing; those that
// match a route become events.
func (l *Listener) Ring(key string) {
	p, ok := l.store.LeasePartition(key)
	if !ok {
		l.ringForeign(key)
		return
	}
	l.mu.Lock()
	l.state.Rings++
	l.mu.Unlock()
	l.rung[p].Store(true)
	l.wakeUp()
}

// RingAll wakes the sweep for every partition. Call it whenever the subscription to expired events stands
// (again): what expired before rang no bell.
func (l *Listener) RingAll() {
	l.asks.Store(settingsAsks) // what stands again may be another server, and a fault is over
	for p := range l.rung {
		l.rung[p].Store(true)
	}
	l.wakeUp()
}

func (l *Listener) wakeUp() {
	select {
	case l.bell <- struct{}{}:
	default: // one ring waits already
	}
}

// settingsLoop keeps notify-keyspace-events on where the server allows it, measures the oldest entry, and logs.
func (l *Listener) settingsLoop(ctx context.Context) {
	var checked, reported time.Time
	told := l.State()
	for ctx.Err() == nil {
		now := time.Now()
		if asks := l.asks.Load(); asks > 0 || now.Sub(checked) >= settingsCheck {
			checked = now
			left := max(asks-1, 0)
			if l.checkNotifications(ctx) != redisconn.NotificationsUnknown {
				left = 0
			}
			l.asks.CompareAndSwap(asks, left)
		}
		l.measureOutbox(ctx)
		report := now.Sub(reported) >= reportEvery
		if report {
			reported = now
		}
		told = l.tell(ctx, told, report)
		l.watchdog.settings.Add(1)
		sleep(ctx, time.Second)
	}
}

// checkNotifications asks whether Redis publishes expired events, and remembers and returns the answer.
func (l *Listener) checkNotifications(ctx context.Context) redisconn.Notifications {
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	state, err := l.client.EnsureNotifications(ctx)
	detail := ""
	if state != redisconn.NotificationsOn {
		detail = "Redis does not publish expired events, or does not say: the sweep finds every deadline without them. " +
			"To switch them on, set notify-keyspace-events to Ex (Azure Managed Redis: property notifyKeyspaceEvents of the database)"
		if l.relay.to.Routes != "" {
			detail += ". The keys of EXPIRATION_ROUTES are not reported without them"
		}
	}
	if err != nil {
		detail += ". " + err.Error()
	}
	l.mu.Lock()
	changed := l.state.Notifications != state || l.state.NotificationsDetail == "" && detail != ""
	l.state.Notifications, l.state.NotificationsDetail = state, detail
	l.mu.Unlock()
	if changed {
		l.log.InfoContext(ctx, "expired events", "notifications", string(state), "detail", detail)
	}
	return state
}

func (l *Listener) measureOutbox(ctx context.Context) {
	l.mu.Lock()
	empty := l.state.Outbox == 0
	if empty {
		l.state.Oldest = 0
	}
	l.mu.Unlock()
	if empty {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	if oldest, err := l.relay.outbox.Lag(ctx, time.Now()); err == nil {
		l.mu.Lock()
		l.state.Oldest = oldest
		l.mu.Unlock()
	}
}

// State returns what the listener did and how it is.
func (l *Listener) State() State {
	l.mu.Lock()
	s := l.state
	l.mu.Unlock()
	s.Relay = l.relay.State()
	s.Relayed, s.RelayError = s.Relay.Relayed, s.Relay.Fault
	return s
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
