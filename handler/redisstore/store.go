// Package redisstore is the live state in Redis: leases, deadline index, user records and outbox. Every
// transition is one Lua script, so it happens whole or not at all, and time is Redis's own (design D2, D3).
package redisstore

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/redisconn"
)

// DefaultPrefix is in front of every key.
const DefaultPrefix = "uc"

// Config says how the state is laid out.
type Config struct {
	// Prefix is in front of every key; DefaultPrefix when empty.
	Prefix string
	// Partitions is the number of hash slots that the state is spread over (1 to 1024). It is recorded in
	// Redis at first use; another count is refused from then on.
	Partitions int
	// LeaseKeys keeps a key with a time to live for each session, for other clients of Redis. Nothing of ours
	// reads it; off saves its memory.
	LeaseKeys bool
	// Log gets a line when something of a later version is met for the first time; nil for none.
	Log *slog.Logger
}

// Store is the live state. It is safe for concurrent use and does no I/O before its first call.
type Store struct {
	client *redisconn.Client
	keys   keys
	// shared are KEYS 1 to 4 of each partition's scripts, and args ARGV 1 and 2.
	shared [][4]any
	args   [2]any
	// clockOf returns the clock by which what goes to a partition is dated.
	clockOf func(partition int) *redisconn.Clock
	beats   *redisconn.Lane[*beatItem]
	reads   *redisconn.Lane[*readItem]
	leaves  *redisconn.Lane[*leaveItem]
	checked atomic.Bool // the recorded number of partitions was compared with ours
	later   later
}

// New returns a Store on the shared client.
func New(c *redisconn.Client, cfg Config) *Store {
	if cfg.Prefix == "" {
		cfg.Prefix = DefaultPrefix
	}
	leases := "0"
	if cfg.LeaseKeys {
		leases = "1"
	}
	s := &Store{
		client: c,
		keys:   newKeys(cfg.Prefix, cfg.Partitions),
		args:   [2]any{rand.Text()[:10], leases},
	}
	for p := range cfg.Partitions {
		s.shared = append(s.shared, s.keys.shared(p))
	}
	s.clockOf = s.clockOfServer
	s.later.log, s.later.passed = cfg.Log, make([]passed, cfg.Partitions)
	s.beats, s.leaves, s.reads = redisconn.NewLane(c, s.flushBeats), redisconn.NewLane(c, s.flushLeaves), redisconn.NewLane(c, s.flushReads)
	return s
}

// Close ends the goroutines that gather requests. Requests still under way end by their own deadlines.
func (s *Store) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), redisconn.CommandTimeout)
	defer cancel()
	s.beats.Stop(ctx)
	s.leaves.Stop(ctx)
	s.reads.Stop(ctx)
}

// Partitions returns how many partitions the state has.
func (s *Store) Partitions() int { return s.keys.partitions }

// clockOfServer returns the clock of the server that has a partition.
func (s *Store) clockOfServer(p int) *redisconn.Clock { return s.client.ClockOf(s.keys.outbox(p)) }

// LeasePartition returns the partition of a lease key, and false for a key that is none of ours.
func (s *Store) LeasePartition(key string) (int, bool) { return s.keys.leasePartition(key) }

// newCall begins a call of a script on partition p, with room for items of two keys and argsPerItem args each.
func (s *Store) newCall(script *redis.Script, p, items, argsPerItem int) *redisconn.Call {
	c := &redisconn.Call{Script: script, Keys: make([]any, 0, 4+2*items), Args: make([]any, 0, 3+argsPerItem*items)}
	c.Keys, c.Args = append(c.Keys, s.shared[p][:]...), append(c.Args, s.args[:]...)
	return c
}

// newDatedCall is newCall for a script that takes when its items were received. Its answers end with the server's time.
func (s *Store) newDatedCall(script *redis.Script, p, items, argsPerItem int) *redisconn.Call {
	c := s.newCall(script, p, items, argsPerItem)
	c.Dating = s.clockOf(p).Dating()
	c.Args = append(c.Args, c.Dating)
	return c
}

// run sends the calls in one round trip, once it is known that the state fits our settings; see redisconn.Client.Run.
func (s *Store) run(ctx context.Context, calls ...*redisconn.Call) error {
	if !s.checked.Load() {
		if _, err := s.connect(ctx); err != nil {
			for _, c := range calls {
				c.Err = err
			}
			return err
		}
	}
	return s.client.Run(ctx, calls...)
}

// connect returns the shared client once it is known that the state fits our settings.
func (s *Store) connect(ctx context.Context) (redis.UniversalClient, error) {
	client, err := s.client.Connect(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.checkPartitions(ctx, client); err != nil {
		return nil, s.client.Diagnose(err)
	}
	return client, nil
}

// checkPartitions records the number of partitions, or refuses to work with a changed one: users would be
// looked for where they are not.
func (s *Store) checkPartitions(ctx context.Context, client redis.UniversalClient) error {
	if s.checked.Load() {
		return nil
	}
	key := s.keys.partitionCount()
	if err := client.SetNX(ctx, key, s.keys.partitions, 0).Err(); err != nil {
		return redisconn.Unavailable(fmt.Errorf("record the number of partitions: %w", err))
	}
	recorded, err := client.Get(ctx, key).Result()
	if err != nil {
		return redisconn.Unavailable(fmt.Errorf("read the number of partitions: %w", err))
	}
	if recorded != strconv.Itoa(s.keys.partitions) {
		return &fault.Error{
			Kind: fault.Unavailable, Message: "the state is not available: the app's settings do not fit it",
			Err: fmt.Errorf("REDIS_PARTITIONS is %d, but the state in Redis has %s: set REDIS_PARTITIONS=%s, or delete the keys %s* to begin anew",
				s.keys.partitions, recorded, recorded, s.keys.prefix),
		}
	}
	s.checked.Store(true)
	return nil
}

// millis reads a script's time in ms, "" for none.
func millis(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	ms, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("read time %q: %w", s, err)
	}
	return time.UnixMilli(ms).UTC(), nil
}

// take waits for a place, which somebody may hold.
func take(ctx context.Context, places chan struct{}, holder string) error {
	select {
	case places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return redisconn.Unavailable(fmt.Errorf("wait for %s: %w", holder, ctx.Err()))
	}
}

// chunk is items of one partition for one script call.
type chunk[T any] struct {
	partition int
	items     []T
}

// chunksOf groups items by partition, keeping their order, in chunks of at most maxItems.
func chunksOf[T any](items []T, partitions int, partition func(T) int) []chunk[T] {
	ends := make([]int, partitions+1) // first how many come before the partition, at last where it ends
	for _, it := range items {
		ends[partition(it)+1]++
	}
	n := 0
	for p := range partitions {
		n += (ends[p+1] + maxItems - 1) / maxItems
		ends[p+1] += ends[p]
	}
	sorted := make([]T, len(items))
	for _, it := range items {
		p := partition(it)
		sorted[ends[p]] = it
		ends[p]++
	}
	chunks, begin := make([]chunk[T], 0, n), 0
	for p, end := range ends[:partitions] {
		for ; begin < end; begin = min(begin+maxItems, end) {
			chunks = append(chunks, chunk[T]{p, sorted[begin:min(begin+maxItems, end)]})
		}
	}
	return chunks
}
