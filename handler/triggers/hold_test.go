package triggers

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/presence"
)

// pickyTracker takes every beat but those of some users, which fail their calls.
type pickyTracker map[string]bool

func (p pickyTracker) Heartbeat(context.Context, presence.Beat) (presence.Receipt, error) {
	panic("not called")
}

func (p pickyTracker) Heartbeats(_ context.Context, beats []presence.Beat) (presence.BulkReceipt, error) {
	for _, b := range beats {
		if p[b.User] {
			return presence.BulkReceipt{}, &fault.Error{Kind: fault.Unavailable, Message: "away"}
		}
	}
	return presence.BulkReceipt{Accepted: len(beats)}, nil
}

// TestHowLongBeatsAreHeld: while all of a batch fail its whole time, while only some do a few seconds, so that what is behind
// it in the queue is not held up.
func TestHowLongBeatsAreHeld(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		fails       pickyTracker
		least, most time.Duration
	}{
		"all fail": {pickyTracker{"ann": true, "bob": true}, 149 * time.Second, 150 * time.Second},
		"one does": {pickyTracker{"bob": true}, 15 * time.Second, 16 * time.Second},
		"none":     {pickyTracker{}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 150*time.Second)
				defer cancel()
				began := time.Now()
				err := HeartbeatQueue{Tracker: tt.fails}.apply(ctx, []message{{ID: "1", Body: `{"user":"ann"}`}, {ID: "2", Body: `{"user":"bob"}`}})
				if held := time.Since(began); held < tt.least || held > tt.most || (err != nil) != (len(tt.fails) > 0) {
					t.Errorf("held for %v: %v", held, err)
				}
			})
		})
	}
}
