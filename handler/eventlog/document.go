package eventlog

import (
	"encoding/json"
	"time"

	"userconnectivity/handler/presence"
)

// Document is a record as the stores keep it: one JSON object per event, the same in SQLite and Cosmos DB.
// Times are RFC 3339 in UTC with at most milliseconds.
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
	Generation  int64                   `json:"generation,omitempty"`
	Traceparent string                  `json:"traceparent,omitempty"`
	// Status repeats that of the newest step, for queries and for people who look into the store.
	Status  Status `json:"status"`
	History []Step `json:"history"`
	// TTL is how long the store keeps the document after its last write, in seconds; 0 is the store's default.
	TTL int `json:"ttl,omitempty"`
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
	Generation int64  `json:"generation,omitempty"`
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
