package servicebus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/queue"
)

// maxID is the greatest length of a MessageId and a SessionId in Service Bus, in characters.
const maxID = 128

// maxBatch bounds the messages of one batch; Service Bus takes a few thousand, a throttled one takes fewer.
const maxBatch = 1000

// TooLargeError is returned by Send for messages that the queue can never take. All other messages of the call
// were sent.
type TooLargeError struct {
	Queue    string
	Messages []TooLarge
}

// TooLarge is one message that is too large: its id, and its size in bytes as encoded for the queue.
type TooLarge struct {
	ID   string
	Size int64
}

// ErrorKind tells that the same messages can never be sent.
func (e *TooLargeError) ErrorKind() fault.Kind { return fault.Invalid }

func (e *TooLargeError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "send to queue %s: too large for the queue: ", e.Queue)
	for i, m := range e.Messages {
		if i == 10 {
			fmt.Fprintf(&b, " and %d more", len(e.Messages)-i)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "message %s of %d bytes", m.ID, m.Size)
	}
	return b.String()
}

// refuse makes the error of a message that no queue takes, however often it is sent.
func refuse(format string, args ...any) error {
	return &fault.Error{Kind: fault.Invalid, Message: fmt.Sprintf(format, args...)}
}

// convert checks all messages before any is sent. The result shares nothing with msgs, so that an attempt which
// was given up cannot race with a caller who uses them again.
func convert(msgs []queue.Message) ([]*azservicebus.Message, error) {
	out := make([]*azservicebus.Message, len(msgs))
	for i, m := range msgs {
		// Without an id the client would make one up for each attempt, and a repetition would be a new message.
		if m.ID == "" {
			return nil, refuse("message %d of %d has no id", i+1, len(msgs))
		}
		if utf8.RuneCountInString(m.ID) > maxID || utf8.RuneCountInString(m.SessionID) > maxID {
			return nil, refuse("message %d of %d: its id or session id is longer than %d characters", i+1, len(msgs), maxID)
		}
		for _, text := range []string{m.ID, m.Subject, m.SessionID, m.ContentType} {
			if !utf8.ValidString(text) {
				return nil, refuse("message %d of %d: %q is not UTF-8", i+1, len(msgs), text)
			}
		}
		properties := make(map[string]any, len(m.Properties))
		for name, value := range m.Properties {
			switch v := value.(type) {
			case int64, bool:
				properties[name] = v
			case string:
				if !utf8.ValidString(name) || !utf8.ValidString(v) {
					return nil, refuse("message %s: property %q is not UTF-8", m.ID, name)
				}
				properties[name] = v
			default:
				return nil, refuse("message %s: property %s is a %T; only string, int64 and bool can be sent", m.ID, name, value)
			}
		}
		out[i] = &azservicebus.Message{
			MessageID:             &m.ID,
			Subject:               optional(m.Subject),
			SessionID:             optional(m.SessionID),
			ContentType:           optional(m.ContentType),
			ApplicationProperties: properties,
			Body:                  bytes.Clone(m.Body),
		}
		if at := m.NotBefore; !at.IsZero() {
			out[i].ScheduledEnqueueTime = &at
		}
	}
	return out, nil
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// sent is what one attempt sent: the first n messages, in one batch. With tooLarge the first message cannot be
// sent at all, and n is 1.
type sent struct {
	n        int
	tooLarge *TooLarge
}

// errTooMuch means that the broker refused what should have fit. It may count differently; and it detaches the link,
// so that this may be the answer to somebody else's message.
var errTooMuch = errors.New("the broker refused the size")

// sendFirst sends as many of the first messages as fit into one batch, at most limit.
func sendFirst(ctx context.Context, to *azservicebus.Sender, msgs []*azservicebus.Message, limit int) (sent, error) {
	batch, err := to.NewMessageBatch(ctx, nil) // no I/O on an open link
	if err != nil {
		return sent{}, err
	}
	n := 0
	for n < len(msgs) && n < limit {
		err := batch.AddMessage(msgs[n], nil)
		if errors.Is(err, azservicebus.ErrMessageTooLarge) {
			break
		}
		if err != nil {
			return sent{}, fmt.Errorf("encode message %s: %w", *msgs[n].MessageID, err)
		}
		n++
	}
	if n > 1 {
		err = to.SendMessageBatch(ctx, batch, nil)
	} else { // without the overhead of a batch, and some queues take a larger message alone
		err = to.SendMessage(ctx, msgs[0], nil)
	}
	if !isSizeExceeded(err) {
		return sent{n: max(n, 1)}, err
	}
	if n == 0 {
		return sent{n: 1, tooLarge: &TooLarge{ID: *msgs[0].MessageID, Size: encodedSize(ctx, to, msgs[0])}}, nil
	}
	return sent{n: n}, fmt.Errorf("%w: %w", errTooMuch, err)
}

// encodedSize is the size of a message with its properties in bytes, its body alone when that cannot be told.
func encodedSize(ctx context.Context, to *azservicebus.Sender, m *azservicebus.Message) int64 {
	batch, err := to.NewMessageBatch(ctx, &azservicebus.MessageBatchOptions{MaxBytes: math.MaxInt64})
	if err != nil || batch.AddMessage(m, nil) != nil {
		return int64(len(m.Body))
	}
	return int64(batch.NumBytes())
}
