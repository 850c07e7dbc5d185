package redisstore

import (
	"context"
	"fmt"
	"slices"
	"time"

	"userconnectivity/handler/presence"
	"userconnectivity/handler/redisconn"
)

// leaveItem is one leave on its way to Redis and back.
type leaveItem struct {
	redisconn.Request
	leave             presence.Leave
	partition         int
	userKey, leaseKey string
	at                int64
	seq               string
	outcome           presence.LeaveOutcome
}

// Leaves applies leaves in order; see lua/leave.lua. A single one shares its round trip with those of other requests; the
// leaves of a bulk go in round trips of their own, a few hundred at a time.
func (s *Store) Leaves(ctx context.Context, leaves []presence.Leave) ([]presence.LeaveOutcome, error) {
	if len(leaves) == 1 {
		it := s.leaveItem(ctx, leaves[0])
		if handled, err := s.leaves.Share(it); !handled || err != nil {
			return nil, err
		}
		return []presence.LeaveOutcome{it.outcome}, nil
	}
	items := make([]*leaveItem, len(leaves))
	for i, l := range leaves {
		items[i] = s.leaveItem(ctx, l)
	}
	for some := range slices.Chunk(items, leavesATurn) {
		err := s.client.Through(ctx, redisconn.Bulk, func() error {
			s.applyLeaves(ctx, some)
			return firstErr(some)
		})
		if err != nil {
			return nil, err
		}
	}
	outcomes := make([]presence.LeaveOutcome, len(leaves))
	for i, it := range items {
		outcomes[i] = it.outcome
	}
	return outcomes, nil
}

func (s *Store) leaveItem(ctx context.Context, l presence.Leave) *leaveItem {
	p := s.keys.partition(l.User)
	return &leaveItem{
		Request: redisconn.NewRequest(ctx), leave: l, partition: p, seq: seqArg(l.Seq),
		userKey: s.keys.user(p, l.User), leaseKey: s.keys.lease(p, l.User, l.Session),
	}
}

// flushLeaves is what the lane does.
func (s *Store) flushLeaves(ctx context.Context, items []*leaveItem) error {
	s.applyLeaves(ctx, items)
	return nil // each item has its own error
}

// applyLeaves applies leaves in order, in one round trip. A leave with an error may have been applied.
func (s *Store) applyLeaves(ctx context.Context, items []*leaveItem) {
	chunks := chunksOf(items, s.keys.partitions, func(it *leaveItem) int { return it.partition })
	calls := make([]*redisconn.Call, len(chunks))
	for n, ch := range chunks {
		c := s.newDatedCall(leaveScript, ch.partition, len(ch.items), 5)
		for _, it := range ch.items {
			it.at = c.Dating.Received(it.leave.At, time.Time{})
			c.Keys = append(c.Keys, &it.userKey, &it.leaseKey)
			c.Args = append(c.Args, &it.leave.User, &it.leave.Session, &it.at, &it.seq, &it.leave.Traceparent)
		}
		calls[n] = c
	}
	_ = s.run(ctx, calls...) // each call has its own error
	for n, ch := range chunks {
		replies, err := calls[n].DatedReplies(len(ch.items))
		for k, it := range ch.items {
			if err != nil {
				it.Err = fmt.Errorf("apply %d leaves: %w", len(ch.items), err)
				continue
			}
			text, _ := replies[k].(string)
			if it.outcome = presence.LeaveOutcome(text); it.outcome == presence.LeaveLater {
				s.later.refused.Add(1)
				s.later.tell("the record of a user who leaves")
			}
		}
	}
}
