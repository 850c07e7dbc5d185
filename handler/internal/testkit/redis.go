// Package testkit starts the real servers that tests need. A missing one fails the test: it never skips.
package testkit

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// Redis is a redis-server of a test's own, on 127.0.0.1.
type Redis struct {
	Addr string
	// TLS is how to reach a server that speaks TLS, nil for plain text.
	TLS  *tls.Config
	dir  string
	args []string
	cmd  *exec.Cmd
}

// URL is the server's REDIS_URL.
func (r *Redis) URL() string {
	if r.TLS != nil {
		return "rediss://" + r.Addr
	}
	return "redis://" + r.Addr + "/0"
}

// Start starts a redis-server with expired events on; args override its settings. It is stopped when the
// test ends. The environment variable REDIS_SERVER names another binary than the one on the PATH: the tests run
// against any version from 6.2.
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
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	r := &Redis{Addr: addr, dir: dir, args: args}
	return r, r.Run()
}

// freeAddr finds a port that is free, as is the one 10,000 above it, where the nodes of a cluster talk.
func freeAddr() (string, error) {
	for range 1000 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", fmt.Errorf("find a free port: %w", err)
		}
		_ = l.Close()
		addr := l.Addr().(*net.TCPAddr)
		if addr.Port > 55_535 {
			continue
		}
		if l, err = net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(addr.Port+10_000))); err == nil {
			_ = l.Close()
			return addr.String(), nil
		}
	}
	return "", fmt.Errorf("find a free port: none is free together with the one 10,000 above")
}

// Run starts the server again, on the same port and folder, after Stop or Kill.
func (r *Redis) Run() error {
	_, port, _ := net.SplitHostPort(r.Addr)
	args := append([]string{
		"--bind", "127.0.0.1", "--port", port, "--dir", r.dir, "--save", "", "--daemonize", "no",
		"--notify-keyspace-events", "Ex", "--loglevel", "warning",
	}, r.args...)
	r.cmd = exec.Command(cmp.Or(os.Getenv("REDIS_SERVER"), "redis-server"), args...)
	r.cmd.Stderr = os.Stderr
	if err := r.cmd.Start(); err != nil {
		return fmt.Errorf("start redis-server (make test installs it): %w", err)
	}
	client := r.Client()
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		err := client.Ping(ctx).Err()
		if err == nil || redis.HasErrorPrefix(err, "NOAUTH") || redis.HasErrorPrefix(err, "LOADING") {
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

// Client returns a client of the server's own making, for what the code under test must not do itself. The caller
// closes it.
func (r *Redis) Client() *redis.Client {
	return redis.NewClient(&redis.Options{Addr: r.Addr, TLSConfig: r.TLS, MaxRetries: -1, DialerRetries: 1, DisableIdentity: true, ClientName: "testkit"})
}

// Pause stops the server in the middle of what it does: it keeps its connections and answers nothing.
func (r *Redis) Pause() { _ = r.cmd.Process.Signal(syscall.SIGSTOP) }

// Resume lets a paused server go on.
func (r *Redis) Resume() { _ = r.cmd.Process.Signal(syscall.SIGCONT) }

// PID is that of the server's process.
func (r *Redis) PID() int { return r.cmd.Process.Pid }

// Stop ends the server and waits for it.
func (r *Redis) Stop() {
	r.Resume()
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
