package main

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"
)

const (
	// connections beat at the same time.
	connections = 64
	// warmUp comes before each round and does not count.
	warmUp = 300 * time.Millisecond
	// idleFor is how long the handler rests before its memory at rest is read.
	idleFor = time.Second
)

// target is a handler, or a server in its place, and what its rounds found.
type target struct {
	name  string
	start func(ctx context.Context, redis *redisServer) (*process, error)
	redis *redisServer
	*process
	rates, p50, p99 []float64
	beats           int64         // what the rounds had answered, warm-up included
	spent           time.Duration // processor time before the first round
}

// startHandler starts the staged handler, with its listener on unless more settings say otherwise. The queue is a sink,
// the event log a file of its own; both end with the handler.
func startHandler(ctx context.Context, p plan, redis *redisServer, more ...string) (*process, error) {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return nil, fmt.Errorf("make a data folder: %w", err)
	}
	queue, err := startSink()
	if err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	end := func() {
		queue.stop()
		_ = os.RemoveAll(dir)
	}
	env := []string{"REDIS_URL=" + redis.url(), "LOCAL_QUEUE_URL=" + queue.url, "DATA_DIR=" + dir, "LOG_LEVEL=warn"}
	handler, err := startProcess(ctx, append(env, more...), p.handler)
	if err != nil {
		end()
		return nil, err
	}
	handler.end = sync.OnceFunc(end)
	return handler, nil
}

// startServer starts this program as another server.
func startServer(which string) func(ctx context.Context, redis *redisServer) (*process, error) {
	return func(ctx context.Context, redis *redisServer) (*process, error) {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find this program: %w", err)
		}
		return startProcess(ctx, []string{"REDIS_URL=" + redis.url()}, self, "-serve", which)
	}
}

// throughHTTP is section A: single beats through the handler, an empty one and a naive one, in turns.
func throughHTTP(ctx context.Context, p plan, r *report) error {
	ours := &target{name: "handler", start: func(ctx context.Context, redis *redisServer) (*process, error) {
		return startHandler(ctx, p, redis)
	}}
	empty := &target{name: "empty chi handler", start: startServer(emptyServer)}
	naive := &target{name: "one command a request, default pool", start: startServer(naiveServer)}
	targets := []*target{ours, empty, naive}
	var err error
	for _, t := range targets {
		if t.redis, err = startRedis(ctx); err != nil {
			return err
		}
		defer t.redis.stop()
		if t.process, err = t.start(ctx, t.redis); err != nil {
			return err
		}
		defer t.process.stop()
	}
	time.Sleep(idleFor)
	idle, err := ours.rss(ctx)
	if err != nil {
		return err
	}
	for _, t := range targets {
		if err := t.seed(ctx); err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
	}
	if err := drained(ctx, ours.redis); err != nil {
		return err
	}
	for _, t := range targets {
		t.spent, _ = t.processorTime()
	}
	var loaded int64
	for range p.rounds {
		for _, t := range targets {
			if err := t.round(ctx, p.round); err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
			if t == ours {
				rss, err := ours.rss(ctx)
				if err != nil {
					return err
				}
				loaded = max(loaded, rss)
			}
		}
	}
	r.ratio("A", "beats through HTTP, to an empty chi handler", median(ours.rates), median(empty.rates), 0.5, 0.6)
	r.ratio("A", "beats through HTTP, to one command a request on the default pool", median(ours.rates), median(naive.rates), 1.35, 1.7)
	r.atMost("A", fmt.Sprintf("beats through HTTP, %d connections, p99", connections), time.Duration(median(ours.p99)), 5*time.Millisecond)
	for _, t := range targets {
		r.figure("A", "beats through HTTP: "+t.name, "%s/s  p50 %s  p99 %s%s", thousands(median(t.rates)),
			readable(time.Duration(median(t.p50))), readable(time.Duration(median(t.p99))), t.cost())
	}
	r.figure("F", "resident memory of the handler", "%s at rest, %s under the load of A", mebibytes(idle), mebibytes(loaded))
	return nil
}

// seed lets every user beat, so that the rounds renew sessions, as beats mostly do.
func (t *target) seed(ctx context.Context) error {
	_, err := load{t.addr, connections, singleBeats(users, connections)}.run(ctx, time.Second)
	return err
}

// round measures for d after a warm-up.
func (t *target) round(ctx context.Context, d time.Duration) error {
	l := load{t.addr, connections, singleBeats(users, connections)}
	warm, err := l.run(ctx, warmUp)
	if err != nil {
		return err
	}
	o, err := l.run(ctx, d)
	if err != nil {
		return err
	}
	t.beats += warm.count + o.count
	t.rates = append(t.rates, o.rate())
	t.p50 = append(t.p50, float64(quantile(o.times, 50)))
	t.p99 = append(t.p99, float64(quantile(o.times, 99)))
	return nil
}

// cost says how much processor time a beat took. It tells what a beat costs also where other programs take the
// processors away. It says nothing where the system does not tell.
func (t *target) cost() string {
	spent, ok := t.processorTime()
	if !ok || t.beats == 0 {
		return ""
	}
	return fmt.Sprintf(", %.1fµs of processor time a beat", float64((spent-t.spent).Microseconds())/float64(t.beats))
}

// drained waits until the relay has brought all events from the outboxes to the queue.
func drained(ctx context.Context, redis *redisServer) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	keys, err := outboxes()
	if err != nil {
		return err
	}
	for {
		var waiting int64
		for _, key := range keys {
			n, err := redis.admin.XLen(ctx, key).Result()
			if err != nil {
				return fmt.Errorf("wait for the outbox to drain: %w", err)
			}
			waiting += n
		}
		if waiting == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the outbox to drain, %d left: %w", waiting, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
