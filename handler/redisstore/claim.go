package redisstore

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/redisconn"
)

// Due is what a look at one partition's deadline index found.
type Due struct {
	Partition int
	// Now is the time of Redis.
	Now time.Time
	// Next is the first deadline that has not passed, zero when there is none.
	Next time.Time
	// Outbox is how many entries wait in the outbox, delivered to a relay or not.
	Outbox int64
	// Members are sessions whose deadline has passed, oldest first, at most maxItems.
	Members []string
}

// Full reports whether more may be due than was returned.
func (d Due) Full() bool { return len(d.Members) == maxItems }

// Due looks at the partitions' deadline indexes. It changes nothing. With an error it returns what it
// found in the partitions that did answer.
func (s *Store) Due(ctx context.Context, partitions []int) ([]Due, error) {
	calls := make([]*redisconn.Call, len(partitions))
	for n, p := range partitions {
		calls[n] = s.newCall(dueScript, p, 0, 2)
		calls[n].Args = append(calls[n].Args, maxItems, s.later.pass(p, time.Now()))
	}
	fault := s.runBehind(ctx, partitionsATurn, calls...)
	found := make([]Due, 0, len(partitions))
	for n, p := range partitions {
		if calls[n].Err != nil {
			continue
		}
		d, err := dueOf(p, calls[n].Cmd)
		if err != nil {
			fault = cmp.Or(fault, fmt.Errorf("read what is due in partition %d: %w", p, err))
			continue
		}
		found = append(found, d)
	}
	return found, fault
}

// dueOf reads the answer of lua/due.lua.
func dueOf(p int, cmd *redis.Cmd) (d Due, err error) {
	reply, err := cmd.Slice()
	if err != nil {
		return d, err
	}
	if len(reply) < 3 {
		return d, fmt.Errorf("unexpected reply %v", reply)
	}
	outbox, ok := reply[2].(int64)
	rest, ok2 := stringsOf(append(reply[:2:2], reply[3:]...))
	if !ok || !ok2 {
		return d, fmt.Errorf("unexpected reply %v", reply)
	}
	d = Due{Partition: p, Outbox: outbox, Members: rest[2:]}
	if d.Now, err = millis(rest[0]); err != nil {
		return d, err
	}
	d.Next, err = millis(rest[1])
	return d, err
}

// Claims counts what a sweep did.
type Claims struct {
	// Late holds how long after its deadline each session was claimed.
	Late []time.Duration
	// Lost were renewed, or claimed by another sweep, in the meantime.
	Lost int
	// Quarantined were deadlines of sessions that no record knows.
	Quarantined int
	// Later wait for a process of a later version, which alone can end them.
	Later int
}

// Claim ends the sessions that Due found, unless they were renewed meanwhile: each with one event in the
// outbox, written by the same script (design D3). Two sweepers may claim the same: one wins. With an error it returns
// what it claimed in the partitions that did answer.
func (s *Store) Claim(ctx context.Context, due []Due) (Claims, error) {
	var calls []*redisconn.Call
	var partitions []int // of the calls
	var claims Claims
	for _, d := range due {
		c := s.newCall(claimScript, d.Partition, len(d.Members), 2)
		waiting := 0
		for _, m := range d.Members {
			if laterMember(m) {
				waiting++
				continue
			}
			user, session, ok := cutMember(m)
			if ok {
				c.Keys = append(c.Keys, s.keys.user(d.Partition, user), s.keys.lease(d.Partition, user, session))
			} else {
				user = ""
				c.Keys = append(c.Keys, c.Keys[0], c.Keys[0])
			}
			c.Args = append(c.Args, m, len(user))
		}
		claims.Later += waiting
		s.later.found(d.Partition, waiting, time.Now())
		if waiting < len(d.Members) {
			calls, partitions = append(calls, c), append(partitions, d.Partition)
		}
	}
	if len(calls) == 0 {
		return claims, nil
	}
	fault := s.runBehind(ctx, claimsATurn, calls...)
	for n, c := range calls {
		replies, err := c.Replies((len(c.Keys) - 4) / 2)
		if err != nil {
			fault = cmp.Or(fault, fmt.Errorf("read the claims: %w", err))
			continue
		}
		waiting := 0
		for _, r := range replies {
			switch late, _ := r.(int64); {
			case late == -1:
				claims.Lost++
			case late == -2:
				claims.Quarantined++
			case late == -3:
				waiting++
			default:
				claims.Late = append(claims.Late, time.Duration(late)*time.Millisecond)
			}
		}
		claims.Later += waiting
		s.later.found(partitions[n], waiting, time.Now())
	}
	return claims, fault
}

// runBehind runs calls of the background, so many a turn, and returns the first fault. Each call has its own.
func (s *Store) runBehind(ctx context.Context, aTurn int, calls ...*redisconn.Call) (fault error) {
	for some := range slices.Chunk(calls, aTurn) {
		err := s.client.Through(ctx, redisconn.Background, func() error { return s.run(ctx, some...) })
		for _, c := range some {
			if c.Err == nil && c.Cmd == nil {
				c.Err = err // they had no turn
			}
		}
		fault = cmp.Or(fault, err)
	}
	return fault
}

func stringsOf(replies []any) ([]string, bool) {
	out := make([]string, len(replies))
	for i, v := range replies {
		var ok bool
		if out[i], ok = v.(string); !ok {
			return nil, false
		}
	}
	return out, true
}
