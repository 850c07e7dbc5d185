package triggers

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"userconnectivity/handler/fault"
)

// This file is the envelope: how the host hands over what is not HTTP, and how it wants its answer.
// See docs/host-contract.md.

// maxEnvelope bounds an envelope, in bytes: a full batch of the largest messages of the standard tier, escaped twice.
const maxEnvelope = 100 << 20

// envelope is the body of an invocation that is not HTTP.
type envelope struct {
	Data     map[string]json.RawMessage
	Metadata map[string]json.RawMessage
}

func readEnvelope(w http.ResponseWriter, r *http.Request) (envelope, error) {
	var e envelope
	body, err := bodyOf(r, maxEnvelope)
	if err != nil {
		return e, err
	}
	if err := json.Unmarshal(body, &e); err != nil {
		return e, notAnInvocation(err)
	}
	return e, nil
}

func notAnInvocation(err error) error {
	return &fault.Error{Kind: fault.Invalid, Message: "the body is not an invocation of the Functions host", Err: err}
}

// list decodes a value that holds an array. The host writes it as a string that holds the JSON of the array;
// a plain array is taken too.
func list(raw json.RawMessage) ([]json.RawMessage, error) {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		raw = json.RawMessage(text)
	}
	var items []json.RawMessage
	if err := json.Unmarshal(raw, &items); err != nil {
		return nil, fmt.Errorf("not an array: %w", err)
	}
	return items, nil
}

// message is one message of a queue batch.
type message struct {
	Body string
	// ID is the broker's MessageId; one made from the body where the host passed none on.
	ID string
	// Sequence is the broker's own number of the message, "" where the host passed none on.
	Sequence   string
	Delivery   int
	EnqueuedAt time.Time
	Properties map[string]any
}

// messages decodes a batch of queue messages: binding "messages" with cardinality many and dataType string.
// The arrays in Metadata come from the broker alone, so they can be trusted, unlike the metadata of a single
// message, which the keys of its body overwrite.
func (e envelope) messages() ([]message, error) {
	raw, ok := e.Data["messages"]
	if !ok {
		return nil, notAnInvocation(errors.New("it has no binding called messages"))
	}
	bodies, err := list(raw)
	if err != nil {
		return nil, notAnInvocation(fmt.Errorf("read the messages: %w", err))
	}
	batch := make([]message, len(bodies))
	for i, b := range bodies {
		batch[i].Delivery = 1
		if json.Unmarshal(b, &batch[i].Body) != nil {
			batch[i].Body = string(b)
		}
	}
	spread(e, "MessageIdArray", batch, func(m *message, v string) { m.ID = v })
	spread(e, "SequenceNumberArray", batch, func(m *message, v json.Number) { m.Sequence = v.String() })
	spread(e, "DeliveryCountArray", batch, func(m *message, v int) { m.Delivery = max(v, 1) })
	spread(e, "EnqueuedTimeUtcArray", batch, func(m *message, v string) { m.EnqueuedAt = parseUTC(v) })
	spread(e, "ApplicationPropertiesArray", batch, func(m *message, v map[string]any) { m.Properties = v })
	for i := range batch {
		if batch[i].ID == "" {
			batch[i].ID = "unknown-" + digest(batch[i].Body)
		}
	}
	return batch, nil
}

// digest stands for a text where an id is needed: 32 characters.
func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:16])
}

// spread gives each message its element of an array in Metadata. What is missing or of another type is left out.
func spread[T any](e envelope, name string, batch []message, set func(*message, T)) {
	values, err := list(e.Metadata[name])
	if err != nil {
		return
	}
	for i := range min(len(values), len(batch)) {
		var v *T
		if json.Unmarshal(values[i], &v) == nil && v != nil {
			set(&batch[i], *v)
		}
	}
}

// parseUTC reads the host's times, with or without a zone; those without are UTC. Zero for what is none.
func parseUTC(s string) time.Time {
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC()
		}
	}
	return time.Time{}
}

// invocationReply is what the host takes as success: it must never be empty or null, or the invocation hangs.
type invocationReply struct {
	Outputs     map[string]any
	Logs        []string
	ReturnValue any
}

// succeed ends an invocation that is not HTTP; the lines go to the function's log.
func succeed(w http.ResponseWriter, lines ...string) {
	if lines == nil {
		lines = []string{}
	}
	reply(w, http.StatusOK, invocationReply{Outputs: map[string]any{}, Logs: lines})
}
