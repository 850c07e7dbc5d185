package presence_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/presence"
)

// liveState is a live state that answers users, or fails.
type liveState struct {
	users []*presence.User
	err   error
}

func (l liveState) Heartbeats(context.Context, []presence.Beat) ([]presence.BeatOutcome, error) {
	return nil, l.err
}

func (l liveState) Leaves(context.Context, []presence.Leave) ([]presence.LeaveOutcome, error) {
	return nil, l.err
}

func (l liveState) Users(context.Context, []string) ([]*presence.User, error) { return l.users, l.err }

// records is a durable users store; a user named as fault cannot be read.
type records map[string]presence.User

var errRecords = errors.New("the users store does not answer")

func (r records) User(_ context.Context, id string) (presence.User, bool, error) {
	if id == "fault" {
		return presence.User{}, false, errRecords
	}
	u, ok := r[id]
	return u, ok, nil
}

func TestUsersWithoutTheLiveState(t *testing.T) {
	t.Parallel()
	seen := time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)
	archive := records{
		"alice": {
			ID: "alice", Status: presence.Online, Epoch: 7, Since: seen, LastSeen: seen, Groups: []string{"g"},
			Sessions: []presence.Session{{ID: "default", StartEpoch: 7}},
		},
		"bob": {ID: "bob", Status: presence.Offline, Epoch: 3, LastSeen: seen},
	}
	down := &fault.Error{Kind: fault.Unavailable, Message: "down", RetryAfter: 7 * time.Second}
	ids := []string{"alice", "bob", "carol"}

	t.Run("unavailable: the last known state, marked stale", func(t *testing.T) {
		t.Parallel()
		got, err := presence.NewTracker(liveState{err: down}, archive, presence.DefaultTTL).Users(t.Context(), ids)
		if err != nil {
			t.Fatal(err)
		}
		want := []presence.User{
			{ID: "alice", Status: presence.Online, Epoch: 7, Since: seen, LastSeen: seen, Groups: []string{"g"}, Stale: true},
			{ID: "bob", Status: presence.Offline, Epoch: 3, LastSeen: seen, Stale: true},
			{ID: "carol", Status: presence.StatusUnknown, Stale: true},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("unavailable: of a user of whom nothing was stored nothing can be said", func(t *testing.T) {
		t.Parallel()
		u, err := presence.NewTracker(liveState{err: down}, archive, presence.DefaultTTL).User(t.Context(), "carol")
		var e *fault.Error
		if !errors.As(err, &e) || e != down || u.Status != "" {
			t.Errorf("%+v, %v, want the live state's error", u, err)
		}
	})
	t.Run("available: only the live state says who is online", func(t *testing.T) {
		t.Parallel()
		live := liveState{users: []*presence.User{nil, {ID: "bob", Status: presence.Online}, nil}}
		got, err := presence.NewTracker(live, archive, presence.DefaultTTL).Users(t.Context(), ids)
		if err != nil {
			t.Fatal(err)
		}
		want := []presence.User{
			{ID: "alice", Status: presence.Offline, Epoch: 7, Since: seen, LastSeen: seen, Groups: []string{"g"}},
			{ID: "bob", Status: presence.Online},
			{ID: "carol", Status: presence.Offline},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("neither answers: the live state says when to try again", func(t *testing.T) {
		t.Parallel()
		_, err := presence.NewTracker(liveState{err: down}, archive, presence.DefaultTTL).Users(t.Context(), []string{"alice", "fault"})
		var e *fault.Error
		if !errors.As(err, &e) || e != down || !errors.Is(err, errRecords) {
			t.Errorf("got %v, want the live state's error, and the cause of the other", err)
		}
	})
	t.Run("another fault is not hidden", func(t *testing.T) {
		t.Parallel()
		broken := errors.New("a fault of ours")
		_, err := presence.NewTracker(liveState{err: broken}, archive, presence.DefaultTTL).User(t.Context(), "alice")
		if !errors.Is(err, broken) || fault.KindOf(err) != fault.Internal {
			t.Errorf("got %v", err)
		}
	})
}
