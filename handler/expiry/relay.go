package expiry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/queue"
	"userconnectivity/handler/redisstore"
)

// sender puts messages on a queue: all of them, or it returns an error. Sending the same ids again is harmless.
type sender interface {
	Send(ctx context.Context, queue string, msgs []queue.Message) error
}

// appender writes to the event log.
type appender interface {
	Write(ctx context.Context, updates []eventlog.Update) error
}

const (
	// relayBatch is how many events are sent and logged at once.
	relayBatch = 500
	// relayWorkers is how many partitions are relayed at the same time.
	relayWorkers = 4
	// relayTimeout bounds reading a batch, and bringing one to a queue: send, log, acknowledge.
	relayTimeout = 30 * time.Second
	// routeTimeout bounds a send to the queue of a route, and routeRest is how long one that failed is left alone: the
	// transitions of users wait behind it no longer.
	routeTimeout = 5 * time.Second
	routeRest    = 5 * time.Second
	// routeMemory is how long a failed send counts as the state of its queue: what waits is tried again sooner.
	routeMemory = 30 * time.Second
	// takeOverIdle is how long an entry may stay unacknowledged before another relay takes it.
	takeOverIdle = 5 * time.Second
	// takeOverEvery is how often such entries are looked for.
	takeOverEvery = 2 * time.Second
	// maxBackoff bounds the wait after faults in a row.
	maxBackoff = 5 * time.Second
)

// Relay brings events from the outbox to the queue and the event log: send, then log, then acknowledge. An
// event is acknowledged only after both have it; until then it stays in Redis (design D3).
type Relay struct {
	outbox *redisstore.Outbox
	sender sender
	events appender
	codec  queue.Codec
	to     queue.Destinations
	log    *slog.Logger

	wake    chan struct{}
	waiting []atomic.Bool // by partition: something may be in its outbox
	batches []*batch      // by partition: read and not yet acknowledged; each is used by one goroutine at a time

	mu      sync.Mutex
	relayed int64
	fault   string
	failing map[string]failure // queues of routes
}

// failure is how the last send to the queue of a route failed.
type failure struct {
	at    time.Time
	fault string
}

// batch is what was read from one partition.
type batch struct {
	parcels []*parcel // what is not acknowledged
	own     string    // entries of an earlier run of this relay were looked for up to here
	fresh   bool      // all of them
	inherit bool      // entries of dead relays are to be looked for
	looked  string    // up to here
}

// parcel is the entries of a batch that go to one queue, and how far they got.
type parcel struct {
	to      string // "" for the keys that no route matches any more
	entries []redisstore.Entry
	sent    bool
}

// NewRelay returns a Relay that sends to the given queues. A Listener runs it.
func NewRelay(o *redisstore.Outbox, partitions int, s sender, a appender, codec queue.Codec, to queue.Destinations, log *slog.Logger) *Relay {
	r := &Relay{
		outbox: o, sender: s, events: a, codec: codec, to: to, log: log, failing: map[string]failure{},
		wake: make(chan struct{}, 1), waiting: make([]atomic.Bool, partitions), batches: make([]*batch, partitions),
	}
	for p := range r.batches {
		r.batches[p] = &batch{}
	}
	return r
}

// ring tells that a partition's outbox may hold something.
func (r *Relay) ring(partition int) {
	r.waiting[partition].Store(true)
	r.wakeUp()
}

func (r *Relay) wakeUp() {
	select {
	case r.wake <- struct{}{}:
	default: // one ring waits already
	}
}

// loop relays what the rings announce, and now and then takes over what dead relays left.
func (r *Relay) loop(ctx context.Context) {
	backoff := retryWait
	takeOver := time.NewTicker(takeOverEvery)
	defer takeOver.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-takeOver.C:
			// Each partition looks at its next ring: one whose outbox is empty has nothing to inherit.
			for _, b := range r.batches {
				b.inherit = true
			}
			continue
		case <-r.wake:
		}
		err := r.relayWaiting(ctx)
		r.note(ctx, err)
		if err == nil {
			backoff = retryWait
			continue
		}
		sleep(ctx, backoff)
		backoff = min(2*backoff, maxBackoff)
		r.wakeUp() // what failed is still marked as waiting
	}
}

// relayWaiting relays the waiting partitions, some at a time.
func (r *Relay) relayWaiting(ctx context.Context) error {
	var g errgroup.Group // not bound to the first fault: a partition that fails must not stop the others
	g.SetLimit(relayWorkers)
	for p := range r.waiting {
		if !r.waiting[p].Swap(false) {
			continue
		}
		g.Go(func() error {
			if err := r.drainSafely(ctx, p); err != nil {
				r.waiting[p].Store(true)
				return fmt.Errorf("relay partition %d: %w", p, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// drainSafely drains, and makes a panic the fault of that partition alone: outside of its goroutine nobody could
// recover it, and it would end the process.
func (r *Relay) drainSafely(ctx context.Context, p int) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("panicked: %v", cause)
			r.log.ErrorContext(ctx, "relay panicked", "partition", p, "panic", fmt.Sprint(cause), "stack", string(debug.Stack()))
		}
	}()
	return r.drain(ctx, p)
}

// drain relays one partition until its outbox has nothing new. A batch that failed is taken up where it
// stopped: what was sent is not sent again.
func (r *Relay) drain(ctx context.Context, p int) error {
	b := r.batches[p]
	for ctx.Err() == nil {
		if len(b.parcels) == 0 {
			entries, err := r.read(ctx, b, p)
			if err != nil {
				return err
			}
			if len(entries) == 0 {
				return nil
			}
			b.parcels = r.parcels(entries)
		}
		if err := r.deliver(ctx, p); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// read returns entries that an earlier run of this relay left, then those that a dead relay left or whose route's
// queue failed, then new ones.
func (r *Relay) read(ctx context.Context, b *batch, p int) (entries []redisstore.Entry, err error) {
	ctx, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	if !b.fresh {
		if entries, err = r.outbox.Own(ctx, p, b.own, relayBatch); err != nil {
			return nil, err
		}
		if len(entries) > 0 {
			b.own = entries[len(entries)-1].StreamID
			return entries, nil
		}
		b.fresh = true
	}
	if b.inherit {
		entries, b.looked, err = r.outbox.TakeOver(ctx, p, takeOverIdle, b.looked, relayBatch)
		b.inherit = err != nil || b.looked != ""
		if err != nil || len(entries) > 0 {
			return entries, err
		}
	}
	return r.outbox.Next(ctx, p, relayBatch)
}

// parcels sorts entries by queue, in their order. The transitions of users come first.
func (r *Relay) parcels(entries []redisstore.Entry) []*parcel {
	users := &parcel{to: r.to.Events}
	all, byQueue := []*parcel{users}, map[string]*parcel{users.to: users}
	for _, e := range entries {
		to, _ := r.to.Of(e.Event)
		if byQueue[to] == nil {
			byQueue[to] = &parcel{to: to}
			all = append(all, byQueue[to])
		}
		byQueue[to].entries = append(byQueue[to].entries, e)
	}
	if len(users.entries) == 0 {
		all = all[1:]
	}
	return all
}

// deliver brings each parcel of the batch to its queue. What is left of the batch failed and is taken up where it
// stopped. What the queue of a route did not take is not left: it waits in the outbox without holding up others, until
// TakeOver brings it again.
func (r *Relay) deliver(ctx context.Context, p int) error {
	b := r.batches[p]
	var faults []error
	for i := 0; i < len(b.parcels); {
		c := b.parcels[i]
		err := r.bring(ctx, p, c)
		if err != nil && (c.sent || !r.isRoute(c.to)) {
			faults = append(faults, err)
			i++
			continue
		}
		if err != nil {
			b.inherit = false // the next pass goes on where this one ended
		}
		b.parcels = slices.Delete(b.parcels, i, i+1)
	}
	return errors.Join(faults...)
}

func (r *Relay) isRoute(to string) bool { return to != r.to.Events && to != "" }

// bring sends, logs and acknowledges a parcel, in this order. Without a queue it logs the events as dead.
func (r *Relay) bring(ctx context.Context, p int, c *parcel) error {
	ctx, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	end := eventlog.Step{Status: eventlog.Queued}
	switch {
	case c.to == "":
		end = eventlog.Step{Status: eventlog.Dead, Detail: "no pattern of EXPIRATION_ROUTES matches the key any more"}
	case !c.sent:
		if err := r.send(ctx, c); err != nil {
			return fmt.Errorf("send %d events to %s: %w", len(c.entries), c.to, err)
		}
		c.sent = true
	}
	end.At = time.Now()
	if err := r.events.Write(ctx, history(c.entries, end)); err != nil {
		return fmt.Errorf("log %d events: %w", len(c.entries), err)
	}
	if err := r.outbox.Acknowledge(ctx, p, c.entries); err != nil {
		return err
	}
	r.mu.Lock()
	if c.sent {
		r.relayed += int64(len(c.entries))
	}
	r.mu.Unlock()
	return nil
}

// errResting is the fault of a queue that is left alone for a while.
var errResting = errors.New("it failed a moment ago")

func (r *Relay) send(ctx context.Context, c *parcel) error {
	if r.isRoute(c.to) {
		if _, failed := r.failed(c.to, routeRest); failed {
			return errResting
		}
	}
	messages := make([]queue.Message, len(c.entries))
	for i, e := range c.entries {
		var err error
		if messages[i], err = r.codec.Encode(e.Event, 0); err != nil {
			return err
		}
	}
	if !r.isRoute(c.to) {
		return r.sender.Send(ctx, c.to, messages)
	}
	ctx, cancel := context.WithTimeout(ctx, routeTimeout)
	defer cancel()
	err := r.sender.Send(ctx, c.to, messages)
	r.noteRoute(ctx, c.to, err)
	return err
}

// history is what the relay knows of the history of entries.
func history(entries []redisstore.Entry, end eventlog.Step) []eventlog.Update {
	updates := make([]eventlog.Update, len(entries))
	for i, e := range entries {
		updates[i] = eventlog.Update{Event: e.Event, Steps: []eventlog.Step{{Status: eventlog.Detected, At: e.Event.DetectedAt}, end}}
	}
	return updates
}

// note records how the last round went; one line tells of an outage's begin, one of its end.
func (r *Relay) note(ctx context.Context, err error) {
	r.mu.Lock()
	before := r.fault
	r.fault = ""
	if err != nil && ctx.Err() == nil {
		r.fault = err.Error()
	}
	now := r.fault
	r.mu.Unlock()
	switch {
	case before == "" && now != "":
		r.log.WarnContext(ctx, "events cannot be relayed; they wait in the outbox", "error", now, "kind", presence.KindOf(err))
	case before != "" && now == "" && ctx.Err() == nil:
		r.log.InfoContext(ctx, "events are relayed again")
	}
}

// noteRoute records how a send to the queue of a route went, in the same way.
func (r *Relay) noteRoute(ctx context.Context, to string, err error) {
	_, failed := r.failed(to, routeMemory)
	r.mu.Lock()
	delete(r.failing, to)
	if err != nil && !errors.Is(ctx.Err(), context.Canceled) {
		r.failing[to] = failure{time.Now(), err.Error()}
	}
	r.mu.Unlock()
	switch {
	case err != nil && !failed:
		r.log.WarnContext(ctx, "expired keys cannot be sent to the queue of their route; they wait in the outbox", "queue", to, "error", err)
	case err == nil && failed:
		r.log.InfoContext(ctx, "expired keys are sent to the queue of their route again", "queue", to)
	}
}

// failed returns how the last send to the queue of a route failed, if that is less than d ago.
func (r *Relay) failed(to string, d time.Duration) (failure, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f, ok := r.failing[to]
	return f, ok && time.Since(f.at) < d
}

func (r *Relay) progress() (relayed int64, fault string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fault = r.fault
	for _, to := range slices.Sorted(maps.Keys(r.failing)) {
		if f := r.failing[to]; fault == "" && time.Since(f.at) < routeMemory {
			fault = fmt.Sprintf("send to %s: %s", to, f.fault)
		}
	}
	return r.relayed, fault
}
