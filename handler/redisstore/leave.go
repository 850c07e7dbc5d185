package redisstore

import (
	"context"
	"fmt"

	"userconnectivity/handler/presence"
)

// Leaves applies leaves in order, as Heartbeats does beats. See lua/leave.lua.
func (s *Store) Leaves(ctx context.Context, leaves []presence.Leave) ([]presence.LeaveOutcome, error) {
	chunks := s.byPartition(len(leaves), func(i int) string { return leaves[i].User })
	calls := make([]*call, len(chunks))
	for n, ch := range chunks {
		c := s.newCall(leaveScript, ch.partition, len(ch.items), 5)
		for _, i := range ch.items {
			l := &leaves[i]
			c.keys = append(c.keys, s.keys.user(ch.partition, l.User), s.keys.lease(ch.partition, l.User, l.Session))
			c.args = append(c.args, l.User, l.Session, ageMillis(l.At), seqArg(l.Seq), l.Traceparent)
		}
		calls[n] = c
	}
	if err := s.run(ctx, calls...); err != nil {
		return nil, err
	}
	outcomes := make([]presence.LeaveOutcome, len(leaves))
	for n, ch := range chunks {
		replies, err := calls[n].cmd.StringSlice()
		if err != nil || len(replies) != len(ch.items) {
			return nil, fmt.Errorf("read the reply to %d leaves: %d answers, %w", len(ch.items), len(replies), err)
		}
		for k, i := range ch.items {
			outcomes[i] = presence.LeaveOutcome(replies[k])
		}
	}
	return outcomes, nil
}
