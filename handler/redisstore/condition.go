package redisstore

import (
	"context"
	"time"
)

// CheckWrites writes small keys of a short life, on a cluster one to each primary whose circuit is closed, and returns
// what is refused with the cure; see redisconn.Client.CheckWrites.
func (s *Store) CheckWrites(ctx context.Context) (all bool, refused error) {
	if _, err := s.connect(ctx); err != nil {
		return true, err
	}
	keys := make([]string, s.keys.partitions)
	for p := range keys {
		keys[p] = s.keys.in(p, "probe")
	}
	return s.client.CheckWrites(ctx, keys)
}

// Away returns nil while every server may be asked. Otherwise it returns what tells whether the one that has a user's
// state must be left alone, and for how long at most; it is good for one look, by one goroutine.
func (s *Store) Away() func(user string) (retryAfter time.Duration, away bool) {
	awayOf := s.client.Away()
	if awayOf == nil {
		return nil
	}
	type answer struct {
		known, away bool
		wait        time.Duration
	}
	answers := make([]answer, s.keys.partitions)
	return func(user string) (time.Duration, bool) {
		p := s.keys.partition(user)
		a := &answers[p]
		if !a.known {
			a.known = true
			a.wait, a.away = awayOf(s.keys.outbox(p))
		}
		return a.wait, a.away
	}
}
