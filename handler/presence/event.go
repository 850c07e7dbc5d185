package presence

import (
	"cmp"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"encoding/json"
	"strconv"
	"strings"
	"time"
)

// EventType names a transition.
type EventType string

// The transitions of users and sessions.
const (
	UserOnline     EventType = "user.online"
	SessionStarted EventType = "session.started"
	SessionEnded   EventType = "session.ended"
	UserOffline    EventType = "user.offline"
)

// KeyExpired is the expiry of a foreign key (design D7). It is no transition, so it is not Valid.
const KeyExpired EventType = "redis.key.expired"

// Valid reports whether t is one of the transitions that this version knows.
func (t EventType) Valid() bool {
	switch t {
	case UserOnline, SessionStarted, SessionEnded, UserOffline:
		return true
	}
	return false
}

// Reason says what caused a transition.
type Reason string

// The causes of a transition.
const (
	ReasonBeat    Reason = "beat"
	ReasonExpired Reason = "expired"
	ReasonLeft    Reason = "left"
)

// Valid reports whether r is one of the causes that this version knows.
func (r Reason) Valid() bool { return r == ReasonBeat || r == ReasonExpired || r == ReasonLeft }

// Subject is who or what an event is about.
type Subject struct {
	User    string `json:"user,omitempty"`
	Session string `json:"session,omitempty"`
	// Group is set in an event about a group as a whole, which has no user.
	Group string `json:"group,omitempty"`
	// Key is the foreign key that expired: such an event has neither user nor session. It is valid UTF-8: each run of
	// other bytes is one U+FFFD.
	Key string `json:"key,omitempty"`
}

// Name is the user, else the group, else the key: all events of one name are one order, and one partition of the log.
func (s Subject) Name() string { return cmp.Or(s.User, s.Group, s.Key) }

// Body is what an event tells of its subject. The names of its members are the same in every text: the message on the
// queue, the document in the log and the answer of the API embed it, and so does whatever comes. A member that is zero is
// left out of a text, but for epoch, reason and deadline; how times are written is up to the text (package jsonform).
type Body struct {
	// Epoch orders the events of a subject: strictly increasing, new for every event. For a foreign key it is DetectedAt
	// in ms.
	Epoch  int64  `json:"epoch"`
	Reason Reason `json:"reason"`
	// Deadline is when the session was due; zero for a beat and for a leave without grace.
	Deadline time.Time `json:"deadline"`
	// DetectedAt is when the transition was made, by the clock of Redis.
	DetectedAt time.Time `json:"detectedAt,omitzero"`
	Groups     []string  `json:"groups,omitzero"`
	// Sessions are the user's resulting sessions: the newest epoch replaces all.
	Sessions []EventSession `json:"sessions,omitzero"`
	// Meta is the session's meta object, nil when there is none.
	Meta json.RawMessage `json:"meta,omitzero"`
	// LastSeen is the instant of the user's last applied beat or leave.
	LastSeen time.Time `json:"lastSeen,omitzero"`
	// Life and Generation tell which life of the Redis data, and which rollback of it, made the event (design D5).
	Life       string `json:"life,omitzero"`
	Generation int64  `json:"generation,omitzero"`
}

// WithLists returns the body with empty lists for nil ones: a text that always has groups and sessions is made of it.
func (b Body) WithLists() Body {
	b.Groups, b.Sessions = append([]string{}, b.Groups...), append([]EventSession{}, b.Sessions...)
	return b
}

// Event is one transition of one user, or the expiry of a foreign key. Every copy of it, wherever it is made again,
// has the same ID.
type Event struct {
	ID   string    `json:"id"`
	Type EventType `json:"type"`
	Subject
	Body
	// Traceparent is the W3C trace context of the request that caused the event, or one made from its ID.
	Traceparent string `json:"traceparent"`
}

// Status returns the user's status after the event.
func (e Event) Status() Status {
	if e.Type == UserOffline {
		return Offline
	}
	return Online
}

// EventID makes the id of an event: "<pk>-<h>", where pk depends on the user alone (the partition key of
// the event log) and h on user, session, type and basis (design D6). The basis of an end is the session's
// startEpoch; of a start it is the user's previous epoch or, where there is none, the event's own.
func EventID(user, session string, t EventType, basis int64) string {
	return eventID(user, session, string(t), strconv.FormatInt(basis, 10))
}

// KeyEventID makes the id of the expiry of a foreign key from the key, when it was detected in ms and the number of
// the event in its partition: the next expiry of the same key has another id.
func KeyEventID(key string, at, n int64) string {
	return eventID(key, string(KeyExpired), strconv.FormatInt(at, 10), strconv.FormatInt(n, 10))
}

// eventID makes an id in the partition of its first part.
func eventID(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\n")))
	return PartitionKey(parts[0]) + "-" + base32.StdEncoding.EncodeToString(sum[:])[:16]
}

// PartitionKey returns the event log's partition key of a user or foreign key: 13 characters of A-Z and 2-7.
func PartitionKey(user string) string {
	sum := sha256.Sum256([]byte(user))
	return base32.StdEncoding.EncodeToString(sum[:])[:13]
}

// PartitionKeyOf returns the partition key inside an event id, and whether id has the form of one.
func PartitionKeyOf(id string) (string, bool) {
	pk, h, ok := strings.Cut(id, "-")
	if !ok || len(pk) != 13 || len(h) != 16 || !isBase32(pk) || !isBase32(h) {
		return "", false
	}
	return pk, true
}

func isBase32(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'A' || c > 'Z') && (c < '2' || c > '7') {
			return false
		}
	}
	return true
}

// TraceparentOf makes a W3C trace context from an event id, for an event that no request caused. It is the
// same for every copy of the event. See https://www.w3.org/TR/trace-context/#traceparent-header.
func TraceparentOf(id string) string {
	sum := sha256.Sum256([]byte(id))
	return "00-" + hex.EncodeToString(sum[:16]) + "-" + hex.EncodeToString(sum[16:24]) + "-01"
}
