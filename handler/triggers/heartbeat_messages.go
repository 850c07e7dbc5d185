package triggers

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/queue"
	"userconnectivity/handler/rejects"
	"userconnectivity/handler/retry"
)

// sender puts messages on a queue: all of them, or it returns an error.
type sender interface {
	Send(ctx context.Context, queue string, msgs []queue.Message) error
}

// HeartbeatQueue is the functions HeartbeatMessages and HeartbeatDeadLetters: beats that come over the queue
// "heartbeats", and those of them that the broker gave up. heartbeatsIn says what a message may be. It is dated by when
// the broker enqueued it.
type HeartbeatQueue struct {
	Tracker beater
	Sender  sender
	// Away reports whether the live state is known to be away as a whole: beats wait until it is back. nil is never.
	Away func() bool
}

// beatBackoff is how long beats wait after a passing fault that Away does not tell of. Every wait is lost to the
// sessions that they hold online.
var beatBackoff = retry.Backoff{First: 50 * time.Millisecond, Most: 250 * time.Millisecond}

// rejectBackoff is how long the rejected items of a batch wait.
var rejectBackoff = retry.Backoff{First: 100 * time.Millisecond, Most: 2 * time.Second}

const (
	// beatsTimeout bounds one call with beats.
	beatsTimeout = 10 * time.Second
	// maxFaultyCalls is how many calls in a row may fail before there is a pause.
	maxFaultyCalls = 8
)

func (q HeartbeatQueue) serve(w http.ResponseWriter, r *http.Request) { q.serveBatch(w, r, q.apply) }

func (q HeartbeatQueue) serveDeadLetters(w http.ResponseWriter, r *http.Request) {
	q.serveBatch(w, r, q.deadLetters)
}

func (q HeartbeatQueue) serveBatch(w http.ResponseWriter, r *http.Request, do func(context.Context, []message) error) {
	env, err := readEnvelope(w, r)
	if err != nil {
		fail(w, r, err)
		return
	}
	batch, err := env.messages()
	if err != nil {
		fail(w, r, err)
		return
	}
	if err := do(r.Context(), batch); err != nil {
		fail(w, r, err)
		return
	}
	succeed(w)
}

// deadLetters applies what the broker gave up, as messages of batches that failed too often: that says nothing about
// the beats. They have their age, so that those which came too late change nothing.
func (q HeartbeatQueue) deadLetters(ctx context.Context, batch []message) error {
	for _, m := range batch {
		logger(ctx).WarnContext(ctx, "heartbeat message dead-lettered by the broker", "message_id", m.ID, "reason", deadLetterReason(m))
	}
	return q.apply(ctx, batch)
}

// apply applies the beats of a batch. A batch that failed comes back at once, so while a fault passes the batch waits
// here and tries again, until ctx ends. What can never succeed is put aside with its reason, once all other beats are
// applied, so that a batch that comes again rejects nothing twice. When the time is over, which comes sooner where only a
// part of the beats fails (retry.Limit), the batch fails, also at its last delivery: what was applied already is renewed once more or stale the next time.
func (q HeartbeatQueue) apply(ctx context.Context, batch []message) error {
	work := beatsAtWork{size: presence.MaxBatch}
	for _, m := range batch {
		items, err := heartbeatsIn(m.Body)
		if err != nil {
			work.reject(m, 0, m.Body, err)
			continue
		}
		first, trace := m.firstEnqueued(), m.traceparent(ctx)
		beats, at, undecoded := decodeItems(items, func(b beatBody) presence.Beat { return b.queuedBeat(first, trace) })
		for i, beat := range beats {
			work.left = append(work.left, queuedBeat{from: m, index: at[i], text: string(items[at[i]]), beat: beat})
		}
		for _, u := range undecoded {
			work.reject(m, u.Index, string(items[u.Index]), errors.New(u.Detail))
		}
	}
	most, limit := retry.WithLimit(ctx)
	defer limit.End()
	waited := false
	err := beatBackoff.Do(most, q.Away, func() error {
		before := len(work.left)
		err := q.write(most, &work)
		if len(work.left) < before {
			limit.Partly()
		}
		if err != nil && !waited {
			waited = true
			logger(ctx).WarnContext(ctx, "heartbeats of a queue wait for a fault to pass and are tried again", "heartbeats", len(work.left), "error", err)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("%d heartbeats of %d messages wait: %w", len(work.left), len(batch), err)
	}
	err = rejectBackoff.Do(ctx, nil, func() error {
		return rejects.Send(ctx, q.Sender, queue.Heartbeats, work.bad, logger(ctx))
	})
	if err != nil {
		return err
	}
	// At last: the queue drops no duplicates, so a batch that fails after this would send these beats back twice.
	return rejectBackoff.Do(ctx, nil, func() error { return q.sendBack(ctx, work.later) })
}

const (
	// sentBackFor is how long a beat that was sent back stays away.
	sentBackFor = 2 * time.Second
	// firstEnqueued is the property of a beat that was sent back: when the broker took it in at first, RFC 3339.
	firstEnqueued = "firstEnqueuedAt"
)

// firstEnqueued is when the broker took in the beats of a message: for those that were sent back, at first.
func (m message) firstEnqueued() time.Time {
	text, _ := m.Properties[firstEnqueued].(string)
	if first := parseUTC(text); !first.IsZero() && first.Before(m.EnqueuedAt) {
		return first
	}
	return m.EnqueuedAt
}

// sendBack puts beats back on the queue by themselves: those of users whose state a later version wrote. Only a process
// of that version can apply them, and one takes messages from the same queue while the deploy lasts. If their batches
// waited for that instead, they would hold up all others. Each keeps its date, and is dropped when the session that it
// held would be over.
func (q HeartbeatQueue) sendBack(ctx context.Context, beats []queuedBeat) error {
	var messages []queue.Message
	for _, b := range beats {
		enqueued, first := b.from.EnqueuedAt, b.beat.Enqueued
		if enqueued.IsZero() { // the host did not say
			enqueued, first = b.beat.At, b.beat.At
		}
		if enqueued.Sub(first) >= *b.beat.TTL+b.beat.Grace {
			logger(ctx).WarnContext(ctx, "a heartbeat of a user whose state a later version wrote is dropped: no process of that version took it in time", "message_id", b.from.ID, "user", b.beat.User)
			continue
		}
		body := jsontext.Value(b.text)
		if err := body.Compact(); err != nil {
			return fmt.Errorf("send a heartbeat back: %w", err)
		}
		properties := map[string]any{firstEnqueued: first.UTC().Format(time.RFC3339Nano)}
		if b.beat.Traceparent != "" {
			properties[queue.Traceparent] = b.beat.Traceparent
		}
		messages = append(messages, queue.Message{
			ID:          rejects.Item{MessageID: b.from.ID, Sequence: b.from.Sequence, Index: b.index, Body: b.text}.ID(),
			ContentType: "application/json", Body: body, NotBefore: enqueued.Add(sentBackFor),
			Properties: properties,
		})
	}
	if len(messages) == 0 {
		return nil
	}
	if err := q.Sender.Send(ctx, queue.Heartbeats, messages); err != nil {
		return fmt.Errorf("send %d heartbeats back to %s: %w", len(messages), queue.Heartbeats, err)
	}
	return nil
}

// queuedBeat is a beat and where it came from.
type queuedBeat struct {
	from  message
	index int // among the heartbeats of its message
	text  string
	beat  presence.Beat
	// panics counts the calls with this beat alone that panicked.
	panics int
}

// maxPanics is how often that may be before the beat counts as one that can never succeed.
const maxPanics = 3

// panicError is a call that panicked.
type panicError struct{ cause any }

func (e *panicError) Error() string { return fmt.Sprintf("panicked: %v", e.cause) }

// hopeless reports whether a call with this beat alone, which failed with err, need not be tried again.
func (b *queuedBeat) hopeless(err error) bool {
	if e := (*panicError)(nil); errors.As(err, &e) {
		b.panics++
	}
	return b.panics == maxPanics || !fault.Passing(err)
}

// beatsAtWork are the beats of a batch on their way.
type beatsAtWork struct {
	left []queuedBeat
	size int // of the next call
	bad  []rejects.Item
	// later are beats that only another process can apply now: see sendBack.
	later []queuedBeat
}

func (w *beatsAtWork) reject(m message, index int, text string, reason error) {
	if gaveUp := deadLetterReason(m); gaveUp != "" {
		reason = fmt.Errorf("%w (the broker gave it up: %s)", reason, gaveUp)
	}
	w.bad = append(w.bad, rejects.Item{MessageID: m.ID, Sequence: m.Sequence, Index: index, Body: text, Reason: reason})
}

// write writes what is left, in order. What fails stays; calls become smaller then, and go on with what is behind it: it
// may be one beat alone that fails.
func (q HeartbeatQueue) write(ctx context.Context, w *beatsAtWork) error {
	var failed []queuedBeat
	var lastErr error
	for faults := 0; len(w.left) > 0 && faults < maxFaultyCalls; {
		n := min(w.size, len(w.left))
		chunk := w.left[:n]
		receipt, err := q.call(ctx, chunk)
		if err != nil && (ctx.Err() != nil || q.Away != nil && q.Away()) {
			w.left = append(failed, w.left...)
			return err
		}
		w.left = w.left[n:]
		switch {
		case err == nil:
			faults, w.size = 0, min(2*w.size, presence.MaxBatch)
			for _, r := range receipt.Rejected {
				b := chunk[r.Index]
				if fault.Passing(r.Err) {
					w.later = append(w.later, b)
					continue
				}
				w.reject(b.from, b.index, b.text, errors.New(detailOf(r.Err)))
			}
		case n == 1 && chunk[0].hopeless(err):
			w.reject(chunk[0].from, chunk[0].index, chunk[0].text, err)
		default:
			faults, w.size = faults+1, max(n/2, 1)
			failed, lastErr = append(failed, chunk...), err
		}
	}
	w.left = append(w.left, failed...)
	return lastErr
}

// call applies beats. A panic is a fault of these beats alone: the others of the batch go on.
func (q HeartbeatQueue) call(ctx context.Context, chunk []queuedBeat) (_ presence.BulkReceipt, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &panicError{p}
			logger(ctx).ErrorContext(ctx, "applying heartbeats of a queue panicked", "heartbeats", len(chunk), "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, beatsTimeout)
	defer cancel()
	beats := make([]presence.Beat, len(chunk))
	for i := range chunk {
		beats[i] = chunk[i].beat
	}
	receipt, err := q.Tracker.Heartbeats(ctx, beats)
	for i := range chunk {
		chunk[i].beat.TTL = beats[i].TTL // the default where it named none
	}
	return receipt, err
}
