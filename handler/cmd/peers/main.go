// Command peers runs what other projects make of the same tasks, on a Redis that it is given, so that make bench
// ONLY=P can measure them beside our store in one run: presence and keyed state of centrifuge, scheduled tasks of
// asynq. It is a module of its own, so that nothing of it reaches the handler's go.mod.
//
// It reads one command a line from its standard input and answers each with one line of JSON: how many operations
// there were and how many microseconds they took, or what went wrong. It ends with its standard input.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// answer is one line of the output.
type answer struct {
	Count  int64  `json:"count"`
	Micros int64  `json:"micros"`
	Error  string `json:"error,omitempty"`
}

// command is a task that one of the peers does. n is the command's number: users, or milliseconds.
type command func(ctx context.Context, n int) (count int64, took time.Duration, err error)

// callers is how many goroutines call at the same time.
const callers = 64

func main() {
	addr := flag.String("redis", "", "address of the redis-server, as `host:port`")
	flag.Parse()
	if err := run(*addr); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

func run(addr string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c := &centrifugePeer{addr: addr}
	defer c.close()
	a := &asynqPeer{addr: addr}
	defer a.close()
	commands := map[string]command{
		"presence-seed": c.seedPresence, "presence": c.addPresence,
		"map-seed": c.seedMap, "map": c.keepAlive, "map-due": c.makeDue, "map-clean": c.cleanUp,
		"asynq-due": a.makeDue, "asynq-forward": a.forward,
	}
	out := json.NewEncoder(os.Stdout)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		if err := out.Encode(do(ctx, commands, lines.Text())); err != nil {
			return fmt.Errorf("answer a command: %w", err)
		}
	}
	return lines.Err()
}

// do runs one line.
func do(ctx context.Context, commands map[string]command, line string) answer {
	name, number, _ := strings.Cut(line, " ")
	n, err := strconv.Atoi(number)
	run, ok := commands[name]
	if !ok || err != nil || n < 1 {
		return answer{Error: fmt.Sprintf("%q is no command with a number", line)}
	}
	count, took, err := run(ctx, n)
	if err != nil {
		return answer{Error: fmt.Sprintf("%s: %v", name, err)}
	}
	return answer{Count: count, Micros: took.Microseconds()}
}

// userID is as long as a UUID, as those of the bench.
func userID(n int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", n) }

// channels spread the users as our partitions do.
const channels = 16

// channelOf returns the channel of user n.
func channelOf(n int) string { return "presence" + strconv.Itoa(n%channels) }

// each calls do once for each of n users, from many goroutines.
func each(n int, do func(user int) error) (count int64, took time.Duration, err error) {
	began := time.Now()
	errs := make(chan error, callers)
	for i := range callers {
		go func() {
			for user := i; user < n; user += callers {
				if err := do(user); err != nil {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range callers {
		if e := <-errs; e != nil {
			err = e
		}
	}
	return int64(n), time.Since(began), err
}

// again calls do for users in turn, from many goroutines, for so many milliseconds.
func again(users, millis int, do func(user int) error) (int64, time.Duration, error) {
	var count atomic.Int64
	var failed atomic.Pointer[error]
	var running sync.WaitGroup
	began := time.Now()
	end := began.Add(time.Duration(millis) * time.Millisecond)
	for i := range callers {
		running.Go(func() {
			n := int64(0)
			for user := i; time.Now().Before(end); user = (user + callers) % users {
				if err := do(user); err != nil {
					failed.Store(&err)
					return
				}
				n++
			}
			count.Add(n)
		})
	}
	running.Wait()
	if err := failed.Load(); err != nil {
		return 0, 0, *err
	}
	return count.Load(), time.Since(began), nil
}

// until looks every few milliseconds until ok, for five minutes at most.
func until(ctx context.Context, ok func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		done, err := ok()
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
