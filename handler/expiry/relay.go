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
	"time"

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
	// relayBatch is how many events are sent and logged at once: usually 1 KiB each, at most about 16 (see send).
	relayBatch = 500
	// relayWorkers is how many batches are under way at the same time, each of another partition; as many again are of
	// partitions whose last try failed. It bounds memory and requests while there is a backlog.
	relayWorkers = 8
	// lendAfter is how long a batch counts as one of them. One that takes longer waits for somebody else, as a log that
	// hangs, and holds up no other partition.
	lendAfter = 500 * time.Millisecond
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

	bells   []chan struct{} // by partition: something may be in its outbox
	batches []*batch        // by partition: read and not yet acknowledged; each is used by one goroutine at a time
	steady  slots           // for partitions that are well
	retries slots           // for those whose last try failed

	mu      sync.Mutex
	relayed int64
	faults  map[int]string     // of the last try, by partition
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
	failed  bool      // the last try
	own     string    // entries that this relay was given before were looked for up to here
	fresh   bool      // all of them
	inherit bool      // entries of dead relays are to be looked for
	looked  string    // up to here
	due     time.Time // when they are to be looked for again
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
		outbox: o, sender: s, events: a, codec: codec, to: to, log: log,
		bells: make([]chan struct{}, partitions), batches: make([]*batch, partitions),
		steady: make(slots, relayWorkers), retries: make(slots, relayWorkers),
		faults: map[int]string{}, failing: map[string]failure{},
	}
	for p := range partitions {
		r.bells[p], r.batches[p] = make(chan struct{}, 1), &batch{}
	}
	return r
}

// slots bound how many batches are under way: one element for each.
type slots chan struct{}

// take waits for a slot. It is given back by done, or lendAfter later if that is sooner. It returns the error of ctx.
func (s slots) take(ctx context.Context) (done func(), err error) {
	select {
	case s <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	giveBack := func() { <-s }
	lend := time.AfterFunc(lendAfter, giveBack)
	return func() {
		if lend.Stop() {
			giveBack()
		}
	}, nil
}

// ring tells that a partition's outbox may hold something.
func (r *Relay) ring(partition int) {
	select {
	case r.bells[partition] <- struct{}{}:
	default: // one ring waits already
	}
}

// loop relays what the rings announce, each partition by itself: one whose queue or log is slow holds up no other.
func (r *Relay) loop(ctx context.Context) {
	var all sync.WaitGroup
	for p := range r.bells {
		all.Go(func() { r.tend(ctx, p) })
	}
	all.Wait()
}

// tend relays one partition at each ring, and by itself after a fault.
func (r *Relay) tend(ctx context.Context, p int) {
	backoff := retryWait
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-r.bells[p]:
		}
		err := r.drainSafely(ctx, p)
		r.note(ctx, p, err)
		if err == nil {
			backoff = retryWait
			continue
		}
		r.batches[p].failed = true
		sleep(ctx, backoff)
		backoff = min(2*backoff, maxBackoff)
		r.ring(p)
	}
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

// drain relays one partition until its outbox has nothing new.
func (r *Relay) drain(ctx context.Context, p int) error {
	for {
		more, err := r.step(ctx, p)
		if err != nil || !more {
			return err
		}
	}
}

// step relays one batch, and reports whether there was one. A batch that failed is taken up where it stopped: what was
// sent is not sent again.
func (r *Relay) step(ctx context.Context, p int) (more bool, err error) {
	b, bound := r.batches[p], r.steady
	if b.failed {
		bound = r.retries // who hangs again and again takes no slot of those that are well
	}
	done, err := bound.take(ctx)
	if err != nil {
		return false, err
	}
	defer done()
	if len(b.parcels) == 0 {
		entries, err := r.read(ctx, b, p)
		if err != nil {
			// Redis may have given us entries all the same, and the answer was lost: they are looked for first.
			b.own, b.fresh = "", false
			return false, err
		}
		b.parcels = r.parcels(entries)
	}
	more = len(b.parcels) > 0
	if err := r.deliver(ctx, p); err != nil {
		return false, err
	}
	b.failed = false
	return more, nil
}

// read returns entries that this relay was given before and lost, by a restart or by a failed read, then those that a
// dead relay left or whose route's queue failed, then new ones.
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
	// One whose outbox is empty has nothing to inherit: nobody rings.
	if now := time.Now(); !now.Before(b.due) {
		b.inherit, b.due = true, now.Add(takeOverEvery)
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

// send sends a parcel. No event is too large for a queue, whose least limit is 256 KiB (tier Standard): that of a user
// has about 16 KiB at most (32 sessions of 213 bytes are 7, 16 groups 2, a meta of 1,024 bytes 6 where JSON escapes each, the
// rest 1), that of a foreign key 11 KiB (its 1,024 bytes come three times, and JSON escapes them).
func (r *Relay) send(ctx context.Context, c *parcel) error {
	if r.isRoute(c.to) && r.resting(c.to) {
		return errResting
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

// note records how the last try of a partition went; one line tells of an outage's begin, one of its end.
func (r *Relay) note(ctx context.Context, p int, err error) {
	if err != nil && ctx.Err() != nil {
		return // it was broken off: nothing new is known
	}
	r.mu.Lock()
	before := len(r.faults)
	delete(r.faults, p)
	if err != nil {
		r.faults[p] = err.Error()
	}
	now := len(r.faults)
	r.mu.Unlock()
	switch {
	case before == 0 && now > 0:
		r.log.WarnContext(ctx, "events cannot be relayed; they wait in the outbox", "partition", p, "error", err, "kind", presence.KindOf(err))
	case before > 0 && now == 0:
		r.log.InfoContext(ctx, "events are relayed again")
	}
}

// noteRoute records how a send to the queue of a route went, in the same way.
func (r *Relay) noteRoute(ctx context.Context, to string, err error) {
	failed := r.failed(to)
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

// resting reports whether the queue of a route is left alone for now. After its rest one partition tries it, and the
// others see what comes of it: a queue that hangs holds up one partition at a time.
func (r *Relay) resting(to string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	f, failed := r.failing[to]
	rested := time.Since(f.at)
	if !failed || rested >= routeMemory {
		return false
	}
	if rested < routeRest {
		return true
	}
	f.at = time.Now()
	r.failing[to] = f
	return false
}

// failed reports whether the last send to the queue of a route failed, as far as that is remembered.
func (r *Relay) failed(to string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	f, ok := r.failing[to]
	return ok && time.Since(f.at) < routeMemory
}

// progress returns how many events were relayed, and what fails, "" for nothing.
func (r *Relay) progress() (relayed int64, fault string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if failed := slices.Sorted(maps.Keys(r.faults)); len(failed) > 0 {
		fault = fmt.Sprintf("partition %d: %s", failed[0], r.faults[failed[0]])
		if more := len(failed) - 1; more > 0 {
			fault += fmt.Sprintf(" (and %d more of %d partitions)", more, len(r.bells))
		}
		return r.relayed, fault
	}
	for _, to := range slices.Sorted(maps.Keys(r.failing)) {
		if f := r.failing[to]; time.Since(f.at) < routeMemory {
			return r.relayed, fmt.Sprintf("send to %s: %s", to, f.fault)
		}
	}
	return r.relayed, ""
}
