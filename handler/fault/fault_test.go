package fault_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"userconnectivity/handler/fault"
)

func TestPassing(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]bool{
		errors.New("any"): true, context.DeadlineExceeded: true, &fault.Error{Kind: fault.Unavailable}: true,
		fmt.Errorf("w: %w", &fault.Error{Kind: fault.Internal}): true,
		fmt.Errorf("w: %w", &fault.Error{Kind: fault.Invalid}):  false, &fault.Error{Kind: fault.Conflict}: false, &fault.Error{Kind: fault.NotFound}: false,
	} {
		if got := fault.Passing(err); got != want {
			t.Errorf("%v passes: %v", err, got)
		}
	}
	if fault.Passing(nil) {
		t.Error("nothing passes")
	}
}
