package queue

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"userconnectivity/handler/jsonform"
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

// cloudEvent is the body of a message. One library writes and reads it, and keeps every JSON value of data as it is:
// numbers of any size too, which the CloudEvents SDK cannot read.
type cloudEvent struct {
	SpecVersion     string         `json:"specversion"`
	ID              string         `json:"id"`
	Source          string         `json:"source"`
	Type            string         `json:"type"`
	Subject         string         `json:"subject,omitempty"`
	Time            string         `json:"time,omitempty"`
	DataContentType string         `json:"datacontenttype,omitempty"`
	Traceparent     string         `json:"traceparent,omitempty"`
	Replay          jsontext.Value `json:"replay,omitzero"`
	Data            jsontext.Value `json:"data,omitzero"`
	DataBase64      string         `json:"data_base64,omitempty"`
}

// data is the payload of the CloudEvent: what the event tells, but for detectedAt, which is the CloudEvent's time.
type data struct {
	presence.Subject
	presence.Body
	Generation int64 `json:"generation"` // always there; it takes the place of the one in the body
}

// replayName is the CloudEvents attribute, and the property of the message, that counts the replays of an event.
const replayName = "replay"

// Traceparent is the property of a message that tells its W3C trace context. For an event it is the same as the
// CloudEvents attribute.
const Traceparent = "traceparent"

// Encode makes the message of an event. replay is 0 for the event itself; a replay has a MessageId of its
// own, "<id>:r<n>", which duplicate detection lets through. Times have three digits of milliseconds.
func (c Codec) Encode(e presence.Event, replay int) (Message, error) {
	told := data{Subject: e.Subject, Body: e.WithLists(), Generation: e.Generation}
	told.DetectedAt = time.Time{}
	payload, err := json.Marshal(told, jsonform.Sent)
	if err != nil {
		return Message{}, fmt.Errorf("encode the data of event %s: %w", e.ID, err)
	}
	ce := cloudEvent{
		SpecVersion: "1.0", ID: e.ID, Source: c.Source, Type: c.TypePrefix + string(e.Type), Subject: printable(e.Name()),
		DataContentType: "application/json", Traceparent: e.Traceparent, Data: payload,
	}
	if !e.DetectedAt.IsZero() {
		ce.Time = presence.FormatTime(e.DetectedAt)
	}
	id := e.ID
	if replay > 0 {
		ce.Replay = jsontext.Value(strconv.Itoa(replay))
		id += replayMark + strconv.Itoa(replay)
	}
	body, err := json.Marshal(ce, jsonform.Sent)
	if err != nil {
		return Message{}, fmt.Errorf("encode event %s: %w", e.ID, err)
	}
	m := Message{
		ID: id, Subject: string(e.Type), SessionID: e.User, ContentType: ContentType, Body: body,
		Properties: map[string]any{"type": string(e.Type), "user": e.User, "epoch": e.Epoch, "reason": string(e.Reason)},
	}
	if e.Traceparent != "" {
		m.Properties[Traceparent] = e.Traceparent
	}
	if e.Type == presence.KeyExpired {
		m.SessionID = presence.PartitionKey(e.Key) // a key may be longer than a SessionId
		m.Properties["key"] = e.Key
		delete(m.Properties, "user")
	}
	if replay > 0 {
		m.Properties[replayName] = int64(replay)
	}
	return m, nil
}

// replayMark is between the event's id and the number of the replay in a MessageId.
const replayMark = ":r"

// ParseMessageID returns the event id and the number of the replay that a MessageId made by Encode tells.
func ParseMessageID(messageID string) (id string, replay int) {
	id, number, _ := strings.Cut(messageID, replayMark)
	if n, err := strconv.Atoi(number); err == nil && n > 0 {
		replay = n
	}
	return id, replay
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

// Decode reads an event and the number of its replay from the body of a message. The error says what is wrong with a
// message that can never be read; the event's ID and the replay are set even then, if they could be read.
//
// What a later version adds is no fault: members that are not known are left out, a reason is taken as it is, and an
// event of a type of ours that is not known, whose Type is not Valid, has what could be read of it.
func (c Codec) Decode(body []byte) (e presence.Event, replay int, err error) {
	var ce cloudEvent
	if err := json.Unmarshal(body, &ce, jsonform.Sent); err != nil {
		return e, 0, fmt.Errorf("not a CloudEvent: %w", err)
	}
	e.ID = ce.ID
	if n, err := strconv.Atoi(string(ce.Replay)); err == nil && n > 0 {
		replay = n
	}
	if ce.SpecVersion == "" || ce.ID == "" || ce.Source == "" || ce.Type == "" {
		return e, replay, errors.New("not a valid CloudEvent: it lacks specversion, id, source or type")
	}
	name, ours := strings.CutPrefix(ce.Type, c.TypePrefix)
	if !ours {
		return e, replay, fmt.Errorf("unknown event type %.200q: those of this app begin with %q", ce.Type, c.TypePrefix)
	}
	e.Type, e.Traceparent = presence.EventType(name), ce.Traceparent
	if ce.Time != "" {
		if e.DetectedAt, err = jsonform.ParseTime(ce.Time); err != nil {
			return e, replay, err
		}
	}
	err = c.decodeData(ce, &e)
	if !e.Type.Valid() {
		err = nil
	}
	return e, replay, err
}

// decodeData fills in what the payload tells.
func (c Codec) decodeData(ce cloudEvent, e *presence.Event) error {
	payload := []byte(ce.Data)
	if payload == nil {
		var err error
		if payload, err = base64.StdEncoding.DecodeString(ce.DataBase64); err != nil || len(payload) == 0 {
			return errors.New("it has no data")
		}
	}
	var d data
	if err := json.Unmarshal(payload, &d, jsonform.Sent); err != nil {
		return fmt.Errorf("data cannot be read: %w", err)
	}
	d.DetectedAt, d.Body.Generation = e.DetectedAt, d.Generation
	if string(d.Meta) == "null" {
		d.Meta = nil
	}
	e.Subject, e.Body = d.Subject, d.Body
	pk, ok := presence.PartitionKeyOf(e.ID)
	switch {
	case !ok || pk != presence.PartitionKey(d.User):
		return errors.New("id is not one of an event of data.user")
	case presence.CheckID(d.User) != "":
		return errors.New("data.user " + presence.CheckID(d.User))
	case presence.CheckID(d.Session) != "":
		return errors.New("data.session " + presence.CheckID(d.Session))
	case d.Epoch <= 0:
		return errors.New("data.epoch must be above 0")
	case d.Reason == "":
		return errors.New("data.reason is missing")
	}
	return nil
}
