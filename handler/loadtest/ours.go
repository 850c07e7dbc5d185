package loadtest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"userconnectivity/handler/localhost"
)

const (
	appStartTimeout = 30 * time.Second
	appPoll         = 10 * time.Millisecond
	// startsAtOnce is how many handlers start at a time, so that a hundred of them do not starve each other.
	startsAtOnce = 4
	oursName     = "this app"
)

// runOurs measures this app: the running one that the options name, or one that it starts.
func runOurs(ctx context.Context, o Options) (*Result, error) {
	if o.URL != "" {
		to := target{urls: []string{o.URL}, key: o.Key}
		if o.QueueURL != "" {
			queue, err := newQueueClient(ctx, o.QueueURL)
			if err != nil {
				return nil, err
			}
			to.message, to.drain = queue.message, queue.drain
		}
		return measure(ctx, o, oursName, to, o.RedisURL)
	}
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
	app, err := startApp(ctx, o, dir, redisURL)
	defer app.stop()
	if err != nil {
		return nil, err
	}
	queue, err := newQueueClient(ctx, app.status.QueueURL)
	if err != nil {
		return nil, err
	}
	return measure(ctx, o, oursName, target{urls: app.urls, message: queue.message, drain: queue.drain}, redisURL)
}

// app is this app on this machine: the local host with its handler, which has the listener and the queue
// functions, and the further handlers.
type app struct {
	status localhost.Status
	urls   []string // where HTTP invocations go

	mu        sync.Mutex
	processes []*process
}

// startApp starts the local host and the further handlers. What it returns is to be stopped, also with an error.
func startApp(ctx context.Context, o Options, dir, redisURL string) (*app, error) {
	a := &app{}
	env := append(os.Environ(), "REDIS_URL="+redisURL, "MAX_INSTANCES="+strconv.Itoa(max(o.Processes, 1)),
		"REDIS_MAX_CLIENTS="+strconv.Itoa(o.MaxClients))
	ready := filepath.Join(dir, "ready.json")
	cmd := exec.Command(o.Host, "--package", o.Package, "--port", "0", "--data-dir", dir, "--redis", "auto", "--ready-file", ready)
	cmd.Env = env
	host, err := a.start(cmd, filepath.Join(dir, "host.log"), os.Interrupt)
	if err != nil {
		return a, err
	}
	starting, cancel := context.WithTimeout(ctx, appStartTimeout)
	defer cancel()
	err = host.await(starting, appPoll, func() bool {
		text, err := os.ReadFile(ready)
		return err == nil && json.Unmarshal(text, &a.status) == nil
	})
	if err != nil {
		return a, fmt.Errorf("start the local host: %w", err)
	}
	if o.Processes == 0 {
		a.urls = []string{a.status.URL}
		return a, nil
	}
	// Each process is an instance of its own and gets its share at its own port: the host would pass all of it
	// to a single handler. The messages go through the host, to its handler.
	a.urls = []string{a.status.HandlerURL}
	env = append(env, "LOCAL_QUEUE_URL="+a.status.QueueURL, "DATA_DIR="+dir, "AzureWebJobs_ExpirationListener_Disabled=true")
	g, starts := errgroup.WithContext(ctx)
	g.SetLimit(startsAtOnce)
	for n := 1; n < o.Processes; n++ {
		g.Go(func() error { return a.startHandler(starts, o, env, dir, n) })
	}
	return a, g.Wait()
}

// startHandler starts one more handler and adds it to the urls once it answers.
func (a *app) startHandler(ctx context.Context, o Options, env []string, dir string, n int) error {
	port, err := freePort()
	if err != nil {
		return err
	}
	name := "handler-" + strconv.Itoa(n)
	path, err := filepath.Abs(filepath.Join(o.Package, "handler"))
	if err != nil {
		return fmt.Errorf("find the handler: %w", err)
	}
	cmd := exec.Command(path)
	cmd.Env = append(env[:len(env):len(env)], "FUNCTIONS_CUSTOMHANDLER_PORT="+strconv.Itoa(port), "WEBSITE_INSTANCE_ID="+name)
	p, err := a.start(cmd, filepath.Join(dir, name+".log"), syscall.SIGTERM)
	if err != nil {
		return err
	}
	url := "http://127.0.0.1:" + strconv.Itoa(port)
	ctx, cancel := context.WithTimeout(ctx, appStartTimeout)
	defer cancel()
	if err := p.await(ctx, appPoll, func() bool { return answers(ctx, url+"/api/live") }); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.urls = append(a.urls, url)
	return nil
}

func answers(ctx context.Context, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func (a *app) start(cmd *exec.Cmd, log string, ask os.Signal) (*process, error) {
	p, err := startProcess(cmd, log, ask)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.processes = append(a.processes, p)
	return p, nil
}

// stop ends all processes, the host last: the others may still send to its queues.
func (a *app) stop() {
	if len(a.processes) == 0 {
		return
	}
	var handlers sync.WaitGroup
	for _, p := range a.processes[1:] {
		handlers.Go(p.stop)
	}
	handlers.Wait()
	a.processes[0].stop()
}
