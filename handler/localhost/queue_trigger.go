package localhost

import (
	"context"
	"errors"
	"sync"
	"time"
)

// A trigger whose calls fail pauses before it receives again, so that a failing handler does not spin.
const (
	minFailurePause = 25 * time.Millisecond
	maxFailurePause = 250 * time.Millisecond
	settleTimeout   = 5 * time.Second
)

// runQueueTrigger calls a function with the messages of its queue until ctx is done: batches one at a time,
// single messages up to maxConcurrentCalls at a time.
func (h *Host) runQueueTrigger(ctx context.Context, f *function) {
	if f.trigger.Cardinality == "many" {
		h.runReceiver(ctx, f, h.app.maxBatch)
		return
	}
	var receivers sync.WaitGroup
	for range h.app.maxConcurrentCalls {
		receivers.Go(func() { h.runReceiver(ctx, f, 1) })
	}
	receivers.Wait()
}

// runReceiver receives, calls and settles, one delivery after the other, until ctx is done.
func (h *Host) runReceiver(ctx context.Context, f *function, limit int) {
	pause := minFailurePause
	for {
		// Messages are left alone while the handler is down, so that they are not delivered in vain.
		if _, err := h.process.waitReady(ctx); errors.Is(err, errHandlerGone) {
			<-ctx.Done()
			return
		} else if err != nil {
			return
		}
		d, err := h.broker.receive(ctx, f.trigger.QueueName, limit)
		if ctx.Err() != nil && err != nil {
			return
		}
		if err == nil {
			err = h.deliver(f, d)
		}
		if err == nil {
			pause = minFailurePause
			continue
		}
		h.log.Error("queue trigger failed", "function", f.name, "messages", len(d.messages), "error", err)
		if !wait(ctx, pause) {
			return
		}
		pause = min(2*pause, maxFailurePause)
	}
}

// deliver calls f with a delivery and settles it: completed on success, else abandoned.
func (h *Host) deliver(f *function, d delivery) error {
	var e envelope
	if f.trigger.Cardinality == "many" {
		e = batchEnvelope(f, d.messages, d.token, time.Now())
	} else {
		e = messageEnvelope(f, d.messages[0], d.token, time.Now())
	}
	failure := h.invoke(f.name, e)
	// Settling must not depend on the end of the host.
	ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
	defer cancel()
	if failure == nil {
		return h.broker.complete(ctx, d)
	}
	return errors.Join(failure, h.broker.abandon(ctx, d, !errors.Is(failure, errNotDelivered)))
}
