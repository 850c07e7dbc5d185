// Package worker does the work of the connectivity queue: it applies each event to the users record, once and
// in the order of the epochs, and writes how it went to the event log.
package worker

import (
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
	"userconnectivity/handler/presence"
	"userconnectivity/handler/queue"
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

// applyAtOnce bounds the concurrent writes to the users records.
const applyAtOnce = 16

// New returns a Worker. Replays are sent to the given queues. maxDelivery is the queue's max delivery count: a message
// at its last delivery is put aside by the worker itself, with its reason, before the broker does it without one.
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
	applied  bool
	// poison says why the item can never succeed, fault why it did not succeed now.
	poison, fault error
}

// Process works on a batch. A batch can only succeed or fail as a whole (design D14), so an item that can
// never succeed, or fails at its last delivery, goes to the queue's -rejected queue and is logged as dead,
// and the batch succeeds. A passing fault fails the batch: all of it is delivered again, and what was done
// already changes nothing.
func (w *Worker) Process(ctx context.Context, batch []Delivery) error {
	items := make([]*item, len(batch))
	var g errgroup.Group
	g.SetLimit(applyAtOnce)
	for i, d := range batch {
		it := &item{delivery: d, began: time.Now()}
		items[i] = it
		var replay int
		it.event, replay, it.poison = w.codec.Decode([]byte(d.Body))
		it.attempt = eventlog.Attempt{Replay: replay, Delivery: max(d.Count, 1)}
		if it.readable = it.poison == nil; it.readable {
			g.Go(func() error {
				w.apply(ctx, it)
				return nil
			})
		}
	}
	_ = g.Wait() // each item keeps its own fault
	for _, it := range items {
		if it.fault != nil && it.delivery.Count >= w.maxDelivery {
			it.poison = fmt.Errorf("failed at its last delivery, number %d: %w", it.delivery.Count, it.fault)
			it.fault = nil
		}
	}
	if err := w.reject(ctx, queue.ConnectivityEvents, items); err != nil {
		return err
	}
	if err := w.events.Write(ctx, w.updates(items)); err != nil {
		return fmt.Errorf("log the outcome of %d events: %w", len(items), err)
	}
	var faults []error
	for _, it := range items {
		if it.fault != nil {
			faults = append(faults, fmt.Errorf("apply event %s: %w", it.event.ID, it.fault))
		}
	}
	if len(faults) > 0 {
		return fmt.Errorf("%d of %d events failed: %w", len(faults), len(items), faults[0])
	}
	return nil
}

// apply applies one event. A panic is the fault of that event alone: outside of this goroutine nobody could
// recover it, and it would end the process.
func (w *Worker) apply(ctx context.Context, it *item) {
	defer func() {
		if p := recover(); p != nil {
			it.fault = fmt.Errorf("panicked: %v", p)
			w.log.ErrorContext(ctx, "applying an event panicked", "event_id", it.event.ID, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
	}()
	it.applied, it.fault = w.users.Apply(ctx, it.event)
}

// updates is the prefix of each event's history that the worker knows.
func (w *Worker) updates(items []*item) []eventlog.Update {
	now := time.Now()
	updates := make([]eventlog.Update, 0, len(items))
	for _, it := range items {
		steps := []eventlog.Step{{Status: eventlog.Processing, At: it.began, Attempt: it.attempt}}
		end := eventlog.Step{Status: eventlog.Done, At: now, Attempt: it.attempt}
		switch {
		case it.poison != nil:
			end.Status, end.Detail = eventlog.Dead, it.poison.Error()
		case it.fault != nil:
			end.Status, end.Detail = eventlog.Failed, faultText(it.fault)
		case !it.applied:
			end.Detail = "changed nothing: this event, or a newer one of the user, was applied before"
		}
		if it.readable {
			steps = append([]eventlog.Step{{Status: eventlog.Detected, At: it.event.DetectedAt}}, steps...)
		} else {
			// What could not be read makes no record; one that is there already is told of it.
			id, ok := eventID(it.event, it.delivery)
			if !ok {
				continue
			}
			it.event = presence.Event{ID: id}
		}
		updates = append(updates, eventlog.Update{Event: it.event, Steps: append(steps, end)})
	}
	return updates
}

// eventID finds the id of an event that could not be read whole: in its body, else in its MessageId.
func eventID(e presence.Event, d Delivery) (string, bool) {
	id := e.ID
	if _, ok := presence.PartitionKeyOf(id); !ok {
		id, _, _ = strings.Cut(d.MessageID, ":")
	}
	_, ok := presence.PartitionKeyOf(id)
	return id, ok
}

// faultText is what the log says of a fault: its message for callers, not what is behind it.
func faultText(err error) string {
	var e *presence.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return err.Error()
}

// reject sends the poison items to the queue's -rejected queue, with their reason.
func (w *Worker) reject(ctx context.Context, from string, items []*item) error {
	var rejected []queue.Message
	for _, it := range items {
		if it.poison == nil {
			continue
		}
		w.log.WarnContext(ctx, "event rejected", "message_id", it.delivery.MessageID, "delivery", it.delivery.Count, "reason", it.poison)
		rejected = append(rejected, queue.Rejected(it.delivery.MessageID, []byte(it.delivery.Body), it.poison))
	}
	if len(rejected) == 0 {
		return nil
	}
	name := from + queue.RejectedSuffix
	if err := w.sender.Send(ctx, name, rejected); err != nil {
		return fmt.Errorf("send %d messages to %s: %w", len(rejected), name, err)
	}
	return nil
}

// DeadLetters logs what the broker itself gave up on. An event that was applied stays done: what the broker gave
// up is only a message whose batch was not settled in time.
func (w *Worker) DeadLetters(ctx context.Context, batch []Delivery) error {
	now := time.Now()
	var updates []eventlog.Update
	for _, d := range batch {
		e, replay, err := w.codec.Decode([]byte(d.Body))
		reason := "the broker gave it up: " + d.Reason
		if err != nil {
			reason += " (" + err.Error() + ")"
			id, ok := eventID(e, d)
			e = presence.Event{ID: id}
			if !ok {
				e.ID = ""
			}
		}
		w.log.WarnContext(ctx, "event dead-lettered by the broker", "message_id", d.MessageID, "event_id", e.ID, "reason", reason)
		if e.ID == "" {
			continue
		}
		done, readErr := w.wasDone(ctx, e.ID, replay)
		if readErr != nil {
			return fmt.Errorf("read event %s: %w", e.ID, readErr)
		}
		if done {
			continue
		}
		var steps []eventlog.Step
		if err == nil {
			steps = append(steps, eventlog.Step{Status: eventlog.Detected, At: e.DetectedAt})
		}
		// It comes after every delivery of its replay.
		attempt := eventlog.Attempt{Replay: replay, Delivery: w.maxDelivery + 1}
		steps = append(steps, eventlog.Step{Status: eventlog.Dead, At: now, Detail: reason, Attempt: attempt})
		updates = append(updates, eventlog.Update{Event: e, Steps: steps})
	}
	if err := w.events.Write(ctx, updates); err != nil {
		return fmt.Errorf("log %d dead letters: %w", len(updates), err)
	}
	return nil
}

// wasDone reports whether a delivery of the event's given replay (0 is the original) was applied.
func (w *Worker) wasDone(ctx context.Context, id string, replay int) (bool, error) {
	record, err := w.events.Event(ctx, id)
	if errors.Is(err, eventlog.ErrNotFound) {
		return false, nil
	}
	return slices.ContainsFunc(record.History, func(s eventlog.Step) bool {
		return s.Status == eventlog.Done && s.Attempt.Replay == replay
	}), err
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
		return &presence.Error{Kind: presence.Conflict, Message: "no pattern of EXPIRATION_ROUTES matches the key of this event"}
	}
	n := record.LastReplay() + 1
	m, err := w.codec.Encode(record.Event, n)
	if err != nil {
		return err
	}
	// Its time is that before the send: a worker may have the message before the send returns.
	step := eventlog.Step{Status: eventlog.Queued, At: time.Now(), Detail: fmt.Sprintf("replay %d", n), Attempt: eventlog.Attempt{Replay: n}}
	if err := w.sender.Send(ctx, to, []queue.Message{m}); err != nil {
		return &presence.Error{Kind: presence.Unavailable, Message: "the queue cannot be reached: try again", Err: fmt.Errorf("send event %s again: %w", id, err)}
	}
	if err := w.events.Write(ctx, []eventlog.Update{{Event: record.Event, Steps: []eventlog.Step{step}}}); err != nil {
		return fmt.Errorf("log the replay of event %s: %w", id, err)
	}
	return nil
}
