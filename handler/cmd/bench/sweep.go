package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/expiry"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/queue"
)

const (
	// expiries end in a second while the lateness is measured.
	expiries = 500
	// lateTTL holds a session that ends while the lateness is measured.
	lateTTL = 60 * time.Second
	// besideBeats is how many goroutines beat for other users during the sweep.
	besideBeats = 4
	// drainBatch is how many members one call of the bare drain takes, as many as a claim.
	drainBatch = 200
	// sweepPatience bounds each wait for the sweep.
	sweepPatience = 5 * time.Minute
)

// sweep is section D: how late sessions are claimed among many live ones, and how fast many that are due at once.
func sweep(ctx context.Context, p plan, r *report) error {
	bare, err := bareDrain(ctx, p.sessions)
	if err != nil {
		return fmt.Errorf("bare drain: %w", err)
	}
	redis, err := startRedis(ctx)
	if err != nil {
		return err
	}
	defer redis.stop()
	s := newStore(redis, usual)
	defer s.close()
	if err := s.seed(ctx, redis, usual, 0, p.sessions, &longTTL); err != nil {
		return err
	}
	others := p.sessions // the first of the users who go on beating, and after them those who end
	if err := s.seed(ctx, redis, usual, others, users, &longTTL); err != nil {
		return err
	}
	seen := &lateness{}
	relay := expiry.NewRelay(s.Outbox("bench"), partitions, seen, seen, queue.Codec{Source: "/bench"}, queue.Destinations{Events: queue.ConnectivityEvents}, slog.New(slog.DiscardHandler))
	listener := expiry.NewListener(s.client, s.Store, relay, slog.New(slog.DiscardHandler))
	listening, stop := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { listener.Run(listening) })
	defer running.Wait()
	defer stop()

	late, err := s.endSome(ctx, p, others+users, seen)
	if err != nil {
		return fmt.Errorf("lateness: %w", err)
	}
	r.atMost("D", fmt.Sprintf("lateness, %s live, %d ends a second, p99", thousands(float64(p.sessions)), expiries), percentile(late, 99), 50*time.Millisecond)
	r.atMost("D", "lateness, max", percentile(late, 100), 250*time.Millisecond)
	r.figure("D", "lateness, p50", "%s of %d ends", readable(percentile(late, 50)), len(late))

	took, beside, err := s.endAll(ctx, p, others, listener, redis)
	if err != nil {
		return fmt.Errorf("all due at once: %w", err)
	}
	longest, err := redis.longestScript(ctx)
	if err != nil {
		return err
	}
	r.ratioAtMost("D", fmt.Sprintf("%s sessions due at once, time to a bare ZREM+XADD drain", thousands(float64(p.sessions))), took.Seconds(), bare.Seconds(), 4)
	r.atMost("D", "sweep, longest script call", longest, 10*time.Millisecond)
	r.atMost("D", "sweep, beats of others meanwhile, p99", quantile(beside.times, 99), 20*time.Millisecond)
	r.figure("D", fmt.Sprintf("%s sessions due at once, all in the outbox", thousands(float64(p.sessions))), "after %s (%s/s); bare drain %s (%s/s); %s beats/s meanwhile",
		readable(took), thousands(float64(p.sessions)/took.Seconds()), readable(bare), thousands(float64(p.sessions)/bare.Seconds()), thousands(beside.rate()))
	return nil
}

// due returns a beat whose deadline is exactly at: a beat's instant and ttl give it.
func due(user int, at time.Time, ttl *time.Duration) presence.Beat {
	return presence.Beat{User: userID(user), Session: presence.DefaultSession, TTL: ttl, At: at.Add(-*ttl)}
}

// endSome lets sessions of users from first on end, expiries a second, and returns how late each was claimed, sorted.
func (s *liveStore) endSome(ctx context.Context, p plan, first int, seen *lateness) ([]time.Duration, error) {
	n := int(p.lateFor.Seconds() * expiries)
	ttl := lateTTL
	begin := time.Now().Add(2 * time.Second)
	for from := 0; from < n; from += bulkOf {
		beats := make([]presence.Beat, min(bulkOf, n-from))
		for i := range beats {
			beats[i] = due(first+from+i, begin.Add(time.Duration(from+i)*time.Second/expiries), &ttl)
		}
		if err := s.apply(ctx, beats); err != nil {
			return nil, err
		}
	}
	if time.Now().After(begin) {
		return nil, errors.New("the machine is too slow: the sessions were due before they were written")
	}
	if err := wait(ctx, sweepPatience, func() bool { return seen.count() >= n }); err != nil {
		return nil, fmt.Errorf("%d of %d ends were relayed: %w", seen.count(), n, err)
	}
	return seen.sorted(), nil
}

// endAll lets the sessions of the first users be due at the same instant, and returns how long it takes from then on
// until all are in the outbox, and how the beats of others go meanwhile.
func (s *liveStore) endAll(ctx context.Context, p plan, others int, listener *expiry.Listener, redis *redisServer) (time.Duration, outcome, error) {
	// The others tell how long it takes to write them all.
	began := time.Now()
	for from := 0; from < users; from += bulkOf {
		if err := s.apply(ctx, beatsOf(others+from, bulkOf, &longTTL)); err != nil {
			return 0, outcome{}, err
		}
	}
	at := time.Now().Add(time.Since(began)*time.Duration(p.sessions)/users*3/2 + 3*time.Second)
	if err := s.letEnd(ctx, p.sessions, at); err != nil {
		return 0, outcome{}, err
	}
	if err := redis.beginCount(ctx); err != nil {
		return 0, outcome{}, err
	}
	before := listener.State().Claimed
	if err := sleepUntil(ctx, at); err != nil {
		return 0, outcome{}, err
	}

	var beside outcome
	var besideErr error
	var running sync.WaitGroup
	beating, stop := context.WithCancel(ctx)
	running.Go(func() {
		beside, besideErr = s.singleUntil(beating, others, users, besideBeats)
	})
	err := wait(ctx, sweepPatience, func() bool { return listener.State().Claimed-before >= int64(p.sessions) })
	took := time.Since(at)
	stop()
	running.Wait()
	if err != nil {
		return 0, outcome{}, fmt.Errorf("%d of %d were claimed: %w", listener.State().Claimed-before, p.sessions, err)
	}
	return took, beside, besideErr
}

// letEnd lets the sessions of the first n users be due at the same instant.
func (s *liveStore) letEnd(ctx context.Context, n int, at time.Time) error {
	for from := 0; from < n; from += bulkOf {
		// The ttl is in whole seconds, and the instant must be the session's latest: within the last second.
		ttl := max(time.Until(at).Truncate(time.Second)+time.Second, presence.MinTTL)
		beats := make([]presence.Beat, min(bulkOf, n-from))
		for i := range beats {
			beats[i] = due(from+i, at, &ttl)
		}
		if err := s.apply(ctx, beats); err != nil {
			return err
		}
	}
	if time.Now().After(at) {
		return errors.New("the machine is too slow: the sessions were due before they were written")
	}
	return nil
}

// singleUntil runs single beats in goroutines until ctx ends.
func (s *liveStore) singleUntil(ctx context.Context, first, count, goroutines int) (outcome, error) {
	o, err := s.single(ctx, first, count, goroutines, sweepPatience)
	if ctx.Err() != nil && o.count > 0 {
		err = nil // the beats that ctx ended failed
	}
	return o, err
}

// wait looks every few milliseconds until ok.
func wait(ctx context.Context, patience time.Duration, ok func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

func sleepUntil(ctx context.Context, at time.Time) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Until(at)):
		return nil
	}
}

// lateness is a queue and an event log that keep nothing but how late each session was claimed.
type lateness struct {
	mu   sync.Mutex
	late []time.Duration
}

// Send takes everything.
func (l *lateness) Send(context.Context, string, []queue.Message) error { return nil }

// Write notes how long after its deadline each session was claimed.
func (l *lateness) Write(_ context.Context, updates []eventlog.Update) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, u := range updates {
		if e := u.Event; e.Reason == presence.ReasonExpired {
			l.late = append(l.late, e.DetectedAt.Sub(e.Deadline))
		}
	}
	return nil
}

func (l *lateness) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.late)
}

func (l *lateness) sorted() []time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Sorted(slices.Values(l.late))
}

// drainLua is the least that a drain must do: take what is due from a sorted set and put it in a stream.
var drainLua = fmt.Sprintf(`
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, %d)
for _, member in ipairs(due) do
  redis.call('ZREM', KEYS[1], member)
  redis.call('XADD', KEYS[2], '*', 'e', member)
end
return #due`, drainBatch)

// bareDrain measures a drain of n members with drainLua, as many calls in a round trip as the sweep makes.
func bareDrain(ctx context.Context, n int) (time.Duration, error) {
	server, err := startRedis(ctx)
	if err != nil {
		return 0, err
	}
	defer server.stop()
	const due = "due"
	for first := 0; first < n; first += bulkOf {
		members := make([]redis.Z, min(bulkOf, n-first))
		for i := range members {
			members[i] = redis.Z{Score: float64(first + i), Member: userID(first+i) + "/" + presence.DefaultSession}
		}
		if err := server.admin.ZAdd(ctx, due, members...).Err(); err != nil {
			return 0, fmt.Errorf("write members: %w", err)
		}
	}
	sha, err := server.admin.ScriptLoad(ctx, drainLua).Result()
	if err != nil {
		return 0, fmt.Errorf("load the script: %w", err)
	}
	began := time.Now()
	for left := n; left > 0; {
		pipe := server.admin.Pipeline()
		for range partitions {
			pipe.EvalSha(ctx, sha, []string{due, "outbox"}, n)
		}
		replies, err := pipe.Exec(ctx)
		if err != nil {
			return 0, fmt.Errorf("drain: %w", err)
		}
		taken := 0
		for _, reply := range replies {
			k, err := reply.(*redis.Cmd).Int()
			if err != nil {
				return 0, fmt.Errorf("read the drain's answer: %w", err)
			}
			taken += k
		}
		if taken == 0 {
			return 0, fmt.Errorf("%d members are left, and none is due", left)
		}
		left -= taken
	}
	return time.Since(began), nil
}
