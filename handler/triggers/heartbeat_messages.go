package triggers

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/go-json-experiment/json/jsontext"

	"userconnectivity/handler/presence"
	"userconnectivity/handler/queue"
)

// sender puts messages on a queue: all of them, or it returns an error.
type sender interface {
	Send(ctx context.Context, queue string, msgs []queue.Message) error
}

// HeartbeatQueue is the function HeartbeatMessages: beats that come over the queue "heartbeats". A message is
// one heartbeat or an array of up to presence.MaxBatch. It is dated by when the broker enqueued it.
type HeartbeatQueue struct {
	Tracker     beater
	Sender      sender
	MaxDelivery int
}

// rejected is an item that can never succeed, on its way to the queue heartbeats-rejected.
type rejected struct {
	message message
	index   int
	item    string
	reason  error
}

func (q HeartbeatQueue) serve(w http.ResponseWriter, r *http.Request) {
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
	if err := q.apply(r.Context(), batch); err != nil {
		fail(w, r, err)
		return
	}
	succeed(w)
}

// apply applies the beats of a batch. A passing fault fails the batch; what was applied already is stale or
// renewed once more the next time. An item that cannot succeed is put aside with its reason.
func (q HeartbeatQueue) apply(ctx context.Context, batch []message) error {
	var bad []rejected
	var faults []error
	for _, m := range batch {
		items, err := splitBeats(m.Body)
		if err != nil {
			bad = append(bad, rejected{message: m, item: m.Body, reason: err})
			continue
		}
		beats, at, undecoded := decodeItems(items, func(b beatBody) presence.Beat { return b.queuedBeat(m.EnqueuedAt) })
		for _, u := range undecoded {
			bad = append(bad, rejected{m, u.Index, string(items[u.Index]), errors.New(u.Detail)})
		}
		receipt, err := q.Tracker.Heartbeats(ctx, beats)
		switch {
		case err != nil && m.Delivery >= q.MaxDelivery:
			bad = append(bad, rejected{message: m, item: m.Body, reason: fmt.Errorf("failed at its last delivery, number %d: %w", m.Delivery, err)})
		case err != nil:
			faults = append(faults, err)
		}
		for _, refused := range rejections(receipt.Rejected, at) {
			bad = append(bad, rejected{m, refused.Index, string(items[refused.Index]), errors.New(refused.Detail)})
		}
	}
	if err := q.reject(ctx, bad); err != nil {
		return err
	}
	if len(faults) > 0 {
		return fmt.Errorf("%d of %d messages failed: %w", len(faults), len(batch), faults[0])
	}
	return nil
}

// splitBeats returns the heartbeats of a message.
func splitBeats(body string) ([]jsontext.Value, error) {
	if !strings.HasPrefix(strings.TrimLeft(body, " \t\r\n"), "[") {
		return []jsontext.Value{jsontext.Value(body)}, nil
	}
	var items []jsontext.Value
	if err := unmarshal([]byte(body), &items); err != nil {
		return nil, errors.New(detailOf(err))
	}
	if err := checkCount("", len(items), true); err != nil {
		return nil, errors.New(detailOf(err))
	}
	return items, nil
}

// maxRejectedID leaves room for the position of an item in the 128 characters of a MessageId.
const maxRejectedID = 120

func (q HeartbeatQueue) reject(ctx context.Context, bad []rejected) error {
	if len(bad) == 0 {
		return nil
	}
	messages := make([]queue.Message, len(bad))
	for i, b := range bad {
		logger(ctx).WarnContext(ctx, "heartbeat message rejected", "message_id", b.message.ID, "item", b.index, "reason", b.reason)
		id := b.message.ID
		if len(id) > maxRejectedID {
			id = digest(id)
		}
		messages[i] = queue.Rejected(fmt.Sprintf("%s/%d", id, b.index), []byte(b.item), b.reason)
	}
	name := queue.Heartbeats + queue.RejectedSuffix
	if err := q.Sender.Send(ctx, name, messages); err != nil {
		return fmt.Errorf("send %d items to %s: %w", len(messages), name, err)
	}
	return nil
}
