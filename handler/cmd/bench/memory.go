package main

import (
	"context"
	"fmt"

	"userconnectivity/handler/presence"
	"userconnectivity/handler/redisstore"
)

// memory is section C: what an online user with one session costs in Redis, against a bare lease key and a bare
// index entry.
func memory(ctx context.Context, p plan, r *report) error {
	floor, err := memoryOf(ctx, p, func(ctx context.Context, redis *redisServer) error { return bareKeys(ctx, redis, p.memoryUsers) })
	if err != nil {
		return err
	}
	cost := map[bool]float64{}
	for _, leases := range []bool{true, false} {
		cfg := usual
		cfg.LeaseKeys = leases
		if cost[leases], err = memoryOf(ctx, p, func(ctx context.Context, redis *redisServer) error {
			s := newStore(redis, cfg)
			defer s.close()
			return s.seed(ctx, redis, cfg, 0, p.memoryUsers, &longTTL)
		}); err != nil {
			return err
		}
	}
	r.ratioAtMost("C", "memory of an online user with lease key, to a bare key and index entry", cost[true], floor, 1.5)
	r.ratioAtMost("C", "memory of an online user without lease key, to the same", cost[false], floor, 1.1)
	r.figure("C", fmt.Sprintf("bytes of Redis for an online user, id of %d characters, one session", userLength),
		"%.0f with lease key, %.0f without, bare %.0f (%s users)", cost[true], cost[false], floor, thousands(float64(p.memoryUsers)))
	return nil
}

// memoryOf returns the bytes that fill takes for each user in a fresh Redis.
func memoryOf(ctx context.Context, p plan, fill func(context.Context, *redisServer) error) (float64, error) {
	redis, err := startRedis(ctx)
	if err != nil {
		return 0, err
	}
	defer redis.stop()
	before, err := redis.usedMemory(ctx)
	if err != nil {
		return 0, err
	}
	if err := fill(ctx, redis); err != nil {
		return 0, err
	}
	after, err := redis.usedMemory(ctx)
	return float64(after-before) / float64(p.memoryUsers), err
}

// bareKeys writes what any design needs: a lease key with a time to live, and an entry in a sorted set.
func bareKeys(ctx context.Context, redis *redisServer, n int) error {
	layout := redisstore.New(nil, usual)
	for first := 0; first < n; first += bulkOf {
		pipe := redis.admin.Pipeline()
		for _, b := range beatsOf(first, min(bulkOf, n-first), &longTTL) {
			call := layout.RenewCall([]presence.Beat{b})
			pipe.Set(ctx, layout.LeaseKey(b.User, b.Session), 1, longTTL)
			pipe.Do(ctx, "zadd", call.Keys[1], b.At.Add(longTTL).UnixMilli(), b.User+"/"+b.Session)
		}
		if _, err := pipe.Exec(ctx); err != nil {
			return fmt.Errorf("write bare keys: %w", err)
		}
	}
	return nil
}
