package redisstore

import (
	"context"
	"fmt"
	"slices"
	"time"

	"userconnectivity/handler/redisconn"
)

const (
	// ListenerLease is how long a listener alone reports foreign keys after its last call.
	ListenerLease = 5 * time.Second
	// MaxForeignKey is the length of the longest foreign key that is reported, in bytes.
	MaxForeignKey = 1024
)

// Ours reports whether a key is one of the state's own.
func (s *Store) Ours(key string) bool { return s.keys.ours(key) }

// KeysExpired writes an event for each foreign key that expired, in the partitions whose listener lease this Store
// holds or that nobody holds, and returns how many. Keys are valid UTF-8. After an error some may have been written:
// do not call again with the same keys, since a second event would have an id of its own.
func (s *Store) KeysExpired(ctx context.Context, keys []string) (int, error) {
	written := 0
	for some := range slices.Chunk(keys, foreignATurn) {
		var calls []*redisconn.Call
		for _, c := range chunksOf(some, s.keys.partitions, s.keys.partition) {
			calls = append(calls, s.keyExpired(c.partition, ListenerLease, c.items))
		}
		if err := s.runBehind(ctx, len(calls), calls...); err != nil {
			return written, fmt.Errorf("report %d foreign keys: %w", len(keys), err)
		}
		for _, c := range calls {
			n, err := c.Cmd.Int()
			if err != nil {
				return written, fmt.Errorf("read how many foreign keys were reported: %w", err)
			}
			written += n
		}
	}
	return written, nil
}

// HoldListener takes the listener leases that nobody holds, and renews our own, for the time given: ListenerLease, or
// a millisecond to leave them to others.
func (s *Store) HoldListener(ctx context.Context, lease time.Duration) error {
	calls := make([]*redisconn.Call, s.Partitions())
	for p := range calls {
		calls[p] = s.keyExpired(p, lease, nil)
	}
	if err := s.runBehind(ctx, partitionsATurn, calls...); err != nil {
		return fmt.Errorf("hold the listener leases: %w", err)
	}
	return nil
}

func (s *Store) keyExpired(p int, lease time.Duration, keys []string) *redisconn.Call {
	c := s.newCall(keyExpiredScript, p, 1, 1+len(keys))
	c.Keys, c.Args = append(c.Keys, s.keys.in(p, "listener")), append(c.Args, lease.Milliseconds())
	for _, key := range keys {
		c.Args = append(c.Args, key)
	}
	return c
}
