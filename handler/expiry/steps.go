package expiry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/fault"
	"userconnectivity/handler/queue"
	"userconnectivity/handler/redisstore"
)

// sender puts messages on a queue: all of them, or it returns an error. Sending the same ids again is harmless. An error
// that has Refused was returned after all other messages were sent.
type sender interface {
	Send(ctx context.Context, queue string, msgs []queue.Message) error
}

// refuser is the error of a sender about messages that the queue can never take.
type refuser interface {
	// Refused returns the reasons by message id.
	Refused() map[string]string
}

// appender writes to the event log. An *eventlog.RefusedError is about some events; the others were written.
type appender interface {
	Write(ctx context.Context, updates []eventlog.Update) error
}

const (
	// routeTimeout bounds a send to the queue of a route, and routeRest is how long one that failed is left alone: the
	// transitions of users wait behind it no longer.
	routeTimeout = 5 * time.Second
	routeRest    = 5 * time.Second
	// routeMemory is how long a failed send counts as the state of its queue: what waits is tried again sooner.
	routeMemory = 30 * time.Second
)

// failure is how the last send to the queue of a route failed.
type failure struct {
	at    time.Time
	fault string
}

// refused counts what the sinks refused for good.
type refused struct {
	byQueue, byLog int64
	last           string
}

// send sends items, those of each queue together; the transitions of users come first. What the queue of a route does not
// take is left: it waits in the outbox without holding up others, until a takeover brings it again. An event that its
// queue can never take, and a key that no route matches any more, goes on to be logged as dead.
func (r *Relay) send(ctx context.Context, p int, items []*item) error {
	ctx, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	var faults []error
	for _, some := range r.byQueue(items) {
		to := some[0].to
		if to == "" {
			for _, it := range some {
				it.fate, it.end = passed, eventlog.Step{Status: eventlog.Dead, At: time.Now(), Detail: "no pattern of EXPIRATION_ROUTES matches the key any more"}
			}
			continue
		}
		refusals, err := r.sendTo(ctx, to, some)
		if err != nil && r.isRoute(to) {
			for _, it := range some {
				it.fate = left
			}
			r.lanes[p].inherit = false // the next pass goes on where this one ended
			continue
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("send %d events to %s: %w", len(some), to, err))
			continue
		}
		for _, it := range some {
			it.fate = passed
			if reason, ok := refusals[it.entry.Event.ID]; ok {
				r.refuse(ctx, it, "queue "+to, reason)
				it.end = eventlog.Step{Status: eventlog.Dead, At: time.Now(), Detail: "queue " + to + " can never take it: " + reason}
			}
		}
	}
	return errors.Join(faults...)
}

// byQueue sorts items by queue, in their order. The transitions of users come first.
func (r *Relay) byQueue(items []*item) [][]*item {
	all, index := make([][]*item, 1), map[string]int{r.to.Events: 0}
	for _, it := range items {
		i, ok := index[it.to]
		if !ok {
			i = len(all)
			index[it.to] = i
			all = append(all, nil)
		}
		all[i] = append(all[i], it)
	}
	if len(all[0]) == 0 {
		all = all[1:]
	}
	return all
}

func (r *Relay) isRoute(to string) bool { return to != r.to.Events && to != "" }

// errResting is the fault of a queue that is left alone for a while.
var errResting = errors.New("it failed a moment ago")

// sendTo sends items to one queue, and returns the reasons of those that it can never take, by event id. All others were
// sent, unless there is an error.
func (r *Relay) sendTo(ctx context.Context, to string, items []*item) (refusals map[string]string, err error) {
	if r.isRoute(to) && r.resting(to) {
		return nil, errResting
	}
	refusals = map[string]string{}
	messages := make([]queue.Message, 0, len(items))
	now := time.Now() // before the send: a worker may have a message before the send returns
	for _, it := range items {
		it.end = eventlog.Step{Status: eventlog.Queued, At: now}
		m, err := r.encode(it.entry)
		if err != nil {
			refusals[it.entry.Event.ID] = err.Error()
			continue
		}
		messages = append(messages, m)
	}
	if r.isRoute(to) {
		err = r.sendToRoute(ctx, to, messages, refusals)
	} else {
		err = r.sendMessages(ctx, to, messages, refusals)
	}
	if err != nil {
		return nil, err
	}
	for _, it := range items {
		_, no := refusals[it.entry.Event.ID]
		it.sent = !no
	}
	return refusals, nil
}

// sendToRoute sends messages to the queue of a route, and remembers how it went.
func (r *Relay) sendToRoute(ctx context.Context, to string, messages []queue.Message, refusals map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, routeTimeout)
	defer cancel()
	err := r.sendMessages(ctx, to, messages, refusals)
	r.noteRoute(ctx, to, err)
	return err
}

// sendMessages sends messages, and adds to refusals those that the queue can never take, with the reason. Where a sender
// tells only that there is one, and sends none, halves of them are sent until it is found.
func (r *Relay) sendMessages(ctx context.Context, to string, messages []queue.Message, refusals map[string]string) error {
	if len(messages) == 0 {
		return nil
	}
	err := r.sender.Send(ctx, to, messages)
	var refused refuser
	switch {
	case errors.As(err, &refused):
		maps.Copy(refusals, refused.Refused())
	case fault.KindOf(err) != fault.Invalid:
		return err
	case len(messages) == 1:
		refusals[messages[0].ID] = err.Error()
	default:
		half := len(messages) / 2
		return cmp.Or(r.sendMessages(ctx, to, messages[:half], refusals), r.sendMessages(ctx, to, messages[half:], refusals))
	}
	return nil
}

// encode makes the message of an event. None of today's is too large for a queue, whose least limit is 256 KiB (tier
// Standard): that of a user has about 16 KiB at most (32 sessions of 213 bytes are 7, 16 groups 2, a meta of 1,024 bytes 6
// where JSON escapes each, the rest 1), that of a foreign key 11 KiB (its 1,024 bytes come three times, and JSON escapes
// them).
func (r *Relay) encode(e redisstore.Entry) (queue.Message, error) { return r.codec.Encode(e.Event, 0) }

// append writes items to the log: detected, and what became of them at the queue.
func (r *Relay) append(ctx context.Context, _ int, items []*item) error {
	ctx, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	updates := make([]eventlog.Update, len(items))
	for i, it := range items {
		e := it.entry.Event
		updates[i] = eventlog.Update{Event: e, Steps: []eventlog.Step{{Status: eventlog.Detected, At: e.DetectedAt}, it.end}}
	}
	err := r.events.Write(ctx, updates)
	var refused *eventlog.RefusedError
	if err != nil && !errors.As(err, &refused) {
		return fmt.Errorf("log %d events: %w", len(items), err)
	}
	byID := map[string][]*item{}
	for _, it := range items {
		it.fate = passed
		byID[it.entry.Event.ID] = append(byID[it.entry.Event.ID], it)
	}
	if refused != nil {
		for _, no := range refused.Events {
			for _, it := range byID[no.ID] {
				r.refuse(ctx, it, "the event log", no.Err.Error())
			}
		}
	}
	return nil
}

// acknowledge removes items from the outbox. A copy of those that were refused goes to the quarantine stream before.
func (r *Relay) acknowledge(ctx context.Context, p int, items []*item) error {
	ctx, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	entries := make([]redisstore.Entry, len(items))
	for i, it := range items {
		for len(it.refusals) > 0 {
			if err := r.outbox.SetAside(ctx, p, it.entry, it.refusals[0]); err != nil {
				return err
			}
			it.refusals = it.refusals[1:]
		}
		entries[i] = it.entry
	}
	if err := r.outbox.Acknowledge(ctx, p, entries); err != nil {
		return err
	}
	for _, it := range items {
		it.fate = passed
	}
	return nil
}

// refuse records that a sink refused an item for good.
func (r *Relay) refuse(ctx context.Context, it *item, who, reason string) {
	text := who + " refused it: " + reason
	it.refusals = append(it.refusals, text)
	r.mu.Lock()
	if who == "the event log" {
		r.refused.byLog++
	} else {
		r.refused.byQueue++
	}
	r.refused.last = "event " + it.entry.Event.ID + ": " + text
	r.mu.Unlock()
	r.log.WarnContext(ctx, "an event was refused for good; a copy is in the quarantine stream", "event_id", it.entry.Event.ID, "by", who, "reason", reason)
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
