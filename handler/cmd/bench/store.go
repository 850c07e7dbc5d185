package main

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"sync"
	"time"

	"userconnectivity/handler/presence"
	"userconnectivity/handler/redisconn"
	"userconnectivity/handler/redisstore"
)

const (
	// bulkOf is how many beats a bulk has.
	bulkOf = 1000
	// bulkConnections send bulks back to back.
	bulkConnections = 4
	// bulkDepth is how many script calls the store sends of a bulk in one round trip, 200 beats each.
	bulkDepth = 2
	// besideConnections send single beats beside them.
	besideConnections = 4
	// benchmarkPrefix is in front of the keys that redis-benchmark uses.
	benchmarkPrefix = "rb"
)

// liveStore is the store of the handler, without the handler.
type liveStore struct {
	*redisstore.Store
	client *redisconn.Client
}

func newStore(redis *redisServer, cfg redisstore.Config) *liveStore {
	client := redisconn.NewClient(redisconn.Endpoint{URL: redis.url()}, "bench", nil)
	return &liveStore{redisstore.New(client, cfg), client}
}

func (s *liveStore) close() {
	s.Close()
	_ = s.client.Close() // the server goes too
}

// usual is the layout that the handler has by default.
var usual = redisstore.Config{Partitions: partitions, LeaseKeys: true}

var (
	defaultTTL = presence.DefaultTTL
	longTTL    = presence.MaxTTL
)

// beatsOf are beats of users first to first+n-1.
func beatsOf(first, n int, ttl *time.Duration) []presence.Beat {
	beats := make([]presence.Beat, n)
	now := time.Now()
	for i := range beats {
		beats[i] = presence.Beat{User: userID(first + i), Session: presence.DefaultSession, TTL: ttl, At: now}
	}
	return beats
}

// seed lets users first to first+n-1 beat once, and forgets their events.
func (s *liveStore) seed(ctx context.Context, redis *redisServer, cfg redisstore.Config, first, n int, ttl *time.Duration) error {
	keys, err := outboxesOf(cfg)
	if err != nil {
		return err
	}
	const forget = 50 * bulkOf // so that the events do not pile up
	for from := 0; from < n; from += bulkOf {
		if err := s.apply(ctx, beatsOf(first+from, min(bulkOf, n-from), ttl)); err != nil {
			return err
		}
		if (from+bulkOf)%forget == 0 || from+bulkOf >= n {
			if err := redis.admin.Del(ctx, keys...).Err(); err != nil {
				return fmt.Errorf("forget the events: %w", err)
			}
		}
	}
	return nil
}

// apply makes a bulk of beats, each of which must hold.
func (s *liveStore) apply(ctx context.Context, beats []presence.Beat) error {
	outcomes, err := s.Heartbeats(ctx, beats)
	if err != nil {
		return fmt.Errorf("let users beat: %w", err)
	}
	for i, o := range outcomes {
		if o.Status != presence.Online || o.Change == presence.ChangeStale {
			return fmt.Errorf("let users beat: the answer to %s is %s, %s", beats[i].User, o.Change, o.Status)
		}
	}
	return nil
}

// outboxes are the keys of the usual layout's outbox streams.
func outboxes() ([]string, error) { return outboxesOf(usual) }

func outboxesOf(cfg redisstore.Config) ([]string, error) {
	layout := redisstore.New(nil, cfg)
	found := map[string]bool{}
	for i := 0; i < 100_000 && len(found) < cfg.Partitions; i++ {
		found[layout.OutboxKey(userID(i))] = true
	}
	if len(found) != cfg.Partitions {
		return nil, fmt.Errorf("%d of %d partitions have users", len(found), cfg.Partitions)
	}
	keys := make([]string, 0, len(found))
	for key := range found {
		keys = append(keys, key)
	}
	return keys, nil
}

// single runs single beats in goroutines for d.
func (s *liveStore) single(ctx context.Context, first, count, goroutines int, d time.Duration) (outcome, error) {
	all := beatsOf(first, count, &defaultTTL)
	return loop(goroutines, d, func(i int) func() error {
		var mine []presence.Beat
		for next := i; next < count; next += goroutines {
			mine = append(mine, all[next])
		}
		next := 0
		return func() error {
			b := mine[next : next+1]
			next = (next + 1) % len(mine)
			b[0].At = time.Now()
			outcomes, err := s.Heartbeats(ctx, b)
			if err == nil && outcomes[0].Status != presence.Online {
				err = fmt.Errorf("a beat was answered %+v", outcomes[0])
			}
			return err
		}
	})
}

// bulks runs bulks, one after the other, for d. It counts beats.
func (s *liveStore) bulks(ctx context.Context, d time.Duration) (outcome, error) {
	o, err := loop(1, d, func(int) func() error {
		all := beatsOf(0, users, &defaultTTL)
		next := 0
		return func() error {
			beats := all[next : next+bulkOf]
			next = (next + bulkOf) % users
			now := time.Now()
			for i := range beats {
				beats[i].At = now
			}
			_, err := s.Heartbeats(ctx, beats)
			return err
		}
	})
	o.count *= bulkOf
	return o, err
}

// contest is one way to beat, and redis-benchmark with the same script calls.
type contest struct {
	name string
	bar  float64
	// run returns beats in a second.
	run          func(ctx context.Context, d time.Duration) (outcome, error)
	depth        float64 // script calls in a round trip when it is known, 0 to measure
	shape        shape
	ours, theirs []float64
	longest      time.Duration
}

// storePath is section B: the store without HTTP, and bulks through the handler.
func storePath(ctx context.Context, p plan, r *report) error {
	redis, err := startRedis(ctx)
	if err != nil {
		return err
	}
	defer redis.stop()
	s := newStore(redis, usual)
	defer s.close()
	if err := s.seed(ctx, redis, usual, 0, users, &longTTL); err != nil {
		return err
	}
	bare, err := newBenchmark(ctx, redis)
	if err != nil {
		return err
	}
	// Without the listener, since the script calls of its sweeps would be counted as calls of beats.
	handler, err := startHandler(ctx, p, redis, "AzureWebJobs_ExpirationListener_Disabled=true")
	if err != nil {
		return err
	}
	defer handler.stop()

	var allocations, bytes []float64
	single := &contest{
		name: fmt.Sprintf("store, %d single beats at a time", connections), bar: 0.9,
		run: func(ctx context.Context, d time.Duration) (outcome, error) {
			o, err := s.single(ctx, 0, users, connections, d)
			if o.count > 0 {
				allocations = append(allocations, float64(o.mallocs)/float64(o.count))
				bytes = append(bytes, float64(o.bytes)/float64(o.count))
			}
			return o, err
		},
	}
	bulk := &contest{name: fmt.Sprintf("store, bulks of %d", bulkOf), bar: 0.9, depth: bulkDepth, run: s.bulks}
	posted := &contest{
		name: fmt.Sprintf("POST /api/heartbeats of %d", bulkOf), bar: 0.8, depth: bulkDepth,
		run: func(ctx context.Context, d time.Duration) (outcome, error) {
			o, err := load{handler.addr, bulkConnections, bulkBeats(users, bulkOf)}.run(ctx, d)
			o.count *= bulkOf
			return o, err
		},
	}
	contests := []*contest{single, bulk, posted}
	for range p.rounds {
		for _, c := range contests {
			if err := c.round(ctx, p.round, redis, bare); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	for _, c := range contests {
		r.ratio("B", c.name+", to redis-benchmark with the same script", median(c.ours), median(c.theirs), c.bar, 0)
		r.atMost("B", c.name+", longest script call", c.longest, 10*time.Millisecond)
		r.figure("B", c.name, "%s beats/s; redis-benchmark %s (%.1f beats a call, of %.0f partitions, %.1f calls a round trip)",
			thousands(median(c.ours)), thousands(median(c.theirs)), c.shape.perCall, c.shape.sections, c.shape.depth)
	}
	r.numberAtMost("B", "store, allocations a beat", median(allocations), 10, "")
	r.figure("B", "store, bytes allocated a beat", "%.0f", median(bytes))

	beside, err := besideBulks(ctx, handler, p.round)
	if err != nil {
		return err
	}
	r.atMost("B", "single beats beside the bulks, p99", quantile(beside.times, 99), 10*time.Millisecond)
	return nil
}

// round runs ours and then redis-benchmark in the shape that ours had.
func (c *contest) round(ctx context.Context, d time.Duration, redis *redisServer, bare *benchmark) error {
	if _, err := c.run(ctx, warmUp); err != nil {
		return err
	}
	if err := redis.beginCount(ctx); err != nil {
		return err
	}
	o, err := c.run(ctx, d)
	if err != nil {
		return err
	}
	longest, err := redis.longestScript(ctx)
	if err != nil {
		return err
	}
	c.longest = max(c.longest, longest)
	if c.shape, err = redis.shape(ctx, o.count); err != nil {
		return err
	}
	if c.depth > 0 {
		c.shape.depth = c.depth
	}
	theirs, err := bare.beats(ctx, c.shape, d)
	if err != nil {
		return err
	}
	c.ours, c.theirs = append(c.ours, o.rate()), append(c.theirs, theirs)
	return nil
}

// besideBulks measures single beats while bulks come in back to back.
func besideBulks(ctx context.Context, handler *process, d time.Duration) (outcome, error) {
	var bulkErr error
	var running sync.WaitGroup
	running.Go(func() {
		_, bulkErr = load{handler.addr, bulkConnections, bulkBeats(users, bulkOf)}.run(ctx, d)
	})
	o, err := load{handler.addr, besideConnections, singleBeats(users, besideConnections)}.run(ctx, d)
	running.Wait()
	if err == nil {
		err = bulkErr
	}
	return o, err
}

// benchmark is redis-benchmark with the script of renewals. It has as many users as ours, in as many partitions; at
// each beat the keys are of random users of a partition.
type benchmark struct {
	redis *redisServer
	// layouts have one partition each.
	layouts []*redisstore.Store
	users   int // of a partition
}

func newBenchmark(ctx context.Context, redis *redisServer) (*benchmark, error) {
	b := &benchmark{redis: redis, users: users / partitions}
	for p := range partitions {
		cfg := redisstore.Config{Prefix: benchmarkPrefix + strconv.Itoa(p), Partitions: 1, LeaseKeys: true}
		s := newStore(redis, cfg)
		err := s.seed(ctx, redis, cfg, 0, b.users, &longTTL)
		s.close()
		if err != nil {
			return nil, err
		}
		b.layouts = append(b.layouts, redisstore.New(nil, cfg))
	}
	return b, nil
}

// beats returns how many beats in a second redis-benchmark makes in a shape. Between two whole numbers of beats in a
// call the time of a call is interpolated.
func (b *benchmark) beats(ctx context.Context, s shape, d time.Duration) (float64, error) {
	below := max(math.Floor(s.perCall), 1)
	part := max(s.perCall-below, 0)
	const negligible = 0.05
	if part < negligible || below >= 20 {
		calls, err := b.calls(ctx, int(math.Round(max(s.perCall, 1))), s, d)
		return calls * math.Round(max(s.perCall, 1)), err
	}
	fewer, err := b.calls(ctx, int(below), s, d/2)
	if err != nil {
		return 0, err
	}
	more, err := b.calls(ctx, int(below)+1, s, d/2)
	if err != nil {
		return 0, err
	}
	return s.perCall / ((1-part)/fewer + part/more), nil
}

// calls returns how many calls of so many beats redis-benchmark makes in a second.
func (b *benchmark) calls(ctx context.Context, beats int, s shape, d time.Duration) (float64, error) {
	command, err := b.redis.script(ctx, b.call(beats, int(math.Round(s.sections))))
	if err != nil {
		return 0, err
	}
	return b.redis.benchmark(ctx, d, int(math.Round(max(s.depth, 1))), b.users, command)
}

// call returns a call of beats that are spread over so many partitions.
func (b *benchmark) call(beats, over int) redisstore.ScriptCall {
	over = min(max(over, 1), beats, len(b.layouts))
	calls := make([]redisstore.ScriptCall, over)
	for p := range over {
		some := make([]presence.Beat, (beats+over-1-p)/over)
		for i := range some {
			some[i] = presence.Beat{User: userPrefix + placeholder, Session: presence.DefaultSession, TTL: &defaultTTL}
		}
		calls[p] = b.layouts[p].RenewCall(some)
	}
	return redisstore.JoinRenewCalls(calls)
}
