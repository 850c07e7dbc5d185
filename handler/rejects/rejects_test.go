package rejects_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"unicode/utf8"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/queue"
	"userconnectivity/handler/rejects"
)

// broker takes messages up to a size, and nothing while it has a fault.
type broker struct {
	limit int
	fault error
	kept  map[string]queue.Message
	sends int
}

func (b *broker) Send(_ context.Context, name string, messages []queue.Message) error {
	if b.fault != nil {
		return b.fault
	}
	var refused error
	for _, m := range messages {
		b.sends++
		if len(m.Body) > b.limit {
			refused = &fault.Error{Kind: fault.Invalid, Message: "too large for the queue"}
			continue
		}
		b.kept[name+" "+m.ID] = m
	}
	return refused
}

// TestCopiesFit: every item is kept, whatever its size, with a reason that is whole characters.
func TestCopiesFit(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	b := &broker{limit: 200 << 10, kept: map[string]queue.Message{}}
	items := []rejects.Item{
		{MessageID: "small", Body: "junk", Reason: errors.New("is junk")},
		{MessageID: "large", Body: strings.Repeat("é", 128<<10), Reason: errors.New("a" + strings.Repeat("é", 1000))},
		{MessageID: "odd", Body: "a\xff\x00", Reason: errors.New("bad \xff text\nof two lines")},
	}
	for range 2 {
		if err := rejects.Send(t.Context(), b, "beats", items, slog.New(slog.NewTextHandler(&log, nil))); err != nil {
			t.Fatal(err)
		}
	}
	if len(b.kept) != 3 {
		t.Fatalf("kept %d", len(b.kept))
	}
	for _, item := range items {
		m := b.kept["beats-rejected "+item.ID()]
		reason, _ := m.Properties["reason"].(string)
		if m.Subject != "rejected" || reason == "" || len(reason) > 1024 || !utf8.ValidString(reason) || strings.Contains(reason, "\n") || !strings.HasPrefix(m.ID, item.MessageID+"/") {
			t.Errorf("%s: %.200s %v", item.MessageID, m.ID, m.Properties)
		}
		if item.MessageID != "large" {
			if string(m.Body) != item.Body || m.Properties["shortened"] != nil {
				t.Errorf("%s: %.100q %v", item.MessageID, m.Body, m.Properties)
			}
			continue
		}
		if m.Properties["shortened"] != true || m.Properties["bodyBytes"] != int64(256<<10) || !utf8.Valid(m.Body) || len(m.Body) < 60<<10 || !strings.HasPrefix(item.Body, string(m.Body)) {
			t.Errorf("%s: %d bytes, %v", item.MessageID, len(m.Body), m.Properties)
		}
		if !utf8.ValidString(reason) || !strings.HasPrefix(reason, "aé") {
			t.Errorf("reason %q", reason)
		}
	}
	if !strings.Contains(log.String(), "message_id=large") {
		t.Errorf("nobody is told: %s", &log)
	}
}

// TestIDs: no two items share an id, and one item has always the same.
func TestIDs(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ü", 128)
	items := []rejects.Item{
		{},
		{Body: "b"},
		{Index: 1},
		{Sequence: "1"},
		{Sequence: "11"},
		{Sequence: "1", Index: 1},
		{MessageID: "a"},
		{MessageID: "a", Index: 1},
		{MessageID: "a", Index: 10},
		{MessageID: "a/1"},
		{MessageID: "a/1", Index: 1},
		{MessageID: "a", Body: "b"},
		{MessageID: "a", Sequence: "7", Body: "b"},
		{MessageID: "a", Sequence: "8", Body: "b"},
		{MessageID: long},
		{MessageID: long, Body: "b"},
		{MessageID: long + "x"},
		{MessageID: "\xff"},
		{MessageID: "\xfe"},
		{MessageID: "a\n"},
		{MessageID: "a "},
	}
	seen := map[string]rejects.Item{}
	for _, item := range items {
		id := item.ID()
		if other, taken := seen[id]; taken {
			t.Errorf("%+v and %+v share %s", item, other, id)
		}
		seen[id] = item
		if id != item.ID() || len(id) > 128 || !utf8.ValidString(id) {
			t.Errorf("id %q", id)
		}
	}
}

// TestPassingFaults are returned; a copy that no form helps is told of, and holds up nobody.
func TestPassingFaults(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	items := []rejects.Item{{MessageID: "m", Body: "junk", Reason: errors.New("is junk")}}
	b := &broker{limit: 1 << 20, kept: map[string]queue.Message{}, fault: errors.New("401: the role is not granted yet")}
	if err := rejects.Send(t.Context(), b, "beats", items, logger); !errors.Is(err, b.fault) || !strings.Contains(err.Error(), "beats-rejected") {
		t.Errorf("%v", err)
	}
	if log.Len() != 0 {
		t.Errorf("told of what did not happen: %s", &log)
	}
	b.fault = fmt.Errorf("send: %w", &fault.Error{Kind: fault.Invalid, Message: "no"})
	if err := rejects.Send(t.Context(), b, "beats", items, logger); err != nil || !strings.Contains(log.String(), "cannot be kept") || !strings.Contains(log.String(), "body=junk") {
		t.Errorf("%v: %s", err, &log)
	}
	if err := rejects.Send(t.Context(), b, "beats", nil, logger); err != nil {
		t.Errorf("nothing to send: %v", err)
	}
}
