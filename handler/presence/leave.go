package presence

import (
	"context"
	"fmt"
	"time"
)

// Leave ends one session, after its grace.
type Leave struct {
	User, Session string
	// Seq orders the writers of one session name (0 to MaxSeq); nil does not.
	Seq *int64
	// At is when the leave was received: its age is counted from here.
	At time.Time
	// Traceparent is the W3C trace context of the request.
	Traceparent string
}

// LeaveOutcome is what the store made of a leave.
type LeaveOutcome string

// What a leave can do.
const (
	Left         LeaveOutcome = "left"
	Leaving      LeaveOutcome = "leaving"
	LeaveStale   LeaveOutcome = "stale"
	LeaveUnknown LeaveOutcome = "unknown"
	// LeaveDeferred is kept in memory, to be applied once the state can be reached again.
	LeaveDeferred LeaveOutcome = "deferred"
)

func (l Leave) check() []FieldError {
	var c checks
	c.id("/user", l.User)
	c.id("/session", l.Session)
	c.seq(l.Seq)
	return c
}

// Leave applies one leave. A repeated or unknown one is no error. It returns an *Error: Invalid, or
// Unavailable when the state cannot be reached.
func (t *Tracker) Leave(ctx context.Context, l Leave) error {
	if err := Refuse(l.check()); err != nil {
		return err
	}
	if _, err := t.store.Leaves(ctx, []Leave{l}); err != nil {
		return fmt.Errorf("apply a leave: %w", err)
	}
	return nil
}

// Leaves applies up to MaxBatch leaves and returns the items that were refused; the others are applied.
func (t *Tracker) Leaves(ctx context.Context, leaves []Leave) ([]Rejection, error) {
	var rejected []Rejection
	good := make([]Leave, 0, len(leaves))
	for i, l := range leaves {
		if err := Refuse(l.check()); err != nil {
			rejected = append(rejected, Rejection{i, err})
			continue
		}
		good = append(good, l)
	}
	if len(good) == 0 {
		return rejected, nil
	}
	if _, err := t.store.Leaves(ctx, good); err != nil {
		return nil, fmt.Errorf("apply %d leaves: %w", len(good), err)
	}
	return rejected, nil
}
