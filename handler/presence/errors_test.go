package presence_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"userconnectivity/handler/presence"
)

func TestPassing(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]bool{
		errors.New("any"): true, context.DeadlineExceeded: true, &presence.Error{Kind: presence.Unavailable}: true,
		fmt.Errorf("w: %w", &presence.Error{Kind: presence.Internal}): true,
		fmt.Errorf("w: %w", &presence.Error{Kind: presence.Invalid}):  false, &presence.Error{Kind: presence.Conflict}: false, &presence.Error{Kind: presence.NotFound}: false,
	} {
		if got := presence.Passing(err); got != want {
			t.Errorf("%v passes: %v", err, got)
		}
	}
	if presence.Passing(nil) {
		t.Error("nothing passes")
	}
}
