package presence

import (
	"encoding/json"
	"time"
)

// Limits of one session and one user (design D6, section 4 of the HTTP API).
const (
	// DefaultSession is the session of a beat that names none.
	DefaultSession = "default"
	// DefaultTTL is how long a beat holds a session online, unless the beat or SESSION_TTL_SECONDS says otherwise.
	DefaultTTL = 45 * time.Second
	// MinTTL and MaxTTL bound the ttl of a beat.
	MinTTL = 5 * time.Second
	MaxTTL = 3600 * time.Second
	// MaxGrace bounds the grace of a beat; the default is none.
	MaxGrace = 600 * time.Second
	// MaxIDLength bounds user, session and group ids, in characters.
	MaxIDLength = 128
	// MaxGroups bounds the groups of one user.
	MaxGroups = 16
	// MaxMetaBytes bounds the compact JSON text of a session's meta object.
	MaxMetaBytes = 1024
	// MaxMetaDepth bounds the nesting of a meta object, itself included: a quarter of what Cosmos DB takes.
	MaxMetaDepth = 32
	// MaxSeq is the largest seq: 2^53-1, the largest integer that every JSON reader keeps exact.
	MaxSeq = 1<<53 - 1
	// MaxSessions bounds the live sessions of one user; a further one is a conflict.
	MaxSessions = 32
	// MaxBatch bounds the items of one bulk call and of one query.
	MaxBatch = 1000
	// EndMemory is how long an ended session is remembered, so that a late beat cannot revive it:
	// the largest ttl + grace.
	EndMemory = MaxTTL + MaxGrace
	// RecordMemory is how long the record of an offline user stays in Redis; after it the durable
	// users store answers.
	RecordMemory = 24 * time.Hour
)

// Status says whether a user is online.
type Status string

// The statuses of a user.
const (
	Online  Status = "online"
	Offline Status = "offline"
	// StatusUnknown is that of a user of whom nothing is known while the live state cannot be reached. No event has it,
	// and it is not stored.
	StatusUnknown Status = "unknown"
)

// Session is one live session of a user. Its names are those of an answer.
type Session struct {
	ID string `json:"session"`
	// StartEpoch is the epoch of the event that started the session.
	StartEpoch int64         `json:"-"`
	TTL        time.Duration `json:"-"`
	Grace      time.Duration `json:"-"`
	// ExpiresAt is the deadline: the session is claimed once it has passed.
	ExpiresAt time.Time `json:"expiresAt"`
	// Meta is a JSON object of at most MaxMetaBytes, nil when there is none.
	Meta json.RawMessage `json:"meta"`
}

// EventSession is one of the sessions that a user has after an event.
type EventSession struct {
	Session      string `json:"session"`
	StartEpoch   int64  `json:"startEpoch"`
	TTLSeconds   int    `json:"ttlSeconds"`
	GraceSeconds int    `json:"graceSeconds"`
}

// Live returns the session without what no event tells: its deadline and meta.
func (s EventSession) Live() Session {
	return Session{
		ID: s.Session, StartEpoch: s.StartEpoch,
		TTL: time.Duration(s.TTLSeconds) * time.Second, Grace: time.Duration(s.GraceSeconds) * time.Second,
	}
}

// User is what is known of a user.
type User struct {
	ID     string
	Status Status
	// Epoch is that of the user's newest event, 0 when there was none.
	Epoch int64
	// Since is when the status began, zero for a user who was never seen.
	Since time.Time
	// LastSeen is the instant of the last applied beat or leave, zero for a user who was never seen.
	LastSeen time.Time
	Sessions []Session
	Groups   []string
	// Stale says that the live state could not be reached: this is what the durable users store last knew, and it
	// has no sessions, because their deadlines are known to the live state alone.
	Stale bool
}
