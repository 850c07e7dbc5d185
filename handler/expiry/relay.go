package expiry

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
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
	// relayTimeout bounds each step of a batch: read, send, log, acknowledge.
	relayTimeout = 30 * time.Second
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
	queue  string
	log    *slog.Logger

	wake    chan struct{}
	waiting []atomic.Bool // by partition: something may be in its outbox
	batches []*batch      // by partition: read and not yet acknowledged; each is used by one goroutine at a time

	mu      sync.Mutex
	relayed int64
	fault   string
}

// batch is what was read from one partition and how far it got.
type batch struct {
	entries []redisstore.Entry
	sent    bool
	fresh   bool // entries of an earlier run of this relay were looked for
	inherit bool // entries of dead relays are to be looked for
}

// NewRelay returns a Relay that sends to the queue or topic of the given name. A Listener runs it.
func NewRelay(o *redisstore.Outbox, partitions int, s sender, a appender, codec queue.Codec, queueName string, log *slog.Logger) *Relay {
	r := &Relay{
		outbox: o, sender: s, events: a, codec: codec, queue: queueName, log: log,
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
		if len(b.entries) == 0 {
			if err := r.read(ctx, p); err != nil {
				return err
			}
			if len(b.entries) == 0 {
				return nil
			}
		}
		if err := r.deliver(ctx, p); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// read fills the batch: entries that an earlier run of this relay left, then those that a dead relay left,
// then new ones.
func (r *Relay) read(ctx context.Context, p int) error {
	ctx, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	b := r.batches[p]
	b.sent = false
	var err error
	if !b.fresh {
		if b.entries, err = r.outbox.Own(ctx, p, relayBatch); err != nil || len(b.entries) > 0 {
			return err
		}
		b.fresh = true
	}
	if b.inherit {
		if b.entries, err = r.outbox.TakeOver(ctx, p, takeOverIdle, relayBatch); err != nil || len(b.entries) > 0 {
			return err
		}
		b.inherit = false
	}
	b.entries, err = r.outbox.Next(ctx, p, relayBatch)
	return err
}

// deliver sends, logs and acknowledges the batch, in this order.
func (r *Relay) deliver(ctx context.Context, p int) error {
	ctx, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	b := r.batches[p]
	if !b.sent {
		messages := make([]queue.Message, len(b.entries))
		for i, e := range b.entries {
			var err error
			if messages[i], err = r.codec.Encode(e.Event, 0); err != nil {
				return err
			}
		}
		if err := r.sender.Send(ctx, r.queue, messages); err != nil {
			return fmt.Errorf("send %d events to %s: %w", len(messages), r.queue, err)
		}
		b.sent = true
	}
	if err := r.events.Write(ctx, queuedUpdates(b.entries, time.Now())); err != nil {
		return fmt.Errorf("log %d events: %w", len(b.entries), err)
	}
	if err := r.outbox.Acknowledge(ctx, p, b.entries); err != nil {
		return err
	}
	r.mu.Lock()
	r.relayed += int64(len(b.entries))
	r.mu.Unlock()
	b.entries = nil
	return nil
}

// queuedUpdates is the prefix of the history that the relay knows.
func queuedUpdates(entries []redisstore.Entry, now time.Time) []eventlog.Update {
	updates := make([]eventlog.Update, len(entries))
	for i, e := range entries {
		updates[i] = eventlog.Update{Event: e.Event, Steps: []eventlog.Step{
			{Status: eventlog.Detected, At: e.Event.DetectedAt},
			{Status: eventlog.Queued, At: now},
		}}
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

func (r *Relay) progress() (relayed int64, fault string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.relayed, r.fault
}
