package presence

import (
	"context"
	"fmt"
	"runtime/debug"

	"golang.org/x/sync/errgroup"

	"userconnectivity/handler/fault"
)

// archiveReads bounds the concurrent reads of the durable users store in one query.
const archiveReads = 16

// User returns what is known of one user, as Users does. Where nothing can be said it returns a *fault.Error of kind
// Unavailable, that of the live state.
func (t *Tracker) User(ctx context.Context, id string) (User, error) {
	users, away, err := t.known(ctx, []string{id})
	switch {
	case err != nil:
		return User{}, err
	case users[0].Status == StatusUnknown:
		return User{}, away
	}
	return users[0], nil
}

// Users returns what is known of up to MaxBatch users, in the order asked. The live state answers first; a
// user that it has forgotten (RecordMemory after going offline) is looked up in the durable store. One whom neither
// knows is offline and was never seen. While the live state is Unavailable the durable store answers for all, and every
// answer is marked Stale; a user of whom it has nothing has StatusUnknown.
// It returns a *fault.Error: Invalid, or Unavailable when neither can be reached.
func (t *Tracker) Users(ctx context.Context, ids []string) ([]User, error) {
	users, _, err := t.known(ctx, ids)
	return users, err
}

// known returns what is known of users, and the error of the live state in whose place the durable store answered.
func (t *Tracker) known(ctx context.Context, ids []string) (users []User, away, err error) {
	var c checks
	for i, id := range ids {
		c.id(fmt.Sprintf("/users/%d", i), id)
	}
	if err := fault.Refuse(c); err != nil {
		return nil, nil, err
	}
	live, err := t.store.Users(ctx, ids)
	if err == nil {
		users, err = t.archived(ctx, live, ids, false)
		return users, nil, err
	}
	away = fmt.Errorf("read %d users: %w", len(ids), err)
	if fault.KindOf(away) != fault.Unavailable {
		return nil, nil, away
	}
	if users, err = t.archived(ctx, make([]*User, len(ids)), ids, true); err != nil {
		// The caller is told about the live state: it says when to try again.
		return nil, nil, fmt.Errorf("%w; and in its place: %w", away, err)
	}
	return users, away, nil
}

// archived returns the users that the live state knows, and what the durable store has of the others. The live
// state alone says who is online: what it does not know is not, unless it could not be asked (stale).
func (t *Tracker) archived(ctx context.Context, live []*User, ids []string, stale bool) ([]User, error) {
	users := make([]User, len(ids))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(archiveReads)
	for i, u := range live {
		if u != nil && !u.Stale {
			users[i] = *u
			continue
		}
		stale := stale || u != nil
		g.Go(func() (err error) {
			defer func() { // outside of this goroutine nobody could recover it
				if p := recover(); p != nil {
					err = fmt.Errorf("read user %s from the users store: panicked: %v\n%s", ids[i], p, debug.Stack())
				}
			}()
			u, known, err := t.archive.User(ctx, ids[i])
			if err != nil {
				return fmt.Errorf("read user %s from the users store: %w", ids[i], err)
			}
			if !known {
				u = User{ID: ids[i], Status: StatusUnknown}
			}
			u.Sessions, u.Stale = nil, stale
			if !stale {
				u.Status = Offline
			}
			users[i] = u
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return users, nil
}
