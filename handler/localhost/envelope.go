package localhost

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Layouts of times inside an envelope: single values lose their fraction, values in arrays keep it.
const (
	layoutUTC         = "2006-01-02T15:04:05"
	layoutOffset      = "2006-01-02T15:04:05-07:00"
	layoutArrayUTC    = "2006-01-02T15:04:05.9999999Z"
	layoutArrayOffset = "2006-01-02T15:04:05.9999999-07:00"
)

// never is when a message expires whose time to live has no bound.
var never = time.Date(9999, 12, 31, 23, 59, 59, 999999900, time.UTC)

// plain is a string that the Functions host does not encode a second time: base64 and single times.
type plain string

// envelope is the body of a call that is not HTTP: {"Data":{...},"Metadata":{...}}.
type envelope struct {
	Data     map[string]any
	Metadata map[string]any
}

// newEnvelope starts the envelope of a call of f with the value of its trigger.
func newEnvelope(f *function, value any, now time.Time) envelope {
	return envelope{
		Data: map[string]any{f.trigger.Name: encodeValue(value)},
		Metadata: map[string]any{"sys": map[string]string{
			"MethodName": f.name,
			"UtcNow":     now.UTC().Format(layoutArrayUTC),
			"RandGuid":   uuid.NewString(),
		}},
	}
}

func (e envelope) set(name string, value any) { e.Metadata[name] = encodeValue(value) }

func (e envelope) json() []byte {
	return marshal(map[string]any{"Data": e.Data, "Metadata": e.Metadata})
}

// encodeValue encodes one value of an envelope: a JSON object stays one, bytes become base64, and everything
// else becomes a string that holds its JSON text, so that readers have to decode it twice.
func encodeValue(v any) any {
	switch v := v.(type) {
	case plain:
		return string(v)
	case []byte:
		return base64.StdEncoding.EncodeToString(v)
	}
	text := marshal(v)
	if text[0] == '{' {
		return json.RawMessage(text)
	}
	return string(text)
}

// marshal is json.Marshal without the escapes of HTML characters, which the Functions host does not make.
// Every value here is one that JSON can hold.
func marshal(v any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(fmt.Sprintf("encode envelope: %v", err))
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// messageEnvelope is the envelope of a call of f with one message.
func messageEnvelope(f *function, m message, lockToken string, now time.Time) envelope {
	value := any(m.Body)
	if f.trigger.DataType != "binary" {
		value = string(m.Body)
	}
	e := newEnvelope(f, value, now)
	e.setClient()
	at := m.EnqueuedAt.UTC()
	e.set("DeliveryCount", m.DeliveryCount)
	e.set("LockToken", lockToken)
	e.set("SequenceNumber", m.Sequence)
	e.set("ExpiresAtUtc", plain(never.Format(layoutUTC)))
	e.set("ExpiresAt", plain(never.Format(layoutOffset)))
	e.set("EnqueuedTimeUtc", plain(at.Format(layoutUTC)))
	e.set("EnqueuedTime", plain(at.Format(layoutOffset)))
	e.set("MessageId", m.ID)
	for name, text := range map[string]string{
		"ContentType": m.ContentType, "Subject": m.Subject, "Label": m.Subject,
		"SessionId": m.SessionID, "PartitionKey": m.SessionID,
	} {
		if text != "" { // null values are left out
			e.set(name, text)
		}
	}
	e.set("ApplicationProperties", m.properties())
	e.set("UserProperties", m.properties())
	if f.trigger.DataType != "binary" {
		e.leak(m.Body)
	}
	return e
}

// leak lays the members of a body that is a JSON object over the metadata, as the Functions host does: only
// members that are neither null nor an array count, and objects stay objects.
func (e envelope) leak(body []byte) {
	var members map[string]json.RawMessage
	if json.Unmarshal(body, &members) != nil {
		return
	}
	for name, value := range members {
		for known := range e.Metadata {
			if strings.EqualFold(known, name) {
				name = known
			}
		}
		var text string
		switch {
		case value[0] == '[' || string(value) == "null" || strings.HasSuffix(strings.ToLower(name), "trigger"):
		case value[0] == '{':
			e.set(name, value)
		case json.Unmarshal(value, &text) == nil:
			e.set(name, text)
		case string(value) == "true":
			e.set(name, "True") // the text of a .NET boolean
		case string(value) == "false":
			e.set(name, "False")
		default:
			e.set(name, string(value))
		}
	}
}

// batchEnvelope is the envelope of a call of f with several messages: one array per property, in one order.
func batchEnvelope(f *function, batch []message, lockToken string, now time.Time) envelope {
	bodies := make([]any, len(batch))
	columns := map[string][]any{}
	for i, m := range batch {
		if bodies[i] = any(m.Body); f.trigger.DataType != "binary" {
			bodies[i] = string(m.Body)
		} else if m.Body == nil {
			bodies[i] = []byte{} // a nil slice would be null
		}
		at := m.EnqueuedAt.UTC()
		for name, value := range map[string]any{
			"MessageId": m.ID, "DeliveryCount": m.DeliveryCount, "SequenceNumber": m.Sequence, "LockToken": lockToken,
			"EnqueuedTimeUtc": at.Format(layoutArrayUTC), "EnqueuedTime": at.Format(layoutArrayOffset),
			"ExpiresAtUtc": never.Format(layoutArrayUTC), "ExpiresAt": never.Format(layoutArrayOffset),
			"ContentType": orNull(m.ContentType), "Subject": orNull(m.Subject), "Label": orNull(m.Subject),
			"SessionId": orNull(m.SessionID), "PartitionKey": orNull(m.SessionID),
			"TransactionPartitionKey": orNull(m.SessionID),
			"CorrelationId":           nil, "ReplyTo": nil, "ReplyToSessionId": nil, "To": nil, "DeadLetterSource": nil,
			"ApplicationProperties": m.properties(), "UserProperties": m.properties(),
		} {
			columns[name] = append(columns[name], value)
		}
	}
	e := newEnvelope(f, bodies, now)
	e.setClient()
	for name, values := range columns {
		e.set(name+"Array", values)
	}
	return e
}

func (e envelope) setClient() {
	e.set("MessageActions", struct{}{})
	e.set("Client", map[string]string{"FullyQualifiedNamespace": "localhost"})
}

func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}
