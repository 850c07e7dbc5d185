// Package rejects puts aside what can never succeed: on the queue "<queue>-rejected", with its reason, where a person
// finds it. Whatever it is, its copy fits and is taken.
package rejects

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"unicode"
	"unicode/utf8"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/queue"
)

// Limits of a copy. A shortened one fits any queue: the least limit of Service Bus is 256 KB, tier Standard.
const (
	// maxReason bounds the reason, in bytes.
	maxReason = 1024
	// maxShortened is what is kept of a body that does not fit whole, in bytes.
	maxShortened = 64 << 10
	// maxOrigin is what of the rejected message's own id is at the front of the copy's, in bytes: an id has at most 128.
	maxOrigin = 64
)

// Item is one thing that can never succeed.
type Item struct {
	// MessageID is that of the message that it came in, "" where it has none. Senders may use one for several messages.
	MessageID string
	// Sequence is the broker's own number of that message, "" where it is not known.
	Sequence string
	// Index is its position in the message, 0 for the whole message.
	Index int
	Body  string
	// Reason says what is wrong with it.
	Reason error
}

// ID returns the MessageId of the copy. It is the same each time the item is rejected, and no other item has it. It
// begins with the MessageID of the item, so that both can be found together.
func (i Item) ID() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %d %q", i.MessageID, i.Sequence, i.Index, i.Body))
	return fmt.Sprintf("%s/%d/%s", cut(clean(i.MessageID), maxOrigin), i.Index, hex.EncodeToString(sum[:16]))
}

// Message returns the copy: the body as it came, and the reason.
func (i Item) Message() queue.Message {
	return queue.Message{
		ID: i.ID(), Subject: "rejected", ContentType: "text/plain; charset=utf-8", Body: []byte(i.Body),
		Properties: map[string]any{"reason": cut(clean(i.Reason.Error()), maxReason)},
	}
}

// Shortened returns the copy with the beginning of the body alone. The properties say so: shortened is true, and
// bodyBytes is the length of the whole body.
func (i Item) Shortened() queue.Message {
	m := i.Message()
	m.Body = []byte(cut(i.Body, maxShortened))
	m.Properties["shortened"], m.Properties["bodyBytes"] = true, int64(len(i.Body))
	return m
}

// clean makes a text that every broker takes: valid UTF-8 without control characters.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "\uFFFD"))
}

// cut returns the beginning of a text, at most so many bytes, and never a part of a character.
func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	for most > 0 && !utf8.RuneStart(text[most]) {
		most--
	}
	return text[:most]
}

// sender puts messages on a queue: all of them, or it returns an error. Sending the same ids again is harmless.
type sender interface {
	Send(ctx context.Context, queue string, msgs []queue.Message) error
}

// Send puts items aside that came from a queue. An error passes: none is put aside for good yet, and all may be sent
// again. What the queue does not take whole is sent shortened.
func Send(ctx context.Context, s sender, from string, items []Item, log *slog.Logger) error {
	if len(items) == 0 {
		return nil
	}
	name := from + queue.RejectedSuffix
	messages := make([]queue.Message, len(items))
	for i, item := range items {
		messages[i] = item.Message()
	}
	err := s.Send(ctx, name, messages)
	if err != nil && !fault.Passing(err) { // of one of them
		err = eachAlone(ctx, s, name, items, log)
	}
	if err != nil {
		return fmt.Errorf("send %d items to %s: %w", len(items), name, err)
	}
	for _, item := range items {
		log.WarnContext(ctx, "rejected", "queue", from, "message_id", item.MessageID, "item", item.Index, "reason", item.Reason, "kept_as", item.ID())
	}
	return nil
}

// eachAlone sends each item by itself: whole, or shortened where the queue does not take it whole.
func eachAlone(ctx context.Context, s sender, name string, items []Item, log *slog.Logger) error {
	for _, item := range items {
		err := s.Send(ctx, name, []queue.Message{item.Message()})
		if err != nil && !fault.Passing(err) {
			err = s.Send(ctx, name, []queue.Message{item.Shortened()})
		}
		switch {
		case err == nil:
		case fault.Passing(err):
			return err
		default: // there is no smaller copy, and trying again cannot help: the log is the last place for it
			log.ErrorContext(ctx, "a rejected item cannot be kept", "queue", name, "message_id", item.MessageID, "item", item.Index,
				"reason", item.Reason, "error", err, "body", cut(clean(item.Body), maxReason))
		}
	}
	return nil
}
