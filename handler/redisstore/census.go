package redisstore

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/metrics"
	"userconnectivity/handler/redisconn"
)

const (
	// censusEvery is how often the sessions are counted: a round trip that Redis answers without looking at any.
	censusEvery = 15 * time.Second
	// censusAge is how old a count is told at most: an older one is no news.
	censusAge = 4 * censusEvery
)

// Census counts what the whole state has, now and then. It is a prometheus.Collector: all processes that take it tell
// the same numbers.
type Census struct {
	store *Store

	mu   sync.Mutex
	last count
}

// count is what Redis said at a time.
type count struct {
	at       time.Time
	sessions int64
	memory   redisconn.Memories
}

// NewCensus returns a Census of s. Run takes it.
func NewCensus(s *Store) *Census { return &Census{store: s} }

// Run counts until ctx ends. What cannot be counted is told no more.
func (c *Census) Run(ctx context.Context) {
	t := time.NewTicker(censusEvery)
	defer t.Stop()
	for ctx.Err() == nil {
		if found, err := c.store.count(ctx); err == nil {
			c.mu.Lock()
			c.last = found
			c.mu.Unlock()
		}
		select {
		case <-ctx.Done():
		case <-t.C:
		}
	}
}

// Describe implements prometheus.Collector.
func (c *Census) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *Census) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	last := c.last
	c.mu.Unlock()
	if last.at.IsZero() || time.Since(last.at) > censusAge {
		return
	}
	metrics.Gauge(ch, "sessions_live", "Sessions of all users that have not ended, in the whole state; absent while Redis does not answer.", float64(last.sessions))
	for node, m := range last.memory {
		var labels []string
		if node != "" {
			labels = []string{"node", node}
		}
		metrics.Gauge(ch, "redis_memory_used_bytes", "Memory that Redis uses; of each primary of a cluster.", float64(m.Used), labels...)
		metrics.Gauge(ch, "redis_memory_limit_bytes", "Memory that Redis may use, 0 for no limit of its own; of each primary of a cluster.", float64(m.Limit), labels...)
	}
}

// count asks for the sizes of the deadline indexes, and each server for its memory where that is allowed.
func (s *Store) count(ctx context.Context) (count, error) {
	ctx, cancel := context.WithTimeout(ctx, redisconn.CommandTimeout)
	defer cancel()
	client, err := s.connect(ctx)
	if err != nil {
		return count{}, err
	}
	pipe := client.Pipeline()
	sizes := make([]*redis.IntCmd, s.keys.partitions)
	for p := range sizes {
		sizes[p] = pipe.ZCard(ctx, s.keys.in(p, "due"))
	}
	redisconn.Exec(ctx, pipe)
	found := count{at: time.Now()}
	for p, size := range sizes {
		n, err := size.Result()
		if err != nil {
			return count{}, fmt.Errorf("count the sessions of partition %d: %w", p, err)
		}
		found.sessions += n
	}
	found.memory, _ = s.client.Memory(ctx) // a right that is missing hides the memory alone
	return found, nil
}

// Overdue returns by how long the session that is overdue most has been, 0 for none, by the clock of Redis: how far all
// listeners together are behind.
func (s *Store) Overdue(ctx context.Context) (time.Duration, error) {
	client, err := s.connect(ctx)
	if err != nil {
		return 0, err
	}
	pipe := client.Pipeline()
	first := make([]*redis.ZSliceCmd, s.keys.partitions)
	for p := range first {
		first[p] = pipe.ZRangeWithScores(ctx, s.keys.in(p, "due"), 0, 0)
	}
	due, err := s.Due(ctx, []int{0}) // for the time of Redis
	if err != nil {
		return 0, err
	}
	redisconn.Exec(ctx, pipe)
	var overdue time.Duration
	for p, cmd := range first {
		sessions, err := cmd.Result()
		if err != nil {
			return 0, redisconn.Unavailable(fmt.Errorf("look at the deadlines of partition %d: %w", p, err))
		}
		for _, z := range sessions {
			overdue = max(overdue, due[0].Now.Sub(time.UnixMilli(int64(z.Score))))
		}
	}
	return overdue, nil
}
