package queue

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/cloudevents/sdk-go/v2/event"

	"userconnectivity/handler/presence"
)

// ContentType of a message that carries an event: a CloudEvents 1.0 structured message.
// See https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/amqp-protocol-binding.md#32-structured-content-mode.
const ContentType = "application/cloudevents+json; charset=utf-8"

// Codec turns events into messages and back.
type Codec struct {
	// Source is the CloudEvents source, "/<app>".
	Source string
	// TypePrefix is in front of the event type in the CloudEvent, for example "userconnectivity.".
	TypePrefix string
}

// data is the payload of the CloudEvent.
type data struct {
	User       string                  `json:"user,omitempty"`
	Session    string                  `json:"session,omitempty"`
	Key        string                  `json:"key,omitempty"`
	Epoch      int64                   `json:"epoch"`
	Reason     presence.Reason         `json:"reason"`
	Deadline   *time.Time              `json:"deadline"`
	Groups     []string                `json:"groups"`
	Sessions   []presence.EventSession `json:"sessions"`
	Meta       json.RawMessage         `json:"meta,omitempty"`
	LastSeen   *time.Time              `json:"lastSeen,omitempty"`
	Life       string                  `json:"life,omitempty"`
	Generation int64                   `json:"generation"`
}

// replayExtension is the CloudEvents attribute that counts the replays of an event.
const replayExtension = "replay"

// Encode makes the message of an event. replay is 0 for the event itself; a replay has a MessageId of its
// own, "<id>:r<n>", which duplicate detection lets through.
func (c Codec) Encode(e presence.Event, replay int) (Message, error) {
	ce := event.New()
	ce.SetID(e.ID)
	ce.SetType(c.TypePrefix + string(e.Type))
	ce.SetSource(c.Source)
	ce.SetSubject(cmp.Or(e.User, printable(e.Key)))
	ce.SetTime(e.DetectedAt)
	ce.SetExtension("traceparent", e.Traceparent)
	id := e.ID
	if replay > 0 {
		ce.SetExtension(replayExtension, int32(replay))
		id += ":r" + strconv.Itoa(replay)
	}
	err := ce.SetData(event.ApplicationJSON, data{
		User: e.User, Session: e.Session, Key: e.Key, Epoch: e.Epoch, Reason: e.Reason, Deadline: optional(e.Deadline),
		Groups: notNil(e.Groups), Sessions: notNil(e.Sessions), Meta: e.Meta, LastSeen: optional(e.LastSeen),
		Life: e.Life, Generation: e.Generation,
	})
	if err != nil {
		return Message{}, fmt.Errorf("encode the data of event %s: %w", e.ID, err)
	}
	body, err := json.Marshal(ce)
	if err != nil {
		return Message{}, fmt.Errorf("encode event %s: %w", e.ID, err)
	}
	m := Message{
		ID: id, Subject: string(e.Type), SessionID: e.User, ContentType: ContentType, Body: body,
		Properties: map[string]any{"type": string(e.Type), "user": e.User, "epoch": e.Epoch, "reason": string(e.Reason)},
	}
	if e.Type == presence.KeyExpired {
		m.SessionID = presence.PartitionKey(e.Key) // a key may be longer than a SessionId
		m.Properties["key"] = e.Key
		delete(m.Properties, "user")
	}
	if replay > 0 {
		m.Properties[replayExtension] = int64(replay)
	}
	return m, nil
}

// printable replaces the characters that no attribute of a CloudEvent may have.
func printable(key string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return utf8.RuneError
		}
		return r
	}, key)
}

// Decode reads a transition of a user and the number of its replay from the body of a message. The error says what is
// wrong with a message that can never be read; the event's ID is set even then, if it could be read.
func (c Codec) Decode(body []byte) (e presence.Event, replay int, err error) {
	var ce event.Event
	if err := json.Unmarshal(body, &ce); err != nil {
		return e, 0, fmt.Errorf("not a CloudEvent: %w", err)
	}
	e.ID = ce.ID()
	if err := ce.Validate(); err != nil {
		return e, 0, fmt.Errorf("not a valid CloudEvent: %w", err)
	}
	name, ours := strings.CutPrefix(ce.Type(), c.TypePrefix)
	e.Type = presence.EventType(name)
	if !ours || !e.Type.Valid() {
		return e, 0, fmt.Errorf("unknown event type %q", ce.Type())
	}
	var d data
	if err := ce.DataAs(&d); err != nil {
		return e, 0, fmt.Errorf("data cannot be read: %w", err)
	}
	pk, ok := presence.PartitionKeyOf(e.ID)
	switch {
	case !ok || pk != presence.PartitionKey(d.User):
		return e, 0, errors.New("id is not one of an event of data.user")
	case presence.CheckID(d.User) != "":
		return e, 0, errors.New("data.user " + presence.CheckID(d.User))
	case presence.CheckID(d.Session) != "":
		return e, 0, errors.New("data.session " + presence.CheckID(d.Session))
	case d.Epoch <= 0:
		return e, 0, errors.New("data.epoch must be above 0")
	case !d.Reason.Valid():
		return e, 0, fmt.Errorf("unknown data.reason %q", d.Reason)
	}
	e.User, e.Session, e.Epoch, e.Reason = d.User, d.Session, d.Epoch, d.Reason
	e.Groups, e.Sessions, e.Meta, e.Life, e.Generation = d.Groups, d.Sessions, d.Meta, d.Life, d.Generation
	e.DetectedAt = ce.Time().UTC()
	if d.Deadline != nil {
		e.Deadline = d.Deadline.UTC()
	}
	if d.LastSeen != nil {
		e.LastSeen = d.LastSeen.UTC()
	}
	e.Traceparent, _ = ce.Extensions()["traceparent"].(string)
	if v, ok := ce.Extensions()[replayExtension]; ok {
		if n, ok := v.(int32); ok && n > 0 {
			replay = int(n)
		}
	}
	return e, replay, nil
}

func optional(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// notNil makes an absent list [] in JSON, not null.
func notNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
