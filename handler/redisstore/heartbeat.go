package redisstore

import (
	"context"
	"fmt"
	"strconv"

	"userconnectivity/handler/presence"
)

// Heartbeats applies beats in order: one script call for the beats of a partition, up to maxItems each, all
// in one round trip. See lua/heartbeat.lua.
func (s *Store) Heartbeats(ctx context.Context, beats []presence.Beat) ([]presence.BeatOutcome, error) {
	chunks := s.byPartition(len(beats), func(i int) string { return beats[i].User })
	calls := make([]*call, len(chunks))
	for n, ch := range chunks {
		c := s.newCall(heartbeatScript, ch.partition, len(ch.items), 9)
		for _, i := range ch.items {
			b := &beats[i]
			c.keys = append(c.keys, s.keys.user(ch.partition, b.User), s.keys.lease(ch.partition, b.User, b.Session))
			c.args = append(c.args, b.User, b.Session, int64(b.TTL.Seconds()), int64(b.Grace.Seconds()), ageMillis(b.At),
				seqArg(b.Seq), groupsArg(b.Groups), string(b.Meta), b.Traceparent)
		}
		calls[n] = c
	}
	if err := s.run(ctx, calls...); err != nil {
		return nil, err
	}
	outcomes := make([]presence.BeatOutcome, len(beats))
	for n, ch := range chunks {
		replies, err := calls[n].cmd.Slice()
		if err != nil || len(replies) != len(ch.items) {
			return nil, fmt.Errorf("read the reply to %d beats: %d answers, %w", len(ch.items), len(replies), err)
		}
		for k, i := range ch.items {
			if outcomes[i], err = beatOutcome(replies[k]); err != nil {
				return nil, fmt.Errorf("read the reply to a beat: %w", err)
			}
		}
	}
	return outcomes, nil
}

// beatOutcome reads one of lua/heartbeat.lua's answers: change, online, epoch, due, seq.
func beatOutcome(reply any) (o presence.BeatOutcome, err error) {
	f, ok := stringsOf(reply)
	if !ok || len(f) != 5 {
		return o, fmt.Errorf("unexpected answer %v", reply)
	}
	o.Change, o.Status = presence.Change(f[0]), presence.Offline
	if f[1] == "1" {
		o.Status = presence.Online
	}
	if f[2] != "" {
		if o.Epoch, err = strconv.ParseInt(f[2], 10, 64); err != nil {
			return o, err
		}
	}
	if o.ExpiresAt, err = millis(f[3]); err != nil {
		return o, err
	}
	if f[4] != "" {
		seq, err := strconv.ParseInt(f[4], 10, 64)
		if err != nil {
			return o, err
		}
		o.Seq = &seq
	}
	return o, nil
}

func stringsOf(reply any) ([]string, bool) {
	list, ok := reply.([]any)
	if !ok {
		return nil, false
	}
	out := make([]string, len(list))
	for i, v := range list {
		if out[i], ok = v.(string); !ok {
			return nil, false
		}
	}
	return out, true
}
