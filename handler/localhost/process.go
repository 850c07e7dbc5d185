package localhost

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"sync"
	"time"
)

// How the Functions host treats its custom handler.
const (
	maxCrashes     = 3
	crashWindow    = 30 * time.Minute
	startTimeout   = 30 * time.Second
	restartPause   = 100 * time.Millisecond
	readinessPause = 25 * time.Millisecond
	// exitRestart is the exit code of a handler that asks to be restarted.
	exitRestart = 200
)

// errHandlerGone is returned for calls of a handler that is not started again.
var errHandlerGone = errors.New("the handler has ended and is not started again")

// process keeps the handler running. The zero state is "starting".
type process struct {
	path    string
	args    []string
	dir     string
	env     []string
	stdout  io.Writer
	stderr  io.Writer
	port    int // the handler's, the same over restarts
	log     *slog.Logger
	onReady func(pid int)

	mu         sync.Mutex
	changed    chan struct{} // closed and replaced with every change of the state below
	child      *child
	generation int // how often the handler was started
	ready      bool
	gone       bool
	killed     int // the generation that the host itself ended
}

func newProcess() *process { return &process{changed: make(chan struct{})} }

// url returns the address of the handler, without a trailing slash.
func (p *process) url() string { return "http://127.0.0.1:" + strconv.Itoa(p.port) }

// run starts the handler and starts it again by the rules of the Functions host, until ctx is done. Then, and
// when it returns an error (the handler cannot be started, or crashed too often), the handler has ended.
func (p *process) run(ctx context.Context) error {
	defer p.update(func() { p.ready, p.gone = false, true })
	var crashes int
	var lastCrash time.Time
	for {
		how, crashed, err := p.runOnce(ctx)
		if err != nil || ctx.Err() != nil {
			return err
		}
		switch {
		case how == "exit status 0":
			p.log.Error("the handler ended with exit code 0: it is not started again, as the Functions host would not")
			p.update(func() { p.gone = true })
			<-ctx.Done()
			return nil
		case crashed:
			if time.Since(lastCrash) > crashWindow {
				crashes = 0
			}
			lastCrash = time.Now()
			if crashes++; crashes == maxCrashes {
				return fmt.Errorf("the handler crashed %d times within %v (now: %s): the host stops, as the Functions host would",
					maxCrashes, crashWindow, how)
			}
			p.log.Error("the handler crashed and is started again", "how", how, "crashes", crashes)
		default:
			p.log.Warn("the handler is started again", "how", how)
		}
		if !wait(ctx, restartPause) {
			return nil
		}
	}
}

// runOnce runs the handler from start to end and says how it ended and whether that counts as a crash.
func (p *process) runOnce(ctx context.Context) (how string, crashed bool, err error) {
	cmd := exec.Command(p.path, p.args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = p.dir, p.env, p.stdout, p.stderr
	c, err := startChild(cmd)
	if err != nil {
		return "", false, fmt.Errorf("start handler: %w", err)
	}
	p.update(func() { p.child = c; p.generation++ })
	defer p.update(func() { p.ready = false })

	probing, stopProbing := context.WithTimeout(ctx, startTimeout)
	defer stopProbing()
	answered := make(chan error, 1)
	go func() { answered <- probe(probing, p.url()) }()
	defer func() {
		stopProbing()
		<-answered
	}()

	select {
	case err := <-answered:
		close(answered)
		if err != nil && ctx.Err() == nil {
			c.kill()
			return fmt.Sprintf("no answer on its port within %v", startTimeout), true, nil
		}
	case <-c.done:
	case <-ctx.Done():
	}
	select {
	case <-c.done:
	default:
		if ctx.Err() == nil {
			p.update(func() { p.ready = true })
			p.onReady(c.Pid)
		}
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		c.kill()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	crashed = c.state.ExitCode() != exitRestart && p.killed != p.generation
	return c.state.String(), crashed, nil
}

// probe returns nil once GET / of base is answered, whatever the answer.
func probe(ctx context.Context, base string) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/", nil)
		if err != nil {
			return fmt.Errorf("probe handler: %w", err)
		}
		if resp, err := client.Do(req); err == nil {
			return resp.Body.Close()
		}
		if !wait(ctx, readinessPause) {
			return ctx.Err()
		}
	}
}

// waitReady waits until the handler takes requests and returns which generation of it does. It returns
// errHandlerGone when there will be none.
func (p *process) waitReady(ctx context.Context) (generation int, err error) {
	for {
		p.mu.Lock()
		generation, ready, gone, changed := p.generation, p.ready, p.gone, p.changed
		p.mu.Unlock()
		if gone {
			return 0, errHandlerGone
		}
		if ready {
			return generation, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, fmt.Errorf("wait for the handler: %w", context.Cause(ctx))
		}
	}
}

// restart kills the handler of a generation, if it still runs. That does not count as a crash.
func (p *process) restart(generation int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.generation == generation {
		p.killed = generation
		p.ready = false // nothing new for a process that is about to end
		_ = p.child.Kill()
	}
}

// ended returns a channel that is closed when the handler of a generation has ended.
func (p *process) ended(generation int) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.generation == generation {
		return p.child.done
	}
	closed := make(chan struct{})
	close(closed)
	return closed
}

// kill ends the handler at once, for a host that cannot stop in order.
func (p *process) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.child != nil {
		_ = p.child.Kill()
	}
}

// update changes the state and wakes those who wait for a change.
func (p *process) update(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	close(p.changed)
	p.changed = make(chan struct{})
}

// wait waits for d and reports whether ctx is still alive.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// freePort returns a TCP port of the loopback interface that nobody listens on.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
