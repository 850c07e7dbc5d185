// Command bench measures what the project promises of speed and size against the limits of the same machine in
// the same run: an empty handler, a naive one, redis-benchmark with the same script, bare keys, a bare drain. It
// prints one table, ratios first, and says which bars are not met. Everything runs on 127.0.0.1 in processes of
// its own.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	handler  string
	quick    bool
	strict   bool
	only     string
	sessions int
	starts   int
	peers    string
}

// plan is how much is measured.
type plan struct {
	handler string
	// rounds of each measurement are interleaved with those that it is compared with; medians count.
	rounds int
	// round is how long one takes.
	round time.Duration
	// memoryUsers are how many users' memory is measured.
	memoryUsers int
	// sessions are due at once in the sweep, and live while the lateness is measured.
	sessions int
	// lateFor is how long sessions end for the lateness.
	lateFor time.Duration
	starts  int
	// peers is the binary of the command peers; peerUsers beat, and dueUsers are due at once, in so many rounds.
	peers               string
	peerUsers, dueUsers int
	dueRounds           int
}

// users beat in turn wherever beats are measured.
const users = 10_000

// partitions is the default of REDIS_PARTITIONS.
const partitions = 16

// section is one part of the bench.
type section struct {
	name, what string
	run        func(ctx context.Context, p plan, r *report) error
}

var sections = []section{
	{"A", "heartbeats through HTTP", throughHTTP},
	{"B", "store path and bulk", storePath},
	{"C", "memory of Redis", memory},
	{"D", "sweep", sweep},
	{"E", "start", starts},
	{"F", "size of the binary", size},
	{"G", "outages of Redis", outages},
	{"H", "beside a handler with fixed answers", fixedAnswers},
	{"P", "beside centrifuge and asynq", peers},
}

func main() {
	var o options
	flag.StringVar(&o.handler, "handler", "dist/handler", "the handler's `binary`")
	flag.BoolVar(&o.quick, "quick", false, "measure less: about a minute in all")
	flag.BoolVar(&o.strict, "strict", false, "exit with 1 when a bar is not met")
	flag.StringVar(&o.only, "only", "", "`sections` to run, such as A,B")
	flag.IntVar(&o.sessions, "sessions", 0, "sessions of the sweep (default 1000000, quick 100000)")
	flag.StringVar(&o.peers, "peers", "bin/peers", "the `binary` of the command peers, for section P")
	flag.IntVar(&o.starts, "starts", 50, "starts of the handler")
	server := flag.String("serve", "", "be a `server` that the handler is measured against: empty or naive")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	met := true
	if *server != "" {
		err = serve(ctx, *server)
	} else {
		met, err = run(ctx, o, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	if o.strict && !met {
		os.Exit(1)
	}
}

// plan turns the flags into what is measured.
func (o options) plan() (plan, error) {
	p := plan{
		handler: o.handler, rounds: 7, round: 3 * time.Second, memoryUsers: 100_000, sessions: 1_000_000, lateFor: 20 * time.Second, starts: o.starts,
		peers: o.peers, peerUsers: 100_000, dueUsers: 300_000, dueRounds: 3,
	}
	if o.quick {
		p.peerUsers, p.dueUsers, p.dueRounds = 20_000, 60_000, 1
		p.rounds, p.round, p.sessions, p.lateFor = 3, time.Second, 100_000, 5*time.Second
	}
	if o.sessions != 0 {
		p.sessions = o.sessions
	}
	if p.sessions < bulkOf || p.starts < 1 {
		return p, fmt.Errorf("-sessions %d -starts %d: at least %d sessions and one start are needed", p.sessions, p.starts, bulkOf)
	}
	return p, nil
}

// chosen returns the sections that -only names. When it names none they are all but P, which takes minutes and needs a
// binary of its own.
func chosen(only string) ([]section, error) {
	if only == "" {
		return sections[:len(sections)-1], nil
	}
	var some []section
	for name := range strings.SplitSeq(only, ",") {
		i := slices.IndexFunc(sections, func(s section) bool { return strings.EqualFold(s.name, strings.TrimSpace(name)) })
		if i < 0 {
			return nil, fmt.Errorf("-only %s: there is no section %q", only, name)
		}
		some = append(some, sections[i])
	}
	return some, nil
}

// run measures the sections and prints the table. It returns whether every bar is met.
func run(ctx context.Context, o options, out io.Writer) (met bool, err error) {
	p, err := o.plan()
	if err != nil {
		return false, err
	}
	some, err := chosen(o.only)
	if err != nil {
		return false, err
	}
	fmt.Fprintln(out, machine(ctx))
	var r report
	for _, s := range some {
		began := time.Now()
		fmt.Fprintf(os.Stderr, "%s  %s ... ", s.name, s.what)
		if err := s.run(ctx, p, &r); err != nil {
			return false, fmt.Errorf("%s: %w", s.what, err)
		}
		fmt.Fprintln(os.Stderr, time.Since(began).Round(100*time.Millisecond))
	}
	fmt.Fprintln(out)
	_, missed := r.missed()
	return len(missed) == 0, r.print(out)
}

// machine says where the figures come from.
func machine(ctx context.Context) string {
	return fmt.Sprintf("%d cores, %s %s/%s, %s, load average at the start %s; the load generator shares the cores.",
		runtime.NumCPU(), runtime.Version(), runtime.GOOS, runtime.GOARCH, redisVersion(said(ctx, "redis-server", "--version")),
		loadAverage(said(ctx, "uptime")))
}

// said returns what a command prints, "" when it cannot be run.
func said(ctx context.Context, command string, args ...string) string {
	out, err := exec.CommandContext(ctx, command, args...).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// redisVersion reads redis-server --version.
func redisVersion(text string) string {
	for word := range strings.FieldsSeq(text) {
		if v, ok := strings.CutPrefix(word, "v="); ok {
			return "Redis " + v
		}
	}
	return "Redis of unknown version"
}

// loadAverage reads uptime.
func loadAverage(text string) string {
	if _, numbers, ok := strings.Cut(text, "load average"); ok {
		return strings.TrimLeft(numbers, "s: ")
	}
	return "unknown"
}
