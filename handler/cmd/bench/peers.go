package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/expiry"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/queue"
	"userconnectivity/handler/redisstore"
)

const (
	// pipelinedSets are the commands of one pipeline that a renewal in a bulk is compared with.
	pipelinedSets = bulkOf
	// stalledRelay is what the relay of the due sessions reports; it sends nothing while the claims are measured.
	stalledRelay = "not sent while claims are measured"
)

// peers is section P: our store beside centrifuge and asynq on the same redis-server, in turns, in one run.
func peers(ctx context.Context, p plan, r *report) error {
	if err := p.peerBeats(ctx, r); err != nil {
		return err
	}
	return p.peerClaims(ctx, r)
}

// contender is one side of the comparison: what it does of a task, and what that took.
type contender struct {
	name string
	// run does the task for d and returns how often.
	run func(ctx context.Context, d time.Duration) (outcome, error)

	rates  []float64
	redis  []float64 // processor time of Redis for each operation, in microseconds
	memory float64   // bytes of Redis for each user
}

// peerBeats measures single heartbeats: renewals of many users by many callers.
func (p plan) peerBeats(ctx context.Context, r *report) error {
	redis, err := startRedis(ctx)
	if err != nil {
		return err
	}
	defer redis.stop()
	other, err := startPeers(ctx, p.peers, redis)
	if err != nil {
		return err
	}
	defer other.stop()
	ours := func(name string, leases bool) (*contender, func(), error) {
		cfg := redisstore.Config{Prefix: name, Partitions: partitions, LeaseKeys: leases}
		s := newStore(redis, cfg)
		err := s.seed(ctx, redis, cfg, 0, p.peerUsers, &longTTL)
		return &contender{name: name, run: func(ctx context.Context, d time.Duration) (outcome, error) {
			return s.single(ctx, 0, p.peerUsers, connections, d)
		}}, s.close, err
	}
	var all []*contender
	seeded := func(c *contender, before int64, err error) error {
		if err != nil {
			return err
		}
		after, err := redis.usedMemory(ctx)
		c.memory = float64(after-before) / float64(p.peerUsers)
		all = append(all, c)
		return err
	}
	for name, leases := range map[string]bool{"leases": true, "noleases": false} {
		before, err := redis.usedMemory(ctx)
		if err != nil {
			return err
		}
		c, end, err := ours(name, leases)
		defer end()
		if err := seeded(c, before, err); err != nil {
			return err
		}
	}
	for _, name := range []string{"presence", "map"} {
		before, err := redis.usedMemory(ctx)
		if err != nil {
			return err
		}
		_, err = other.do(ctx, name+"-seed", p.peerUsers)
		if err := seeded(&contender{name: name, run: func(ctx context.Context, d time.Duration) (outcome, error) {
			return other.do(ctx, name, int(d.Milliseconds()))
		}}, before, err); err != nil {
			return err
		}
	}
	bulk := &contender{name: "bulk"}
	sets := &contender{name: "sets"}
	cfg := redisstore.Config{Prefix: "leases", Partitions: partitions, LeaseKeys: true}
	bulks := newStore(redis, cfg)
	defer bulks.close()
	bulk.run, sets.run = bulks.bulks, pipelined(redis)
	for range p.rounds {
		for _, c := range append(all, bulk, sets) {
			if err := c.round(ctx, p.round, redis); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	by := map[string]*contender{}
	for _, c := range all {
		by[c.name] = c
	}
	with, without, add, keep := by["leases"], by["noleases"], by["presence"], by["map"]
	r.ratio("P", "single heartbeats with leases, to centrifuge AddPresence", with.rate(), add.rate(), 1, 1.3)
	r.ratio("P", "single heartbeats without leases, to the same", without.rate(), add.rate(), 1.3, 1.8)
	r.ratioAtMost("P", "Redis time of a heartbeat with leases, to centrifuge AddPresence", with.redisTime(), add.redisTime(), 0.85)
	r.ratioAtMost("P", "Redis time of a heartbeat without leases, to the same", without.redisTime(), add.redisTime(), 0.65)
	r.ratio("P", "single heartbeats with leases, to centrifuge map keep-alive", with.rate(), keep.rate(), 1.9, 2.5)
	r.ratio("P", "single heartbeats without leases, to the same", without.rate(), keep.rate(), 2.4, 3.5)
	r.ratioAtMost("P", "Redis time of a renewal in a bulk of 1,000, to a pipelined SET with a time", bulk.redisTime(), sets.redisTime(), 3.5)
	for _, c := range all {
		r.figure("P", "single heartbeats: "+c.name, "%s/s, %.1f us of Redis each, %.0f bytes a user", thousands(c.rate()), c.redisTime(), c.memory)
	}
	r.figure("P", "renewals in bulks of 1,000", "%s/s, %.1f us of Redis each; SET with a time %.1f us", thousands(bulk.rate()), bulk.redisTime(), sets.redisTime())
	return nil
}

// pipelined sets keys with a time to live, a thousand in a pipeline.
func pipelined(r *redisServer) func(ctx context.Context, d time.Duration) (outcome, error) {
	return func(ctx context.Context, d time.Duration) (outcome, error) {
		o, err := loop(1, d, func(int) func() error {
			next := 0
			return func() error {
				_, err := r.admin.Pipelined(ctx, func(pipe redis.Pipeliner) error {
					for range pipelinedSets {
						pipe.Set(ctx, "set:"+userID(next), 1, presence.DefaultTTL)
						next = (next + 1) % users
					}
					return nil
				})
				return err
			}
		})
		o.count *= pipelinedSets
		return o, err
	}
}

// round measures for d after a warm-up.
func (c *contender) round(ctx context.Context, d time.Duration, redis *redisServer) error {
	if _, err := c.run(ctx, warmUp); err != nil {
		return err
	}
	before, err := redis.processorTime(ctx)
	if err != nil {
		return err
	}
	o, err := c.run(ctx, d)
	if err != nil {
		return err
	}
	after, err := redis.processorTime(ctx)
	if err != nil {
		return err
	}
	c.rates = append(c.rates, o.rate())
	c.redis = append(c.redis, float64((after-before).Microseconds())/float64(o.count))
	return nil
}

func (c *contender) rate() float64      { return median(c.rates) }
func (c *contender) redisTime() float64 { return median(c.redis) }

// peerClaims measures sessions that are due at once: until each has its event in the outbox, the stream or the list of
// pending tasks.
func (p plan) peerClaims(ctx context.Context, r *report) error {
	rates := map[string][]float64{}
	for range p.dueRounds {
		for name, leases := range map[string]bool{"leases": true, "noleases": false} {
			rate, err := p.claimRate(ctx, redisstore.Config{Partitions: partitions, LeaseKeys: leases})
			if err != nil {
				return fmt.Errorf("claims: %w", err)
			}
			rates[name] = append(rates[name], rate)
		}
		for name, commands := range map[string][2]string{"asynq": {"asynq-due", "asynq-forward"}, "map": {"map-due", "map-clean"}} {
			rate, err := p.peerRate(ctx, commands)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			rates[name] = append(rates[name], rate)
		}
	}
	with, without, tasks, entries := median(rates["leases"]), median(rates["noleases"]), median(rates["asynq"]), median(rates["map"])
	r.ratio("P", "due at once to outbox with leases, to asynq scheduled to pending", with, tasks, 0.9, 1.1)
	r.ratio("P", "due at once to outbox without leases, to the same", without, tasks, 1.2, 1.6)
	r.ratio("P", "due at once to outbox with leases, to centrifuge clean-up to stream", with, entries, 2.2, 3)
	r.ratio("P", "due at once to outbox without leases, to the same", without, entries, 3, 4)
	r.figure("P", fmt.Sprintf("%s due at once", thousands(float64(p.dueUsers))), "%s/s with leases, %s/s without; asynq %s/s; centrifuge %s/s",
		thousands(with), thousands(without), thousands(tasks), thousands(entries))
	return nil
}

// claimRate returns how many due sessions of a layout are claimed in a second. Nothing is relayed meanwhile.
func (p plan) claimRate(ctx context.Context, cfg redisstore.Config) (float64, error) {
	redis, err := startRedis(ctx)
	if err != nil {
		return 0, err
	}
	defer redis.stop()
	s := newStore(redis, cfg)
	defer s.close()
	if err := s.seed(ctx, redis, cfg, 0, p.dueUsers, &longTTL); err != nil {
		return 0, err
	}
	log := slog.New(slog.DiscardHandler)
	relay := expiry.NewRelay(s.Outbox("bench"), partitions, stalled{}, stalled{}, queue.Codec{Source: "/bench"}, queue.Destinations{Events: queue.ConnectivityEvents}, log)
	listener := expiry.NewListener(s.client, s.Store, relay, log)
	at := time.Now().Add(3*time.Second + time.Duration(p.dueUsers)*50*time.Microsecond)
	if err := s.letEnd(ctx, p.dueUsers, at); err != nil {
		return 0, err
	}
	if err := sleepUntil(ctx, at.Add(100*time.Millisecond)); err != nil {
		return 0, err
	}
	listening, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan struct{})
	began := time.Now()
	go func() {
		listener.Run(listening)
		close(ended)
	}()
	err = wait(ctx, sweepPatience, func() bool { return listener.State().Claimed >= int64(p.dueUsers) })
	took := time.Since(began)
	stop()
	<-ended
	if err != nil {
		return 0, fmt.Errorf("%d of %d were claimed: %w", listener.State().Claimed, p.dueUsers, err)
	}
	return float64(p.dueUsers) / took.Seconds(), nil
}

// stalled is a queue and an event log that are away.
type stalled struct{}

var errStalled = errors.New(stalledRelay)

// Send waits for its end.
func (stalled) Send(ctx context.Context, _ string, _ []queue.Message) error {
	<-ctx.Done()
	return errStalled
}

// Write fails: nothing was sent.
func (stalled) Write(context.Context, []eventlog.Update) error { return errStalled }

// peerRate returns how many entries of a peer that are due are moved in a second.
func (p plan) peerRate(ctx context.Context, commands [2]string) (float64, error) {
	redis, err := startRedis(ctx)
	if err != nil {
		return 0, err
	}
	defer redis.stop()
	other, err := startPeers(ctx, p.peers, redis)
	if err != nil {
		return 0, err
	}
	defer other.stop()
	if _, err := other.do(ctx, commands[0], p.dueUsers); err != nil {
		return 0, err
	}
	o, err := other.do(ctx, commands[1], p.dueUsers)
	return o.rate(), err
}

// peerProcess is the command peers, which does the tasks of the other projects.
type peerProcess struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *json.Decoder
}

func startPeers(_ context.Context, binary string, redis *redisServer) (*peerProcess, error) {
	p := &peerProcess{cmd: exec.Command(binary, "-redis", redis.addr())}
	p.cmd.Stderr = os.Stderr
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start %s: %w", binary, err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", binary, err)
	}
	p.out = json.NewDecoder(bufio.NewReader(out))
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s (make bench ONLY=P builds it): %w", binary, err)
	}
	return p, nil
}

// do has the peers run one command.
func (p *peerProcess) do(ctx context.Context, command string, n int) (outcome, error) {
	stop := context.AfterFunc(ctx, func() { _ = p.cmd.Process.Kill() })
	defer stop()
	if _, err := io.WriteString(p.stdin, command+" "+strconv.Itoa(n)+"\n"); err != nil {
		return outcome{}, fmt.Errorf("send %s: %w", command, err)
	}
	var answer struct {
		Count, Micros int64
		Error         string
	}
	if err := p.out.Decode(&answer); err != nil {
		return outcome{}, fmt.Errorf("read the answer to %s: %w", command, err)
	}
	if answer.Error != "" {
		return outcome{}, errors.New(answer.Error)
	}
	return outcome{count: answer.Count, took: time.Duration(answer.Micros) * time.Microsecond}, nil
}

// stop ends the process.
func (p *peerProcess) stop() {
	_ = p.stdin.Close()
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}
