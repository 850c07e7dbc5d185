package presence

import (
	"context"
	"fmt"
	"time"

	"userconnectivity/handler/fault"
)

// Leave ends one session, after its grace.
type Leave struct {
	User, Session string
	// Seq orders the writers of one session name (0 to MaxSeq); nil does not.
	Seq *int64
	// At is when this process received the leave, with a monotonic reading; zero stands for when the store is called.
	At time.Time
	// Traceparent is the W3C trace context of the request.
	Traceparent string
}

// LeaveOutcome is what the store made of a leave.
type LeaveOutcome string

// What a leave can do. LeaveLater is never answered: it becomes an Unavailable error of this leave alone.
const (
	Left         LeaveOutcome = "left"
	Leaving      LeaveOutcome = "leaving"
	LeaveStale   LeaveOutcome = "stale"
	LeaveUnknown LeaveOutcome = "unknown"
	// LeaveDeferred is kept in memory, to be applied once the state can be reached again.
	LeaveDeferred LeaveOutcome = "deferred"
	// LeaveLater is of a user whose record a later version wrote: only a process of that version may change it.
	LeaveLater LeaveOutcome = "later"
)

func (l Leave) check() []fault.FieldError {
	var c checks
	c.id("/user", l.User)
	c.id("/session", l.Session)
	c.seq(l.Seq)
	return c
}

// Leave applies one leave and returns what became of it. A repeated or unknown one is no error. It returns a *fault.Error:
// Invalid, or Unavailable when the state cannot be reached.
func (t *Tracker) Leave(ctx context.Context, l Leave) (LeaveOutcome, error) {
	if err := fault.Refuse(l.check()); err != nil {
		return "", err
	}
	outcomes, err := t.applyLeaves(ctx, []Leave{l})
	if err != nil {
		return "", fmt.Errorf("apply a leave: %w", err)
	}
	if outcomes[0] == LeaveLater {
		return "", later(l.User)
	}
	return outcomes[0], nil
}

// LeavesReceipt answers a bulk of leaves. Deferred counts those that are kept in memory; Rejected has those that were
// refused. The others were applied.
type LeavesReceipt struct {
	Deferred int
	Rejected []Rejection
}

// Leaves applies up to MaxBatch leaves. Items are judged one by one: a bad one is rejected, the others are applied. It
// returns a *fault.Error of kind Unavailable when the state cannot be reached; some items may have been applied then, and
// all may be sent again.
func (t *Tracker) Leaves(ctx context.Context, leaves []Leave) (LeavesReceipt, error) {
	var r LeavesReceipt
	good, at := make([]Leave, 0, len(leaves)), make([]int, 0, len(leaves))
	for i, l := range leaves {
		if err := fault.Refuse(l.check()); err != nil {
			r.Rejected = append(r.Rejected, Rejection{i, err})
			continue
		}
		good, at = append(good, l), append(at, i)
	}
	if len(good) == 0 {
		return r, nil
	}
	outcomes, err := t.applyLeaves(ctx, good)
	if err != nil {
		return LeavesReceipt{}, fmt.Errorf("apply %d leaves: %w", len(good), err)
	}
	for i, o := range outcomes {
		switch o {
		case LeaveDeferred:
			r.Deferred++
		case LeaveLater:
			r.Rejected = append(r.Rejected, Rejection{at[i], later(good[i].User)})
		}
	}
	return r, nil
}

func (t *Tracker) applyLeaves(ctx context.Context, leaves []Leave) ([]LeaveOutcome, error) {
	outcomes, err := t.store.Leaves(ctx, leaves)
	if err != nil {
		t.tally.leavesFailed.Add(int64(len(leaves)))
		return nil, err
	}
	t.tally.countLeaves(outcomes)
	return outcomes, nil
}
