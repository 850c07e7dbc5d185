package main

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/csv"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/redisstore"
)

// redisServer is a redis-server of our own, on 127.0.0.1 and without persistence.
type redisServer struct {
	port   string
	dir    string
	cmd    *exec.Cmd
	exited chan error
	admin  *redis.Client // a connection of our own, to look at the server
}

// slowFrom is from when on a script call is noted as slow.
const slowFrom = time.Millisecond

func startRedis(ctx context.Context) (*redisServer, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "bench-redis")
	if err != nil {
		return nil, fmt.Errorf("make a folder: %w", err)
	}
	r := &redisServer{port: port, dir: dir}
	r.admin = redis.NewClient(&redis.Options{Addr: r.addr(), MaxRetries: -1, PoolSize: 1, ReadTimeout: time.Minute})
	if err := r.launch(ctx); err != nil {
		_ = r.admin.Close()
		_ = os.RemoveAll(dir)
		return nil, err
	}
	return r, nil
}

// launch starts the process and waits until it answers.
func (r *redisServer) launch(ctx context.Context) error {
	r.cmd = exec.Command("redis-server", "--bind", "127.0.0.1", "--port", r.port, "--dir", r.dir, "--save", "", "--appendonly", "no",
		"--daemonize", "no", "--loglevel", "warning", "--notify-keyspace-events", "Ex",
		"--slowlog-log-slower-than", strconv.FormatInt(slowFrom.Microseconds(), 10), "--slowlog-max-len", "100000")
	r.cmd.Stderr = os.Stderr
	if err := r.cmd.Start(); err != nil {
		return fmt.Errorf("start redis-server (make setup installs it): %w", err)
	}
	exited := make(chan error, 1)
	r.exited = exited
	cmd := r.cmd
	go func() { exited <- cmd.Wait() }()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		err := r.admin.Ping(ctx).Err()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			r.kill()
			return fmt.Errorf("wait for redis-server: %w", err)
		case err := <-exited:
			return fmt.Errorf("redis-server ended: %v", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// kill ends the process at once.
func (r *redisServer) kill() {
	_ = r.cmd.Process.Kill()
	<-r.exited
}

func (r *redisServer) addr() string { return "127.0.0.1:" + r.port }
func (r *redisServer) url() string  { return "redis://" + r.addr() + "/0" }

// stop ends the server at once: what it holds is of no use any more.
func (r *redisServer) stop() {
	_ = r.admin.Close()
	r.kill()
	_ = os.RemoveAll(r.dir)
}

// info returns the fields of sections of INFO.
func (r *redisServer) info(ctx context.Context, sections ...string) (map[string]string, error) {
	fields := map[string]string{}
	for _, section := range sections {
		text, err := r.admin.Info(ctx, section).Result()
		if err != nil {
			return nil, fmt.Errorf("read INFO %s: %w", section, err)
		}
		for line := range strings.Lines(text) {
			if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
				fields[k] = v
			}
		}
	}
	return fields, nil
}

// usedMemory is in bytes.
func (r *redisServer) usedMemory(ctx context.Context) (int64, error) {
	fields, err := r.info(ctx, "memory")
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(fields["used_memory"], 10, 64)
}

// processorTime is what the thread that runs commands has used so far.
func (r *redisServer) processorTime(ctx context.Context) (time.Duration, error) {
	fields, err := r.info(ctx, "cpu")
	if err != nil {
		return 0, err
	}
	var sum float64
	for _, field := range []string{"used_cpu_user_main_thread", "used_cpu_sys_main_thread"} {
		seconds, err := strconv.ParseFloat(fields[field], 64)
		if err != nil {
			return 0, fmt.Errorf("read %s of INFO cpu (Redis 6.2 has it): %w", field, err)
		}
		sum += seconds
	}
	return time.Duration(sum * float64(time.Second)), nil
}

// beginCount forgets what was counted and noted as slow so far.
func (r *redisServer) beginCount(ctx context.Context) error {
	if err := r.admin.ConfigResetStat(ctx).Err(); err != nil {
		return fmt.Errorf("reset the counters: %w", err)
	}
	return r.admin.Do(ctx, "slowlog", "reset").Err()
}

// shape is how script calls were sent: items in a call, of how many partitions they are, and calls in a round trip, on
// average.
type shape struct{ perCall, sections, depth float64 }

// shape tells how the script calls since beginCount were sent that applied so many items. Redis reads a pipeline
// in pieces of at most 16 KiB, so of large ones the depth is that of a piece.
func (r *redisServer) shape(ctx context.Context, items int64) (shape, error) {
	fields, err := r.info(ctx, "commandstats", "stats")
	if err != nil {
		return shape{}, err
	}
	calls, err := commandCalls(fields["cmdstat_evalsha"])
	if err != nil {
		return shape{}, err
	}
	reads, err := strconv.ParseFloat(fields["total_reads_processed"], 64)
	if err != nil || calls == 0 || reads == 0 {
		return shape{}, fmt.Errorf("read the counters: %g calls in %g reads, %w", calls, reads, err)
	}
	looks, err := commandCalls(fields["cmdstat_hmget"]) // a script looks once at the meta hash of each partition
	return shape{float64(items) / calls, looks / calls, calls / reads}, err
}

// commandCalls reads a line of INFO commandstats: calls=21,usec=175,...
func commandCalls(stat string) (float64, error) {
	for field := range strings.SplitSeq(stat, ",") {
		if n, ok := strings.CutPrefix(field, "calls="); ok {
			return strconv.ParseFloat(n, 64)
		}
	}
	return 0, fmt.Errorf("no calls in the command statistics %q", stat)
}

// longestScript returns the longest script call since beginCount, and 0 when none took slowFrom.
func (r *redisServer) longestScript(ctx context.Context) (time.Duration, error) {
	slow, err := r.admin.SlowLogGet(ctx, -1).Result()
	if err != nil {
		return 0, fmt.Errorf("read the slow log: %w", err)
	}
	var longest time.Duration
	for _, s := range slow {
		if len(s.Args) > 0 && strings.EqualFold(s.Args[0], "evalsha") {
			longest = max(longest, s.Duration)
		}
	}
	return longest, nil
}

// script makes redis-benchmark's command of a call, and loads the script.
func (r *redisServer) script(ctx context.Context, c redisstore.ScriptCall) ([]string, error) {
	if err := r.admin.ScriptLoad(ctx, c.Text).Err(); err != nil {
		return nil, fmt.Errorf("load a script: %w", err)
	}
	sum := sha1.Sum([]byte(c.Text))
	command := append([]string{"EVALSHA", hex.EncodeToString(sum[:]), strconv.Itoa(len(c.Keys))}, c.Keys...)
	for _, arg := range c.Args {
		command = append(command, fmt.Sprint(arg))
	}
	return command, nil
}

// benchmark runs redis-benchmark for about d with a command over one connection, depth at a time, and returns the
// calls in a second. Placeholders become random numbers below random.
func (r *redisServer) benchmark(ctx context.Context, d time.Duration, depth, random int, command []string) (float64, error) {
	run := func(calls int) (float64, error) {
		args := append([]string{
			"-h", "127.0.0.1", "-p", r.port, "-c", "1", "-P", strconv.Itoa(depth), "-r", strconv.Itoa(random),
			"-n", strconv.Itoa(max(calls/depth, 1) * depth), "--csv",
		}, command...)
		cmd := exec.CommandContext(ctx, "redis-benchmark", args...)
		var complaint bytes.Buffer
		cmd.Stderr = &complaint
		out, err := cmd.Output()
		if err != nil {
			return 0, fmt.Errorf("run redis-benchmark: %w %s", err, complaint.Bytes())
		}
		return benchmarkRate(string(out))
	}
	// A short run tells how many calls fill d.
	rate, err := run(50 * depth)
	if err == nil {
		rate, err = run(int(rate * d.Seconds()))
	}
	return rate, err
}

// benchmarkRate reads the calls in a second from redis-benchmark's CSV.
func benchmarkRate(out string) (float64, error) {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	last := lines[len(lines)-1]
	// The first field is the command, unescaped; the seven after it are numbers.
	const numbers = 7
	from := len(last)
	for range numbers {
		if from = strings.LastIndex(last[:max(from, 0)], `,"`); from < 0 {
			return 0, fmt.Errorf("redis-benchmark answered %q", last[:min(len(last), 400)])
		}
	}
	fields, err := csv.NewReader(strings.NewReader(last[from+1:])).Read()
	if err != nil {
		return 0, fmt.Errorf("read redis-benchmark's answer: %w", err)
	}
	rate, err := strconv.ParseFloat(fields[0], 64)
	if err == nil && rate <= 0 {
		err = errors.New("no calls")
	}
	return rate, err
}
