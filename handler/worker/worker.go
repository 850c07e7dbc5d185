// Package worker does the work of the connectivity queue: it applies each event to the users record, once and
// in the order of the epochs, and writes how it went to the event log.
package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/fault"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/queue"
	"userconnectivity/handler/rejects"
	"userconnectivity/handler/retry"
)

// users is the durable record of each user's last state.
type users interface {
	// Apply replaces the record if the event's epoch is above the record's, and reports whether it was.
	Apply(ctx context.Context, e presence.Event) (bool, error)
}

// events is the event log.
type events interface {
	Write(ctx context.Context, updates []eventlog.Update) error
	Event(ctx context.Context, id string) (eventlog.Record, error)
}

// sender puts messages on a queue: all of them, or it returns an error.
type sender interface {
	Send(ctx context.Context, queue string, msgs []queue.Message) error
}

// Delivery is one message of a batch, as the broker delivered it.
type Delivery struct {
	Body string
	// MessageID is the broker's, "" when unknown.
	MessageID string
	// Sequence is the broker's own number of the message, "" when unknown.
	Sequence string
	// Count is how often the message was delivered, this time included; at least 1.
	Count int
	// Reason says why the broker gave the message up; dead letters only.
	Reason string
}

// Worker processes batches of the connectivity queue. It is safe for concurrent use.
type Worker struct {
	users       users
	events      events
	sender      sender
	codec       queue.Codec
	to          queue.Destinations
	maxDelivery int
	log         *slog.Logger
}

const (
	// applyAtOnce bounds the concurrent writes to the users records.
	applyAtOnce = 16
	// maxPanics is how often one event may panic before it counts as one that can never succeed.
	maxPanics = 3
)

// backoff is how long a batch waits after a passing fault.
var backoff = retry.Backoff{First: 100 * time.Millisecond, Most: 2 * time.Second}

// New returns a Worker. Replays are sent to the given queues. maxDelivery is the queue's max delivery count: the
// attempts of dead letters are counted from there.
func New(u users, e events, s sender, codec queue.Codec, to queue.Destinations, maxDelivery int, log *slog.Logger) *Worker {
	return &Worker{users: u, events: e, sender: s, codec: codec, to: to, maxDelivery: maxDelivery, log: log}
}

// item is one delivery on its way through a batch.
type item struct {
	delivery Delivery
	event    presence.Event
	readable bool // event is whole
	attempt  eventlog.Attempt
	began    time.Time
	ended    time.Time // zero until it is applied, found to be of no concern, or poison
	note     string    // the detail of the end
	applied  bool      // or found to be older than the record
	logged   bool
	panics   int
	// poison says why the item can never succeed, fault why it did not succeed the last time.
	poison, fault error
}

// Process works on a batch until every event of it is applied and logged, or until ctx ends. A batch can only succeed
// or fail as a whole (design D14), and a failed one comes back at once. So while a fault passes (fault.Passing) the
// batch waits here and tries again. An event that can never succeed is logged as dead and goes to the queue's -rejected
// queue, once everything else of the batch is done, so that what is delivered again is not rejected twice. When the
// time is over, which comes sooner where only a part of the batch fails (retry.Limit), the batch fails: all of it is delivered again, and what was done already changes nothing.
func (w *Worker) Process(ctx context.Context, batch []Delivery) error {
	items := make([]*item, len(batch))
	for i, d := range batch {
		items[i] = w.item(d, max(d.Count, 1))
	}
	return w.work(ctx, items)
}

// DeadLetters works on what the broker itself gave up, as messages of batches that failed too often or were not
// settled in time: that says nothing about the event. An event that can be read is applied and logged as any other; what
// can never succeed is logged as dead and put aside.
func (w *Worker) DeadLetters(ctx context.Context, batch []Delivery) error {
	items := make([]*item, len(batch))
	for i, d := range batch {
		// It comes after every delivery of its replay.
		it := w.item(d, w.maxDelivery+max(d.Count, 1))
		gaveUp := "the broker gave it up: " + d.Reason
		w.log.WarnContext(ctx, "event dead-lettered by the broker", "message_id", d.MessageID, "event_id", it.event.ID, "reason", gaveUp)
		it.note = strings.TrimPrefix(it.note+"; "+gaveUp, "; ")
		if it.poison != nil {
			it.poison = fmt.Errorf("%w (%s)", it.poison, gaveUp)
		}
		items[i] = it
	}
	return w.work(ctx, items)
}

// item reads a delivery.
func (w *Worker) item(d Delivery, delivery int) *item {
	it := &item{delivery: d, began: time.Now()}
	var replay int
	it.event, replay, it.poison = w.codec.Decode([]byte(d.Body))
	it.readable = it.poison == nil
	id, replayed := queue.ParseMessageID(d.MessageID)
	if _, ok := presence.PartitionKeyOf(it.event.ID); !ok {
		it.event.ID = id
	}
	it.attempt = eventlog.Attempt{Replay: cmp.Or(replay, replayed), Delivery: delivery}
	if it.event.Type == presence.KeyExpired {
		it.poison = errors.New("the expiry of another application's key is not for this queue: EXPIRATION_ROUTES must not name it")
	}
	switch {
	case it.poison != nil:
		it.ended = time.Now()
	case !it.event.Type.Valid():
		// A later version sends it, and a worker of that version knows what it is for.
		it.ended, it.note = time.Now(), fmt.Sprintf("this version has nothing to do for an event of type %.100s", it.event.Type)
	}
	return it
}

// work brings every item to its end: applied, logged, and put aside where it can never succeed.
func (w *Worker) work(ctx context.Context, items []*item) error {
	most, done := retry.Reserve(ctx)
	defer done()
	most, limit := retry.WithLimit(most)
	defer limit.End()
	told := false
	err := backoff.Do(most, nil, func() error {
		w.applyAll(most, items)
		if slices.ContainsFunc(items, func(it *item) bool { return it.applied }) {
			limit.Partly()
		}
		err := errors.Join(w.logEnded(most, items), faultOf(items))
		if err != nil && !told {
			told = true
			w.log.WarnContext(ctx, "events wait for a fault to pass and are tried again", "error", err)
		}
		return err
	})
	if err != nil {
		w.logFailed(ctx, items)
		return err
	}
	var rejected []rejects.Item
	for _, it := range items {
		if it.poison != nil {
			rejected = append(rejected, rejects.Item{MessageID: it.delivery.MessageID, Sequence: it.delivery.Sequence, Body: it.delivery.Body, Reason: it.poison})
		}
	}
	return backoff.Do(ctx, nil, func() error {
		return rejects.Send(ctx, w.sender, queue.ConnectivityEvents, rejected, w.log)
	})
}

// applyAll applies the events that have not ended yet. Each keeps its own fault.
func (w *Worker) applyAll(ctx context.Context, items []*item) {
	var g errgroup.Group
	g.SetLimit(applyAtOnce)
	for _, it := range items {
		if it.ended.IsZero() {
			g.Go(func() error {
				w.apply(ctx, it)
				return nil
			})
		}
	}
	_ = g.Wait() // each item keeps its own fault
}

// apply applies one event. A panic is the fault of that event alone: outside of this goroutine nobody could
// recover it, and it would end the process.
func (w *Worker) apply(ctx context.Context, it *item) {
	defer func() {
		if p := recover(); p != nil {
			it.panics++
			it.fault = fmt.Errorf("panicked: %v", p)
			w.log.ErrorContext(ctx, "applying an event panicked", "event_id", it.event.ID, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
		if it.fault != nil && (it.panics == maxPanics || !fault.Passing(it.fault)) {
			it.poison, it.fault, it.ended = it.fault, nil, time.Now()
		}
	}()
	var applied bool
	if applied, it.fault = w.users.Apply(ctx, it.event); it.fault != nil {
		return
	}
	it.applied, it.ended = true, time.Now()
	if !applied {
		it.note = strings.TrimPrefix(it.note+"; changed nothing: this event, or a newer one of the user, was applied before", "; ")
	}
}

// faultOf returns an error about the items that have a fault, nil when there are none.
func faultOf(items []*item) error {
	n := 0
	var first *item
	for _, it := range items {
		if it.fault == nil {
			continue
		}
		if n++; first == nil {
			first = it
		}
	}
	if first == nil {
		return nil
	}
	return fmt.Errorf("%d of %d events failed: apply event %s: %w", n, len(items), first.event.ID, first.fault)
}

// logEnded logs the items that have ended. An event that the log refuses for good is put aside with that reason, and
// the others go on.
func (w *Worker) logEnded(ctx context.Context, items []*item) error {
	var ended []*item
	for _, it := range items {
		if !it.ended.IsZero() && !it.logged {
			ended = append(ended, it)
		}
	}
	err := w.write(ctx, ended)
	if err == nil || fault.Passing(err) {
		return err
	}
	for _, it := range ended { // which of them is it?
		err := w.write(ctx, []*item{it})
		switch {
		case err == nil:
		case fault.Passing(err):
			return err
		default:
			it.logged, it.poison = true, errors.Join(it.poison, err)
		}
	}
	return nil
}

// write writes what became of items to the log.
func (w *Worker) write(ctx context.Context, items []*item) error {
	updates := make([]eventlog.Update, 0, len(items))
	for _, it := range items {
		if u, ok := it.update(); ok {
			updates = append(updates, u)
		}
	}
	if len(updates) > 0 {
		if err := w.events.Write(ctx, updates); err != nil {
			return fmt.Errorf("log the outcome of %d events: %w", len(updates), err)
		}
	}
	for _, it := range items {
		it.logged = !it.ended.IsZero()
	}
	return nil
}

// logFailed tells the log which events failed, where it can be reached: they come again.
func (w *Worker) logFailed(ctx context.Context, items []*item) {
	var failed []*item
	for _, it := range items {
		if it.fault != nil {
			failed = append(failed, it)
		}
	}
	if err := w.write(ctx, failed); err != nil {
		w.log.WarnContext(ctx, "that events failed could not be logged; they are delivered again", "events", len(failed), "error", err)
	}
}

// update is the prefix of the event's history that the worker knows. There is none for what names no event.
func (it *item) update() (eventlog.Update, bool) {
	if _, ok := presence.PartitionKeyOf(it.event.ID); !ok {
		return eventlog.Update{}, false
	}
	end := eventlog.Step{Status: eventlog.Done, At: it.ended, Detail: it.note, Attempt: it.attempt}
	switch {
	case it.poison != nil:
		end.Status, end.Detail = eventlog.Dead, it.poison.Error()
	case it.fault != nil:
		end.Status, end.At, end.Detail = eventlog.Failed, time.Now(), faultText(it.fault)
	}
	steps := []eventlog.Step{{Status: eventlog.Processing, At: it.began, Attempt: it.attempt}, end}
	e := it.event
	if it.readable && e.Name() != "" {
		steps = append([]eventlog.Step{{Status: eventlog.Detected, At: e.DetectedAt}}, steps...)
	} else { // what could not be read makes no record; one that is there already is told of it
		e = presence.Event{ID: e.ID}
	}
	return eventlog.Update{Event: e, Steps: steps}, true
}

// faultText is what the log says of a fault: its message for callers, not what is behind it.
func faultText(err error) string {
	var e *fault.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return err.Error()
}

// Replay sends an event to its queue again, under a MessageId of its own, and logs that. It returns
// eventlog.ErrNotFound for an event that the log does not hold, and an *Error of kind Conflict for an expired key that
// no route matches any more, of kind Unavailable when the queue cannot be reached.
func (w *Worker) Replay(ctx context.Context, id string) error {
	record, err := w.events.Event(ctx, id)
	if err != nil {
		return fmt.Errorf("read event %s: %w", id, err)
	}
	to, ok := w.to.Of(record.Event)
	if !ok {
		return &fault.Error{Kind: fault.Conflict, Message: "no pattern of EXPIRATION_ROUTES matches the key of this event"}
	}
	n := record.LastReplay() + 1
	m, err := w.codec.Encode(record.Event, n)
	if err != nil {
		return err
	}
	// Its time is that before the send: a worker may have the message before the send returns.
	step := eventlog.Step{Status: eventlog.Queued, At: time.Now(), Detail: fmt.Sprintf("replay %d", n), Attempt: eventlog.Attempt{Replay: n}}
	if err := w.sender.Send(ctx, to, []queue.Message{m}); err != nil {
		return &fault.Error{Kind: fault.Unavailable, Message: "the queue cannot be reached: try again", Err: fmt.Errorf("send event %s again: %w", id, err)}
	}
	if err := w.events.Write(ctx, []eventlog.Update{{Event: record.Event, Steps: []eventlog.Step{step}}}); err != nil {
		return fmt.Errorf("log the replay of event %s: %w", id, err)
	}
	return nil
}
