package expiry

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/queue"
	"userconnectivity/handler/redisstore"
)

const (
	// relayBatch is how many events are read at once, and go through a step at once: usually 1 KiB each, at most about 16
	// (see encode).
	relayBatch = 500
	// relayWorkers is how many batches of one step are under way at the same time, each of another partition; as many
	// again are of partitions whose last try failed. It bounds requests while there is a backlog.
	relayWorkers = 8
	// lendAfter is how long a batch counts as one of them. One that takes longer waits for somebody else, as a log that
	// hangs, and holds up no other partition.
	lendAfter = 500 * time.Millisecond
	// relayTimeout bounds reading a batch, and each step of it.
	relayTimeout = 30 * time.Second
	// takeOverIdle is how long an entry may stay unacknowledged before another relay takes it.
	takeOverIdle = 5 * time.Second
	// takeOverEvery is how often such entries are looked for, and how often the relay says that it still has its own.
	takeOverEvery = 2 * time.Second
	// maxBackoff bounds the wait after faults in a row.
	maxBackoff = 5 * time.Second
	// maxNewer bounds the entries of a later version that a partition remembers. What is beyond is looked at again at each
	// pass over the pending entries.
	maxNewer = 10_000
)

// limits bound what a relay has in hand, read and not yet acknowledged. While the log is away it reads and sends on until
// it has so much; the rest waits in Redis, unread. A partition that has less than one batch may always read one, whatever
// the others have.
type limits struct {
	events, processEvents int   // of one partition, of all
	bytes, processBytes   int64 // the same, with itemBytes for each event
}

var defaultLimits = limits{events: 10_000, processEvents: 50_000, bytes: 32 << 20, processBytes: 128 << 20}

// Relay brings events from the outbox to the queue and the event log, in steps: send, then log, then acknowledge. Each
// step of each partition goes on by itself, in order. So a queue or a log that is slow or away holds up no other
// partition, and a log not even the queue, up to the limits above. An event is acknowledged only after both have it; until
// then it stays in Redis, and after a restart it is sent again with the same id (design D3).
//
// What the queue or the log refuses of one event for good holds up no other: it is set aside with the reason.
type Relay struct {
	outbox *redisstore.Outbox
	sender sender
	events appender
	codec  queue.Codec
	to     queue.Destinations
	log    *slog.Logger

	limits limits
	steps  []*step
	lanes  []*lane // by partition

	mu      sync.Mutex
	inHand  int // events of all lanes, and their bytes
	bytes   int64
	relayed int64
	refused refused
	faults  map[place]string   // of the last tries
	failing map[string]failure // queues of routes
}

// step is one thing that is done with every event, after the steps before it.
type step struct {
	name string
	// do decides the fate of each of the items, which are of one partition; those that wait are tried again. With an error
	// it is tried again after a pause.
	do func(ctx context.Context, partition int, items []*item) error
	// steady bounds the partitions that are in this step, retries those of them whose last try failed.
	steady, retries slots
}

// place is one step of one partition.
type place struct{ partition, step int }

func (a place) compare(b place) int {
	return cmp.Or(cmp.Compare(a.partition, b.partition), cmp.Compare(a.step, b.step))
}

// NewRelay returns a Relay that sends to the given queues. A Listener runs it.
func NewRelay(o *redisstore.Outbox, partitions int, s sender, a appender, codec queue.Codec, to queue.Destinations, log *slog.Logger) *Relay {
	r := &Relay{
		outbox: o, sender: s, events: a, codec: codec, to: to, log: log,
		limits: defaultLimits, lanes: make([]*lane, partitions), faults: map[place]string{}, failing: map[string]failure{},
	}
	r.steps = []*step{{name: "send", do: r.send}, {name: "log", do: r.append}, {name: "acknowledge", do: r.acknowledge}}
	for _, s := range r.steps {
		s.steady, s.retries = make(slots, relayWorkers), make(slots, relayWorkers)
	}
	for p := range partitions {
		r.lanes[p] = newLane(len(r.steps))
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

// wake tells that a partition's outbox may hold something.
func (r *Relay) wake(partition int) { r.lanes[partition].wake(0) }

// loop relays what wakes it, each step of each partition by itself.
func (r *Relay) loop(ctx context.Context) {
	var all sync.WaitGroup
	for p := range r.lanes {
		for s := range r.steps {
			all.Go(func() { r.tend(ctx, place{p, s}) })
		}
	}
	all.Wait()
}

// tend does one step of one partition whenever it is woken, and by itself after a fault.
func (r *Relay) tend(ctx context.Context, at place) {
	l := r.lanes[at.partition]
	backoff := retryWait
	if at.step > 0 {
		l.wake(at.step) // what a run before has left; the sweep wakes the first step
	}
	for ctx.Err() == nil {
		var again <-chan time.Time
		if at.step == 0 && l.hasNewer() {
			again = time.After(takeOverEvery) // whether they still wait; an empty outbox wakes nobody
		}
		select {
		case <-ctx.Done():
			return
		case <-l.bells[at.step]:
		case <-again:
		}
		err := r.drain(ctx, at)
		r.note(ctx, at, err)
		if err == nil {
			backoff = retryWait
			continue
		}
		l.failed[at.step] = true
		sleep(ctx, backoff)
		backoff = min(2*backoff, maxBackoff)
		l.wake(at.step)
	}
}

// drain does a step until there is nothing left to do. A panic is the fault of that partition alone: outside of its
// goroutine nobody could recover it, and it would end the process.
func (r *Relay) drain(ctx context.Context, at place) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("panicked: %v", cause)
			r.log.ErrorContext(ctx, "relay panicked", "partition", at.partition, "step", r.steps[at.step].name, "panic", fmt.Sprint(cause), "stack", string(debug.Stack()))
		}
	}()
	for more := true; more && err == nil; {
		more, err = r.advance(ctx, at)
	}
	return err
}

// advance brings one batch a step further, and reports whether there was one. The first step reads it from the outbox.
func (r *Relay) advance(ctx context.Context, at place) (more bool, err error) {
	l, s := r.lanes[at.partition], r.steps[at.step]
	items := l.first(at.step, relayBatch)
	if at.step > 0 && len(items) == 0 {
		return false, nil
	}
	bound := s.steady
	if l.failed[at.step] {
		bound = s.retries // who hangs again and again takes no slot of those that are well
	}
	done, err := bound.take(ctx)
	if err != nil {
		return false, err
	}
	defer done()
	if at.step == 0 {
		if items, err = r.fill(ctx, l, at.partition); err != nil {
			return false, err
		}
	}
	if len(items) > 0 {
		err = s.do(ctx, at.partition, items)
		r.settle(l, at.step, items)
	}
	if err != nil {
		return false, err
	}
	l.failed[at.step] = false
	return len(items) > 0, nil
}

// settle brings items to where their fate sends them.
func (r *Relay) settle(l *lane, step int, items []*item) {
	released, room := l.settle(step, items)
	if step+1 < len(r.steps) {
		l.wake(step + 1)
	}
	if len(released) > 0 {
		r.mu.Lock()
		r.inHand -= len(released)
		for _, it := range released {
			r.bytes -= it.bytes()
			if it.sent && step == len(r.steps)-1 {
				r.relayed++
			}
		}
		r.mu.Unlock()
	}
	if room {
		l.wake(0)
	}
}

// fill returns what waits to be sent. Where nothing does it reads, while there is room.
func (r *Relay) fill(ctx context.Context, l *lane, p int) ([]*item, error) {
	ctx, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	err := r.keep(ctx, l, p)
	if items := l.first(0, relayBatch); len(items) > 0 || err != nil {
		return items, err
	}
	if !r.room(l) {
		l.setFull()
		return nil, nil
	}
	if err := r.read(ctx, l, p); err != nil {
		// Redis may have given us entries all the same, and the answer was lost: they are looked for first.
		l.own, l.fresh = "", false
		return nil, err
	}
	return l.first(0, relayBatch), nil
}

// keep tells the other relays now and then that this one still has in hand what waits long, as for the log. One whose
// outbox is empty has nothing to keep and nothing to inherit: nobody wakes it.
func (r *Relay) keep(ctx context.Context, l *lane, p int) error {
	now := time.Now()
	if now.Before(l.due) {
		return nil
	}
	l.inherit, l.due = true, now.Add(takeOverEvery)
	return r.outbox.Keep(ctx, p, l.olderThan(takeOverEvery, now))
}

// room reports whether the relay may take more of a partition in hand.
func (r *Relay) room(l *lane) bool {
	events, bytes := l.size()
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case events >= r.limits.events || bytes >= r.limits.bytes:
		return false
	case events < relayBatch:
		return true
	}
	return r.inHand < r.limits.processEvents && r.bytes < r.limits.processBytes
}

// read takes entries in hand that this relay was given before and lost, by a restart or by a failed read, then those that
// a dead relay left or whose route's queue failed, then new ones. It takes none only when there are none.
func (r *Relay) read(ctx context.Context, l *lane, p int) error {
	for !l.fresh {
		entries, err := r.outbox.Own(ctx, p, l.own, relayBatch)
		if err != nil {
			return err
		}
		if len(entries) == 0 {
			l.fresh = true
			break
		}
		l.own = entries[len(entries)-1].StreamID
		if r.take(l, entries) {
			return nil
		}
	}
	if l.inherit {
		entries, next, err := r.outbox.TakeOver(ctx, p, takeOverIdle, l.known, l.looked, relayBatch)
		if err != nil {
			return err
		}
		l.looked, l.inherit = next, next != ""
		took := r.take(l, entries)
		if !l.inherit {
			l.passOver()
		}
		if took {
			return nil
		}
	}
	for {
		entries, err := r.outbox.Next(ctx, p, relayBatch)
		if err != nil || len(entries) == 0 || r.take(l, entries) {
			return err
		}
	}
}

// take takes entries in hand, and reports whether there was one to take.
func (r *Relay) take(l *lane, entries []redisstore.Entry) bool {
	items := l.add(entries, time.Now())
	r.mu.Lock()
	defer r.mu.Unlock()
	r.inHand += len(items)
	for _, it := range items {
		it.to, _ = r.to.Of(it.entry.Event)
		r.bytes += it.bytes()
	}
	return len(items) > 0
}

// note records how the last try of a step of a partition went; one line tells of an outage's begin, one of its end.
func (r *Relay) note(ctx context.Context, at place, err error) {
	if err != nil && ctx.Err() != nil {
		return // it was broken off: nothing new is known
	}
	r.mu.Lock()
	before := len(r.faults)
	delete(r.faults, at)
	if err != nil {
		r.faults[at] = err.Error()
	}
	now := len(r.faults)
	r.mu.Unlock()
	switch {
	case before == 0 && now > 0:
		r.log.WarnContext(ctx, "events cannot be relayed; they wait in the outbox", "partition", at.partition, "step", r.steps[at.step].name,
			"error", err, "kind", fault.KindOf(err))
	case before > 0 && now == 0:
		r.log.InfoContext(ctx, "events are relayed again")
	}
}
