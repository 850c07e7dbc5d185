package presence

import (
	"context"
	"time"
)

// store keeps the live state. Each call applies its items in order and answers in the same order; a call
// that fails as a whole has applied none of a partition's items, or all of them when only the reply was lost.
// The methods return a *fault.Error of kind Unavailable when the state cannot be reached.
type store interface {
	Heartbeats(ctx context.Context, beats []Beat) ([]BeatOutcome, error)
	Leaves(ctx context.Context, leaves []Leave) ([]LeaveOutcome, error)
	// Users returns what the live state knows of the users, nil for one that it does not know. One that is Stale it cannot
	// read now.
	Users(ctx context.Context, ids []string) ([]*User, error)
}

// archive remembers users longer than the live state does.
type archive interface {
	// User returns the last applied state of a user, and false when there is none.
	User(ctx context.Context, id string) (User, bool, error)
}

// Tracker is the way in: one method for each thing that a client may do with presence. It is safe for
// concurrent use.
type Tracker struct {
	store      store
	archive    archive
	defaultTTL time.Duration
	pace       pace
	tally      tally
}

// NewTracker returns a Tracker. defaultTTL is the ttl of beats that name none (MinTTL to MaxTTL).
func NewTracker(s store, a archive, defaultTTL time.Duration) *Tracker {
	return &Tracker{store: s, archive: a, defaultTTL: defaultTTL}
}
