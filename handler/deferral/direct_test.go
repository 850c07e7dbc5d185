package deferral

import (
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/presence"
)

// TestUnless: a caller who can wait keeps its items while everything is away; while only some users are, theirs are
// kept in memory and the others' are written.
func TestUnless(t *testing.T) {
	t.Parallel()
	fault := &fault.Error{Kind: fault.Unavailable, Message: "away"}
	for _, tt := range []struct {
		name    string
		away    []string
		all     bool
		fails   bool
		wrote   []string
		waiting int64
	}{
		{"nobody is away", nil, false, false, []string{"ann/s", "bob/s", "!ann/s", "!bob/s"}, 0},
		{"all are away", []string{"ann", "bob"}, true, true, nil, 0},
		{"one is away", []string{"ann"}, false, false, []string{"bob/s", "!bob/s"}, 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			isAway := func(user string) (time.Duration, bool) { return time.Second, slices.Contains(tt.away, user) }
			b := &backend{fail: func(users []string) error {
				if slices.ContainsFunc(users, func(u string) bool { return slices.Contains(tt.away, u) }) {
					return fault
				}
				return nil
			}}
			s := New(b, func() Away {
				if tt.away == nil {
					return nil
				}
				return isAway
			}, Config{Log: slog.New(slog.DiscardHandler)})
			d := s.Unless(func() bool { return tt.all })
			now := time.Now()
			beats, err := d.Heartbeats(t.Context(), []presence.Beat{{User: "ann", Session: "s", At: now}, {User: "bob", Session: "s", At: now}})
			_, leaveErr := d.Leaves(t.Context(), []presence.Leave{{User: "ann", Session: "s", At: now}, {User: "bob", Session: "s", At: now}})
			if errors.Is(err, fault) != tt.fails || errors.Is(leaveErr, fault) != tt.fails {
				t.Errorf("%v, %v", err, leaveErr)
			}
			if !slices.Equal(b.wrote, tt.wrote) || s.waiting.Load() != tt.waiting {
				t.Errorf("wrote %v, %d wait", b.wrote, s.waiting.Load())
			}
			if tt.waiting > 0 && (beats[0].Change != presence.ChangeDeferred || beats[1].Change != presence.ChangeRenewed) {
				t.Errorf("answered %+v", beats)
			}
			if _, err := d.Users(t.Context(), []string{"bob"}); (err != nil) != tt.all {
				t.Errorf("users: %v", err)
			}
		})
	}
}
