package deferral

import (
	"context"

	"userconnectivity/handler/presence"
)

// Direct is a Store for callers that keep their items themselves as long as a call fails, as a queue does. See Unless.
type Direct struct {
	store   *Store
	allAway func() bool
}

// Unless returns the Store for such callers. While allAway reports true, which says that nobody's state can be reached,
// nothing is kept in memory: calls fail as those of the live state. While only the state of some users is away, theirs
// is kept as Store does, so that the caller need not hold back the items of all others with them.
func (s *Store) Unless(allAway func() bool) *Direct { return &Direct{s, allAway} }

// Heartbeats applies beats, as Store.Heartbeats does.
func (d *Direct) Heartbeats(ctx context.Context, beats []presence.Beat) ([]presence.BeatOutcome, error) {
	if d.store.away() == nil || d.allAway() {
		return d.store.heartbeats(ctx, beats)
	}
	return d.store.Heartbeats(ctx, beats)
}

// Leaves applies leaves, as Store.Leaves does.
func (d *Direct) Leaves(ctx context.Context, leaves []presence.Leave) ([]presence.LeaveOutcome, error) {
	if d.store.away() == nil || d.allAway() {
		return d.store.leaves(ctx, leaves)
	}
	return d.store.Leaves(ctx, leaves)
}

// Users reads users, as Store.Users does.
func (d *Direct) Users(ctx context.Context, ids []string) ([]*presence.User, error) {
	return d.store.Users(ctx, ids)
}
