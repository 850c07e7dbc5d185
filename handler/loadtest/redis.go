package loadtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

const (
	redisStartTimeout = 20 * time.Second
	redisPoll         = 10 * time.Millisecond
	// clientSampling is how often the connected clients are counted.
	clientSampling = 100 * time.Millisecond
)

// startRedis starts a redis-server with the given maxclients on a free port of the loopback interface, and
// returns when it answers. It keeps nothing on disk.
func startRedis(ctx context.Context, dir string, maxClients int) (url string, p *process, err error) {
	path, err := exec.LookPath("redis-server")
	if err != nil {
		return "", nil, fmt.Errorf("redis-server is needed for the load test: install it (apt-get install redis-server, brew install redis): %w", err)
	}
	port, err := freePort()
	if err != nil {
		return "", nil, err
	}
	cmd := exec.Command(path, "--bind", "127.0.0.1", "--port", strconv.Itoa(port), "--maxclients", strconv.Itoa(maxClients),
		"--dir", dir, "--save", "", "--appendonly", "no", "--daemonize", "no", "--loglevel", "warning")
	if p, err = startProcess(cmd, filepath.Join(dir, "redis.log"), syscall.SIGTERM); err != nil {
		return "", nil, err
	}
	url = "redis://127.0.0.1:" + strconv.Itoa(port)
	client, err := oneConnection(url)
	if err != nil {
		p.stop()
		return "", nil, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, redisStartTimeout)
	defer cancel()
	if err := p.await(ctx, redisPoll, func() bool { return client.Ping(ctx).Err() == nil }); err != nil {
		p.stop()
		return "", nil, fmt.Errorf("start redis-server: %w", err)
	}
	return url, p, nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// oneConnection returns a client that opens a single connection.
func oneConnection(url string) (*redis.Client, error) {
	options, err := redis.ParseURL(url)
	if err != nil { // the parser's error may quote the URL with its password
		return nil, errors.New("the Redis URL cannot be read: it must look like redis://user:password@host:6379/0, or rediss:// for TLS")
	}
	options.ClientName, options.PoolSize, options.MaxActiveConns = "loadtest", 1, 1
	options.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return redis.NewClient(options), nil
}

// ClientCount is how many clients were connected to Redis, the one that counts included.
type ClientCount struct {
	At time.Duration // since the load began
	N  int
}

// clientWatch counts the connected clients of a Redis every clientSampling, over one connection of its own. It
// opens it first, so that it also sees what happens when no other gets in.
type clientWatch struct {
	client *redis.Client
	began  time.Time
	before map[string]int64
	cancel context.CancelFunc
	ended  sync.WaitGroup
	counts []ClientCount // to be read after the end
}

func watchClients(ctx context.Context, url string) (*clientWatch, error) {
	client, err := oneConnection(url)
	if err != nil {
		return nil, err
	}
	w := &clientWatch{client: client, began: time.Now()}
	if w.before, err = w.info(ctx); err != nil {
		_ = client.Close()
		return nil, err
	}
	ctx, w.cancel = context.WithCancel(ctx)
	w.ended.Go(func() { w.run(ctx) })
	return w, nil
}

func (w *clientWatch) run(ctx context.Context) {
	t := time.NewTicker(clientSampling)
	defer t.Stop()
	for {
		// A sample that fails is missing in the chart.
		if info, err := w.info(ctx); err == nil {
			w.counts = append(w.counts, ClientCount{At: time.Since(w.began), N: int(info["connected_clients"])})
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// finish ends the sampling and adds what was seen to the result.
func (w *clientWatch) finish(ctx context.Context, r *Result) error {
	w.cancel()
	w.ended.Wait()
	after, err := w.info(ctx)
	if err != nil {
		return err
	}
	r.Clients, r.MaxClients = w.counts, int(after["maxclients"])
	r.Opened = after["total_connections_received"] - w.before["total_connections_received"]
	r.Refused = after["rejected_connections"] - w.before["rejected_connections"]
	return nil
}

// close ends the sampling and the connection.
func (w *clientWatch) close() {
	w.cancel()
	w.ended.Wait()
	_ = w.client.Close()
}

// info returns the numbers of INFO by name.
func (w *clientWatch) info(ctx context.Context) (map[string]int64, error) {
	text, err := w.client.Info(ctx).Result()
	if err != nil {
		return nil, fmt.Errorf("count the clients of Redis: %w", err)
	}
	numbers := map[string]int64{}
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		if n, err := strconv.ParseInt(value, 10, 64); err == nil {
			numbers[name] = n
		}
	}
	return numbers, nil
}
