package presence_test

import (
	"context"
	"strings"
	"testing"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/presence"
)

// panicking is a users store whose driver has a fault.
type panicking struct{}

func (panicking) User(context.Context, string) (presence.User, bool, error) { panic("driver fault") }

// TestPanicOfTheUsersStore: a request must not end the process, wherever it panics.
func TestPanicOfTheUsersStore(t *testing.T) {
	t.Parallel()
	tracker := presence.NewTracker(&taking{}, panicking{}, presence.DefaultTTL)
	_, err := tracker.Users(t.Context(), []string{"ann", "bob"})
	if err == nil || !strings.Contains(err.Error(), "driver fault") || fault.KindOf(err) != fault.Internal {
		t.Errorf("%v", err)
	}
}
