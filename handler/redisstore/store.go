// Package redisstore is the live state in Redis: leases, deadline index, user records and outbox. Every
// transition is one Lua script, so it happens whole or not at all, and time is Redis's own (design D2, D3).
package redisstore

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/presence"
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
	client *Client
	keys   keys
	// shared are KEYS 1 to 4 of each partition's scripts, and args ARGV 1 and 2.
	shared [][4]any
	args   [2]any
	// clockOf returns the clock by which what goes to a partition is dated.
	clockOf func(partition int) *clock
	beats   *lane[*beatItem]
	reads   *lane[*readItem]
	leaves  *lane[*leaveItem]
	door    *door
	checked atomic.Bool // the recorded number of partitions was compared with ours
	apart   atomic.Bool // the server refused a script with keys of several partitions
	later   later
	refused atomic.Pointer[lastRefusal]
}

// New returns a Store on the shared client.
func New(c *Client, cfg Config) *Store {
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
		door:   newDoor(c),
	}
	for p := range cfg.Partitions {
		s.shared = append(s.shared, s.keys.shared(p))
	}
	s.clockOf = s.clockOfServer
	s.later.log, s.later.passed = cfg.Log, make([]passed, cfg.Partitions)
	s.beats, s.leaves, s.reads = newLane(s.flushBeats), newLane(s.flushLeaves), newLane(s.flushReads)
	return s
}

// Close ends the goroutines that gather requests. Requests still under way end by their own deadlines.
func (s *Store) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	s.beats.stop(ctx)
	s.leaves.stop(ctx)
	s.reads.stop(ctx)
}

// Partitions returns how many partitions the state has.
func (s *Store) Partitions() int { return s.keys.partitions }

// LeasePartition returns the partition of a lease key, and false for a key that is none of ours.
func (s *Store) LeasePartition(key string) (int, bool) { return s.keys.leasePartition(key) }

// call is one run of a script. Keys and args may be pointers: go-redis writes what they point to.
type call struct {
	script     *redis.Script
	keys, args []any
	dating     *dating // of a call with items that are dated
	cmd        *redis.Cmd
	err        error // set by run
}

// newCall begins a call of a script on partition p, with room for items of two keys and argsPerItem args each.
func (s *Store) newCall(script *redis.Script, p, items, argsPerItem int) *call {
	c := &call{script: script, keys: make([]any, 0, 4+2*items), args: make([]any, 0, 3+argsPerItem*items)}
	c.keys, c.args = append(c.keys, s.shared[p][:]...), append(c.args, s.args[:]...)
	return c
}

// newDatedCall is newCall for a script that takes when its items were received. Its answers end with the server's time.
func (s *Store) newDatedCall(script *redis.Script, p, items, argsPerItem int) *call {
	c := s.newCall(script, p, items, argsPerItem)
	c.dating = s.clockOf(p).dating()
	c.args = append(c.args, c.dating)
	return c
}

// command makes the EVALSHA of the call.
func (c *call) command(ctx context.Context) *redis.Cmd {
	args := make([]any, 0, 3+len(c.keys)+len(c.args))
	args = append(args, "evalsha", c.script.Hash(), len(c.keys))
	args = append(args, c.keys...)
	c.cmd = redis.NewCmd(ctx, append(args, c.args...)...)
	return c.cmd
}

// replies returns the script's answers, one for each of n items.
func (c *call) replies(n int) ([]any, error) {
	if c.err != nil {
		return nil, c.err
	}
	replies, err := c.cmd.Slice()
	if err != nil {
		return nil, err
	}
	if len(replies) != n {
		return nil, fmt.Errorf("%d answers to %d items", len(replies), n)
	}
	return replies, nil
}

// datedReplies is replies for a call of newDatedCall.
func (c *call) datedReplies(n int) ([]any, error) {
	replies, err := c.replies(n + 1)
	if err != nil {
		return nil, err
	}
	now, ok := replies[n].(int64)
	if !ok {
		return nil, fmt.Errorf("%v instead of the server's time", replies[n])
	}
	c.dating.learn(now)
	return replies[:n], nil
}

// run sends the calls in one round trip. A script that the server does not know yet is loaded and only the
// calls that were refused for it are sent again: those had not begun. Each call has its own error, since on a cluster
// one partition may be on the move while others are served; run returns the first of them. A call with an error may
// or may not have been run: every script may be run again.
func (s *Store) run(ctx context.Context, calls ...*call) error {
	if len(calls) == 0 {
		return nil
	}
	client, err := s.connect(ctx)
	for _, c := range calls {
		c.err = err
	}
	if err != nil {
		return err
	}
	pending := calls
	for range 3 {
		pipe := client.Pipeline()
		for _, c := range pending {
			_ = pipe.Process(ctx, c.command(ctx)) // queues it
		}
		s.client.exec(ctx, pipe)
		var unknown []*call
		for _, c := range pending {
			switch err := c.cmd.Err(); {
			case err == nil || errors.Is(err, redis.Nil):
				c.err = nil
			case redis.HasErrorPrefix(err, "NOSCRIPT"):
				c.err = unavailable(errForgetful)
				unknown = append(unknown, c)
			default:
				c.err = s.unavailable(err)
			}
		}
		if pending = load(ctx, client, unknown); len(pending) == 0 {
			break
		}
	}
	for _, c := range calls {
		if c.err != nil {
			return c.err
		}
	}
	return nil
}

var errForgetful = errors.New("the server forgets its scripts as fast as they are loaded")

// load has the servers of the calls load their scripts, and returns the calls that may be sent again.
func load(ctx context.Context, client redis.UniversalClient, calls []*call) (loaded []*call) {
	type place struct {
		server redis.Scripter
		script *redis.Script
	}
	done := map[place]error{}
	for _, c := range calls {
		at := place{client, c.script}
		var err error
		if cluster, ok := client.(*live).UniversalClient.(*redis.ClusterClient); ok {
			at.server, err = cluster.MasterForKey(ctx, c.keys[0].(string))
		}
		if _, tried := done[at]; !tried && err == nil {
			done[at] = c.script.Load(ctx, at.server).Err()
		}
		if err = cmp.Or(err, done[at]); err != nil {
			c.err = unavailable(fmt.Errorf("load a script: %w", err))
			continue
		}
		loaded = append(loaded, c)
	}
	return loaded
}

// connect returns the shared client once it is known that the state fits our settings.
func (s *Store) connect(ctx context.Context) (redis.UniversalClient, error) {
	client, err := s.client.connect(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.checkPartitions(ctx, client); err != nil {
		return nil, s.client.endpoint.diagnose(err)
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
		return unavailable(fmt.Errorf("record the number of partitions: %w", err))
	}
	recorded, err := client.Get(ctx, key).Result()
	if err != nil {
		return unavailable(fmt.Errorf("read the number of partitions: %w", err))
	}
	if recorded != strconv.Itoa(s.keys.partitions) {
		return &presence.Error{
			Kind: presence.Unavailable, Message: "the state is not available: the app's settings do not fit it",
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
		return unavailable(fmt.Errorf("wait for %s: %w", holder, ctx.Err()))
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
