package loadtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/presence"
)

const (
	// naiveTimeout is when an invocation of a naive function fails: the connection timeout of the published one.
	naiveTimeout = 5 * time.Second
	// naiveLimit bounds a run, beyond the time that the pace asks for: a design that fails need not fail for ever.
	naiveLimit = 3 * time.Minute
)

// naiveApp is one of the two first designs of the published test: every invocation makes a Redis client of
// its own. Up to PublishedInstances instances serve one invocation each at a time. A heartbeat is a single SET,
// which is less than this app does for one.
type naiveApp struct {
	options   redis.Options
	quit      bool          // the second design: quit in each invocation
	instances chan struct{} // has room for those that are busy

	mu     sync.Mutex
	leaked []*redis.Client // what the instances of the first design hold on to
}

func naiveName(quit bool) string {
	if quit {
		return "connect and quit"
	}
	return "client per invocation"
}

// runNaive measures a naive design on a Redis of its own.
func runNaive(ctx context.Context, o Options, quit bool) (*Result, error) {
	dir, err := os.MkdirTemp("", "loadtest")
	if err != nil {
		return nil, fmt.Errorf("make a data folder: %w", err)
	}
	defer os.RemoveAll(dir)
	redisURL, redisServer, err := startRedis(ctx, dir, o.MaxClients)
	if err != nil {
		return nil, err
	}
	defer redisServer.stop()
	options, err := redis.ParseURL(redisURL)
	if err != nil {
		return nil, fmt.Errorf("read the Redis URL: %w", err)
	}
	a := &naiveApp{options: *options, quit: quit, instances: make(chan struct{}, PublishedInstances)}
	defer a.close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	server := &http.Server{Handler: a, ReadHeaderTimeout: requestTimeout}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) }) // it ends when it is closed
	defer serving.Wait()
	defer server.Close()
	url := "http://" + l.Addr().String()
	return measure(ctx, o, naiveName(quit), target{
		urls:    []string{url},
		message: func(_ int, beat []byte) (string, []byte) { return url + "/queue", beat }, // pushed, there is no queue
		limit:   naiveLimit,
	}, redisURL)
}

// ServeHTTP is an invocation of any of the three functions.
func (a *naiveApp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	select {
	case a.instances <- struct{}{}:
		defer func() { <-a.instances }()
	case <-ctx.Done():
		return
	}
	if err := a.invoke(ctx, r); err != nil {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusInternalServerError)
		_ = json.NewEncoder(w).Encode(map[string]string{"detail": err.Error()}) // the caller may have gone
	}
}

// invoke makes a client, does the work of the function, and closes the client or forgets about it.
func (a *naiveApp) invoke(ctx context.Context, r *http.Request) (err error) {
	ctx, cancel := context.WithTimeout(ctx, naiveTimeout)
	defer cancel()
	options := a.options
	client := redis.NewClient(&options)
	defer func() {
		switch {
		case a.quit && err == nil:
			err = client.Do(ctx, "QUIT").Err()
			fallthrough
		case a.quit || err != nil: // one that got no connection has none to leak
			_ = client.Close()
		default:
			a.mu.Lock()
			defer a.mu.Unlock()
			a.leaked = append(a.leaked, client)
		}
	}()
	if r.Method == http.MethodGet {
		if err := client.Get(ctx, path.Base(r.URL.Path)).Err(); err != nil && !errors.Is(err, redis.Nil) {
			return err
		}
		return nil
	}
	var beat struct {
		User string `json:"user"`
	}
	if err := json.NewDecoder(r.Body).Decode(&beat); err != nil {
		return fmt.Errorf("read the heartbeat: %w", err)
	}
	return client.Set(ctx, beat.User, time.Now().UnixMilli(), presence.DefaultTTL).Err()
}

func (a *naiveApp) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.leaked {
		_ = c.Close()
	}
}
