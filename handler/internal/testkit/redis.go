// Package testkit starts the real servers that tests need. A missing one fails the test: it never skips.
package testkit

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// Redis is a redis-server of a test's own, on 127.0.0.1.
type Redis struct {
	Addr string
	dir  string
	args []string
	cmd  *exec.Cmd
}

// URL is the server's REDIS_URL.
func (r *Redis) URL() string { return "redis://" + r.Addr + "/0" }

// Start starts a redis-server with expired events on; args override its settings. It is stopped when the
// test ends.
func Start(t testing.TB, args ...string) *Redis {
	t.Helper()
	r, err := start(t.TempDir(), args)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Stop)
	return r
}

func start(dir string, args []string) (*Redis, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("find a free port: %w", err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	r := &Redis{Addr: addr, dir: dir, args: args}
	return r, r.Run()
}

// Run starts the server again, on the same port and folder, after Stop or Kill.
func (r *Redis) Run() error {
	_, port, _ := net.SplitHostPort(r.Addr)
	args := append([]string{"--bind", "127.0.0.1", "--port", port, "--dir", r.dir, "--save", "", "--daemonize", "no",
		"--notify-keyspace-events", "Ex", "--loglevel", "warning"}, r.args...)
	r.cmd = exec.Command("redis-server", args...)
	r.cmd.Stderr = os.Stderr
	if err := r.cmd.Start(); err != nil {
		return fmt.Errorf("start redis-server (make test installs it): %w", err)
	}
	client := redis.NewClient(&redis.Options{Addr: r.Addr, MaxRetries: -1})
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		err := client.Ping(ctx).Err()
		if err == nil || redis.HasErrorPrefix(err, "NOAUTH") {
			return nil
		}
		select {
		case <-ctx.Done():
			r.Kill()
			return fmt.Errorf("wait for redis-server on %s: %w", r.Addr, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// PID is that of the server's process.
func (r *Redis) PID() int { return r.cmd.Process.Pid }

// Stop ends the server and waits for it.
func (r *Redis) Stop() {
	_ = r.cmd.Process.Signal(os.Interrupt)
	_ = r.cmd.Wait()
}

// Kill ends the server without notice and waits for it.
func (r *Redis) Kill() {
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait()
}

var shared struct {
	once  sync.Once
	redis *Redis
	err   error
	n     int
	mu    sync.Mutex
}

// Shared returns the server that the tests of one package share, and a key prefix that no other test has.
// The package's TestMain must call Main.
func Shared(t testing.TB) (r *Redis, prefix string) {
	t.Helper()
	shared.once.Do(func() {
		dir, err := os.MkdirTemp("", "redis")
		if err != nil {
			shared.err = err
			return
		}
		shared.redis, shared.err = start(dir, nil)
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	shared.mu.Lock()
	defer shared.mu.Unlock()
	shared.n++
	return shared.redis, "t" + strconv.Itoa(shared.n) + ":"
}

// Main runs a package's tests and stops the shared server after them.
func Main(m *testing.M) {
	code := m.Run()
	if shared.redis != nil {
		shared.redis.Stop()
		_ = os.RemoveAll(shared.redis.dir)
	}
	os.Exit(code)
}
