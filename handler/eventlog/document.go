package eventlog

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"userconnectivity/handler/presence"
)

// Document is a record as the stores keep it: one JSON object per event, the same in SQLite and Cosmos DB.
// Times are RFC 3339 in UTC with at most milliseconds. Write it with Marshal and Overlay, and read it with Unmarshal.
type Document struct {
	ID string `json:"id"`
	// PK is the partition key: all events of a user, or of a foreign key, share it.
	PK          string                  `json:"pk"`
	Type        presence.EventType      `json:"type"`
	User        string                  `json:"user"`
	Session     string                  `json:"session"`
	Key         string                  `json:"key,omitempty"`
	Epoch       int64                   `json:"epoch"`
	Reason      presence.Reason         `json:"reason"`
	Deadline    *time.Time              `json:"deadline"`
	DetectedAt  time.Time               `json:"detectedAt"`
	Groups      []string                `json:"groups,omitempty"`
	Sessions    []presence.EventSession `json:"sessions,omitempty"`
	Meta        json.RawMessage         `json:"meta,omitempty"`
	LastSeen    *time.Time              `json:"lastSeen,omitempty"`
	Life        string                  `json:"life,omitempty"`
	Generation  int64                   `json:"generation,omitzero"`
	Traceparent string                  `json:"traceparent,omitempty"`
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

// lenient are the rules for what is stored: what was written once can be read again, also by an older version.
var lenient = jsonv2.JoinOptions(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))

// Marshal writes a document. Numbers inside of it are written as they came.
func Marshal(v any) ([]byte, error) { return jsonv2.Marshal(v, lenient) }

// Unmarshal reads a document. Members that it does not know are no error; see Overlay.
func Unmarshal(text []byte, v any) error { return jsonv2.Unmarshal(text, v, lenient) }

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
	var b bytes.Buffer
	out := jsontext.NewEncoder(&b, lenient)
	write := func(name string, value jsontext.Value) error {
		if err := out.WriteToken(jsontext.String(name)); err != nil {
			return err
		}
		return out.WriteValue(value)
	}
	if err := out.WriteToken(jsontext.BeginObject); err != nil {
		return nil, err
	}
	kept := map[string]bool{}
	for _, m := range members[0] {
		value, known := is[m.name]
		old, before := was[m.name]
		switch {
		case kept[m.name] || before && !known:
			continue // written already, or removed
		case !known || before && bytes.Equal(old, value):
			value = m.value
		}
		kept[m.name] = true
		if err := write(m.name, value); err != nil {
			return nil, err
		}
	}
	for _, m := range members[2] {
		if !kept[m.name] {
			if err := write(m.name, m.value); err != nil {
				return nil, err
			}
		}
	}
	if err := out.WriteToken(jsontext.EndObject); err != nil {
		return nil, err
	}
	return bytes.TrimSpace(b.Bytes()), nil
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

// membersOf returns the members of an object in their order.
func membersOf(object []byte) (members []member, err error) {
	d := jsontext.NewDecoder(bytes.NewReader(object), lenient)
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
	return Document{
		ID: e.ID, PK: pk, Type: e.Type, User: e.User, Session: e.Session, Key: e.Key, Epoch: e.Epoch, Reason: e.Reason,
		Deadline: optional(e.Deadline), DetectedAt: stored(e.DetectedAt),
		Groups: e.Groups, Sessions: e.Sessions, Meta: e.Meta, LastSeen: optional(e.LastSeen),
		Life: e.Life, Generation: e.Generation, Traceparent: e.Traceparent,
		Status: r.Status(), History: r.History,
	}, nil
}

// Record returns the record that d is the stored form of.
func (d Document) Record() Record {
	return Record{
		Event: presence.Event{
			ID: d.ID, Type: d.Type, User: d.User, Session: d.Session, Key: d.Key, Epoch: d.Epoch, Reason: d.Reason,
			Deadline: required(d.Deadline), DetectedAt: d.DetectedAt.UTC(),
			Groups: d.Groups, Sessions: d.Sessions, Meta: d.Meta, LastSeen: required(d.LastSeen),
			Life: d.Life, Generation: d.Generation, Traceparent: d.Traceparent,
		},
		History: d.History,
	}
}

// UserDocument is the last applied state of a user as the stores keep it. It has no deadlines: what expires
// is known to Redis alone.
type UserDocument struct {
	ID     string          `json:"id"`
	Status presence.Status `json:"status"`
	Epoch  int64           `json:"epoch"`
	// Since is when the status began.
	Since    time.Time               `json:"since"`
	LastSeen *time.Time              `json:"lastSeen"`
	Groups   []string                `json:"groups,omitempty"`
	Sessions []presence.EventSession `json:"sessions,omitempty"`
	// Life and Generation tell which life and rollback of the Redis data the state comes from (design D5).
	Life       string `json:"life,omitempty"`
	Generation int64  `json:"generation,omitzero"`
}

// Apply returns the state of a user after e, and whether e is newer than d; the zero UserDocument is a user
// of whom nothing is known. Only a higher epoch replaces, and it replaces all: an event that was overtaken
// changes nothing. Since moves with the events that change the status by their nature (user.online,
// user.offline), also when the one in between was overtaken; the others keep it. An event that is not a
// transition of a user is not applied.
func (d UserDocument) Apply(e presence.Event) (UserDocument, bool) {
	if !e.Type.Valid() || e.Epoch <= d.Epoch {
		return d, false
	}
	next := UserDocument{
		ID: e.User, Status: e.Status(), Epoch: e.Epoch, Since: d.Since, LastSeen: optional(e.LastSeen),
		Groups: e.Groups, Sessions: e.Sessions, Life: e.Life, Generation: e.Generation,
	}
	if next.Status != d.Status || e.Type == presence.UserOnline || e.Type == presence.UserOffline {
		next.Since = stored(e.DetectedAt)
	}
	if next.LastSeen == nil {
		next.LastSeen = d.LastSeen
	}
	return next, true
}

// User returns the state that d is the stored form of; its sessions have no deadline.
func (d UserDocument) User() presence.User {
	u := presence.User{
		ID: d.ID, Status: d.Status, Epoch: d.Epoch, Since: d.Since.UTC(), LastSeen: required(d.LastSeen), Groups: d.Groups,
	}
	for _, s := range d.Sessions {
		u.Sessions = append(u.Sessions, presence.Session{
			ID: s.Session, StartEpoch: s.StartEpoch,
			TTL: time.Duration(s.TTLSeconds) * time.Second, Grace: time.Duration(s.GraceSeconds) * time.Second,
		})
	}
	return u
}

func stored(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

func optional(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = stored(t)
	return &t
}

func required(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.UTC()
}
