// Package redisstore is the live state in Redis: leases, deadline index, user records and outbox. Every
// transition is one Lua script, so it happens whole or not at all, and time is Redis's own (design D2, D3).
package redisstore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/presence"
)

// DefaultPrefix is in front of every key.
const DefaultPrefix = "uc:"

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
}

// Store is the live state. It is safe for concurrent use and does no I/O before its first call.
type Store struct {
	client *Client
	keys   keys
	// args are ARGV 1 and 2 of every script.
	args    [2]any
	checked atomic.Bool // the recorded number of partitions was compared with ours
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
	return &Store{
		client: c,
		keys:   keys{prefix: cfg.Prefix, partitions: cfg.Partitions},
		args:   [2]any{rand.Text()[:10], leases},
	}
}

// Partitions returns how many partitions the state has.
func (s *Store) Partitions() int { return s.keys.partitions }

// LeasePartition returns the partition of a lease key, and false for a key that is none of ours.
func (s *Store) LeasePartition(key string) (int, bool) { return s.keys.leasePartition(key) }

// call is one run of a script.
type call struct {
	script *redis.Script
	keys   []string
	args   []any
	cmd    *redis.Cmd
}

// newCall begins a call of a script on partition p, with room for the keys and args of items items.
func (s *Store) newCall(script *redis.Script, p, items, argsPerItem int) *call {
	keys := make([]string, 0, 4+2*items)
	args := make([]any, 0, 2+argsPerItem*items)
	return &call{script: script, keys: append(keys, s.keys.shared(p)...), args: append(args, s.args[:]...)}
}

// run sends the calls in one round trip. A script that the server does not know yet is loaded and only the
// calls that were refused for it are sent again: those had not begun. When it returns an error, any call may
// or may not have been run: every script may be run again.
func (s *Store) run(ctx context.Context, calls ...*call) error {
	client, err := s.client.get(ctx)
	if err != nil {
		return err
	}
	if err := s.checkPartitions(ctx, client); err != nil {
		return err
	}
	pending := calls
	for range 3 {
		pipe := client.Pipeline()
		for _, c := range pending {
			c.cmd = pipe.EvalSha(ctx, c.script.Hash(), c.keys, c.args...)
		}
		_, _ = pipe.Exec(ctx) // each command has its own error
		var unknown []*call
		for _, c := range pending {
			err := c.cmd.Err()
			switch {
			case err == nil || errors.Is(err, redis.Nil):
			case redis.HasErrorPrefix(err, "NOSCRIPT"):
				unknown = append(unknown, c)
			default:
				return unavailable(err)
			}
		}
		if len(unknown) == 0 {
			return nil
		}
		loaded := map[*redis.Script]bool{}
		for _, c := range unknown {
			if !loaded[c.script] {
				loaded[c.script] = true
				if err := c.script.Load(ctx, client).Err(); err != nil {
					return unavailable(fmt.Errorf("load a script: %w", err))
				}
			}
		}
		pending = unknown
	}
	return unavailable(errors.New("the server forgets its scripts as fast as they are loaded"))
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
		return &presence.Error{Kind: presence.Unavailable, Message: "the state is not available: the app's settings do not fit it",
			Err: fmt.Errorf("REDIS_PARTITIONS is %d, but the state in Redis has %s: set REDIS_PARTITIONS=%s, or delete the keys %s* to begin anew",
				s.keys.partitions, recorded, recorded, s.keys.prefix)}
	}
	s.checked.Store(true)
	return nil
}

// unavailable is what every fault of Redis becomes: a passing one, with the cause for the log.
func unavailable(err error) error {
	var e *presence.Error
	if errors.As(err, &e) {
		return err
	}
	message := "the state store cannot be reached: try again"
	if redis.HasErrorPrefix(err, "OOM") {
		message = "the state store is full: try again later"
	}
	return &presence.Error{Kind: presence.Unavailable, Message: message, RetryAfter: time.Second, Err: err}
}

// ageMillis is how long ago an item came in, in whole milliseconds, 0 for one from the future.
func ageMillis(at time.Time) int64 {
	if at.IsZero() {
		return 0
	}
	return max(time.Since(at).Milliseconds(), 0)
}

func seqArg(seq *int64) string {
	if seq == nil {
		return ""
	}
	return strconv.FormatInt(*seq, 10)
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

func groupsArg(groups []string) string {
	if groups == nil {
		return "*"
	}
	return strings.Join(groups, " ")
}

// byPartition groups the positions of items by partition, keeping their order, in chunks of maxItems.
func (s *Store) byPartition(n int, user func(i int) string) (chunks []chunk) {
	open := map[int]int{} // partition -> position in chunks
	for i := range n {
		p := s.keys.partition(user(i))
		c, ok := open[p]
		if !ok || len(chunks[c].items) == maxItems {
			c = len(chunks)
			open[p] = c
			chunks = append(chunks, chunk{partition: p})
		}
		chunks[c].items = append(chunks[c].items, i)
	}
	return chunks
}

type chunk struct {
	partition int
	items     []int
}
