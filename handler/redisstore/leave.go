package redisstore

import (
	"context"
	"fmt"
	"time"

	"userconnectivity/handler/presence"
)

// Leaves applies leaves in order: one script call for those of a partition, up to maxItems each, all in one
// round trip. See lua/leave.lua.
func (s *Store) Leaves(ctx context.Context, leaves []presence.Leave) ([]presence.LeaveOutcome, error) {
	type item struct {
		at                int // position among the leaves
		partition         int
		userKey, leaseKey string
		received          int64
		seq               string
	}
	items := make([]*item, len(leaves))
	for i := range leaves {
		l := &leaves[i]
		p := s.keys.partition(l.User)
		items[i] = &item{
			at: i, partition: p, userKey: s.keys.user(p, l.User), leaseKey: s.keys.lease(p, l.User, l.Session),
			seq: seqArg(l.Seq),
		}
	}
	chunks := chunksOf(items, s.keys.partitions, func(it *item) int { return it.partition })
	calls := make([]*call, len(chunks))
	for n, ch := range chunks {
		c := s.newDatedCall(leaveScript, ch.partition, len(ch.items), 5)
		for _, it := range ch.items {
			l := &leaves[it.at]
			it.received = c.dating.received(l.At, time.Time{})
			c.keys = append(c.keys, &it.userKey, &it.leaseKey)
			c.args = append(c.args, &l.User, &l.Session, &it.received, &it.seq, &l.Traceparent)
		}
		calls[n] = c
	}
	if err := s.run(ctx, calls...); err != nil {
		return nil, err
	}
	outcomes := make([]presence.LeaveOutcome, len(leaves))
	var waits error // one waits for a later version; the others are applied
	for n, ch := range chunks {
		replies, err := calls[n].datedReplies(len(ch.items))
		if err != nil {
			return nil, fmt.Errorf("read the reply to %d leaves: %w", len(ch.items), err)
		}
		for k, it := range ch.items {
			outcome, _ := replies[k].(string)
			if outcome == "later" {
				s.later.refused.Add(1)
				s.later.tell("the record of a user who leaves")
				waits = errLater
			}
			outcomes[it.at] = presence.LeaveOutcome(outcome)
		}
	}
	if waits != nil {
		return nil, waits
	}
	return outcomes, nil
}
