package eventlog

import (
	"bytes"
	"fmt"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"userconnectivity/handler/jsonform"
	"userconnectivity/handler/presence"
)

// Document is a record as the stores keep it: one JSON object per event, the same in SQLite and Cosmos DB.
// Write it with Marshal and Overlay, and read it with Unmarshal.
type Document struct {
	// PK is the partition key: all events of a user, or of a foreign key, share it.
	PK string `json:"pk"`
	presence.Event
	// Omitted names the members that the store refused, with its reason; "" for none. See Reduced.
	Omitted string `json:"omitted,omitempty"`
	// Status repeats that of the newest step, for queries and for people who look into the store.
	Status  Status `json:"status"`
	History []Step `json:"history"`
	// TTL is how long the store keeps the document after its last write, in seconds; 0 is the store's default.
	TTL int `json:"ttl,omitzero"`
}

// MaxReduced is the largest n of Reduced.
const MaxReduced = 2

// Reduced returns the document without what a store may refuse in it, the first n of: meta, which is the client's own;
// groups with sessions. n is 0 (all of it is kept) to MaxReduced. reason is that of the store.
func (d Document) Reduced(n int, reason string) Document {
	if n > 0 {
		d.Meta, d.Omitted = nil, "meta: "+reason
	}
	if n > 1 {
		d.Groups, d.Sessions, d.Omitted = nil, nil, "meta, groups, sessions: "+reason
	}
	return d
}

// keep takes over from an older form of the document what no event and no history tells.
func (d Document) keep(old Document) Document {
	d.TTL = old.TTL
	if d.Epoch == old.Epoch { // else the event was replaced, and all of it is there
		d.Omitted = old.Omitted
	}
	return d
}

// Merge returns the document with u merged in, and whether that changed anything.
func (d Document) Merge(u Update) (Document, bool, error) {
	record, changed := d.Record().Merge(u)
	if !changed {
		return d, false, nil
	}
	next, err := NewDocument(record)
	return next.keep(d), true, err
}

// Marshal writes a document. Numbers inside of it are written as they came.
func Marshal(v any) ([]byte, error) { return jsonv2.Marshal(v, jsonform.Stored) }

// Unmarshal reads a document. Members that it does not know are no error; see Overlay.
func Unmarshal(text []byte, v any) error { return jsonv2.Unmarshal(text, v, jsonform.Stored) }

// Overlay returns the stored text of an object with the changes from before to after, which are two forms of what this
// version knows of it. All other members stay as they are stored: another version, or another program, may know them.
func Overlay(stored []byte, before, after any) ([]byte, error) {
	members := make([][]member, 3)
	for i, v := range []any{jsontext.Value(stored), before, after} {
		text, err := Marshal(v)
		if err != nil {
			return nil, err
		}
		if members[i], err = membersOf(text); err != nil {
			return nil, err
		}
	}
	was, is := byName(members[1]), byName(members[2])
	var changed []member
	kept := map[string]bool{}
	for _, m := range members[0] {
		value, known := is[m.name]
		old, before := was[m.name]
		switch {
		case kept[m.name] || before && !known:
			continue // there already, or removed
		case known && !(before && bytes.Equal(old, value)):
			m.value = value
		}
		kept[m.name] = true
		changed = append(changed, m)
	}
	for _, m := range members[2] {
		if !kept[m.name] {
			changed = append(changed, m)
		}
	}
	return object(changed)
}

// member is one member of a JSON object.
type member struct {
	name  string
	value jsontext.Value
}

func byName(members []member) map[string]jsontext.Value {
	values := make(map[string]jsontext.Value, len(members))
	for _, m := range members {
		values[m.name] = m.value
	}
	return values
}

// object writes members as an object.
func object(members []member) ([]byte, error) {
	var b bytes.Buffer
	out := jsontext.NewEncoder(&b, jsonform.Stored)
	if err := out.WriteToken(jsontext.BeginObject); err != nil {
		return nil, err
	}
	for _, m := range members {
		if err := out.WriteToken(jsontext.String(m.name)); err != nil {
			return nil, err
		}
		if err := out.WriteValue(m.value); err != nil {
			return nil, err
		}
	}
	if err := out.WriteToken(jsontext.EndObject); err != nil {
		return nil, err
	}
	return bytes.TrimSpace(b.Bytes()), nil
}

// membersOf returns the members of an object in their order.
func membersOf(object []byte) (members []member, err error) {
	d := jsontext.NewDecoder(bytes.NewReader(object), jsonform.Stored)
	if begin, err := d.ReadToken(); err != nil || begin.Kind() != '{' {
		return nil, fmt.Errorf("not a JSON object: %w", err)
	}
	for d.PeekKind() != '}' {
		name, err := d.ReadToken()
		if err != nil {
			return nil, err
		}
		text := name.String()
		value, err := d.ReadValue()
		if err != nil {
			return nil, err
		}
		members = append(members, member{text, value.Clone()})
	}
	return members, nil
}

// NewDocument returns the stored form of r. It returns ErrID for an event whose id has not the form of one.
func NewDocument(r Record) (Document, error) {
	e := r.Event
	pk, ok := presence.PartitionKeyOf(e.ID)
	if !ok {
		return Document{}, ErrID
	}
	if len(e.Groups) == 0 {
		e.Groups = nil
	}
	if len(e.Sessions) == 0 {
		e.Sessions = nil
	}
	return Document{PK: pk, Event: e, Status: r.Status(), History: r.History}, nil
}

// Record returns the record that d is the stored form of.
func (d Document) Record() Record { return Record{Event: d.Event, History: d.History} }
