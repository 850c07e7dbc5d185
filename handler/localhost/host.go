// Package localhost is a small stand-in for the Azure Functions host: it runs a staged function app with a custom
// handler on one machine, with nothing of Azure around it. It starts the handler and passes HTTP requests and
// queue messages to it in the form, and judges the replies by the rules, that were recorded from the real host.
// Queues are embedded and persisted; Redis is a server of its own, or embedded.
//
// It is for development and tests. It is not the Functions host: it knows HTTP (proxied) and Service Bus queue
// triggers and no output bindings, does not scale, and trusts everybody on the loopback interface. It calls no
// timers: one would take the Functions host down with the storage account that holds its lease.
package localhost

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
)

// stopGrace is how long requests and calls may take to end when the host stops. The real host gives more; a
// developer who presses Ctrl-C does not want to wait.
const stopGrace = 3 * time.Second

// Options say what a Host runs and how.
type Options struct {
	// PackageDir is the staged package: host.json, the handler and one folder per function.
	PackageDir string
	// DataDir keeps queues and Redis; it is made when missing. Only one host at a time can use it.
	DataDir string
	// Port is the TCP port on 127.0.0.1; 0 means any free one.
	Port int
	// AuthKey is asked of callers of functions that are not anonymous; empty means that no key is asked for.
	AuthKey string
	// Redis says which Redis the handler gets; the zero value means RedisAuto.
	Redis RedisMode
	// NoRedisNotifications starts redis-server without keyspace notifications and without CONFIG.
	NoRedisNotifications bool
	// LockDuration is how long a queue message stays locked, 0 means 5 minutes.
	LockDuration time.Duration
	// MaxDeliveryCount is how often a message is delivered before it is dead, 0 means the setting
	// MAX_DELIVERY_COUNT or else 10.
	MaxDeliveryCount int
	// ReadyFile is replaced with the Status whenever the handler or redis-server has become ready, and removed
	// in the end; empty means none.
	ReadyFile string
	// Environ is the environment, as from os.Environ.
	Environ []string
	// Stdout gets the list of functions. HandlerStdout and HandlerStderr get what the handler writes.
	Stdout, HandlerStdout, HandlerStderr io.Writer
	Log                                  *slog.Logger
	// OnReady is called whenever the handler or redis-server has become ready, if it is not nil. It must not
	// call the Host.
	OnReady func(Status)
}

// Status tells tools where everything is.
type Status struct {
	URL        string `json:"url"`
	QueueURL   string `json:"queueUrl"`
	HandlerURL string `json:"handlerUrl"`
	HandlerPID int    `json:"handlerPid"`
	HostPID    int    `json:"hostPid"`
	RedisURL   string `json:"redisUrl,omitempty"` // empty when the settings decide
	RedisPID   int    `json:"redisPid,omitempty"` // 0 when it is no process of this host
	DataDir    string `json:"dataDir"`
}

// Host runs one function app.
type Host struct {
	options   Options
	log       *slog.Logger
	app       *appPackage
	broker    *broker
	redis     redis
	process   *process
	router    *router
	proxy     *httputil.ReverseProxy
	transport *http.Transport
	listener  net.Listener

	stopping context.Context // done as soon as the host begins to stop
	calls    context.Context // of all calls that are not HTTP; outlives stopping by the grace
	// inFlight is read-locked by every request; locking it waits for all and lets no more in.
	inFlight sync.RWMutex
	announce sync.Once

	mu         sync.Mutex
	killers    []func()
	handlerPID int // 0 until the handler was ready
}

// New returns a host that does nothing yet.
func New(o Options) *Host { return &Host{options: o, log: o.Log} }

// Run runs the app until ctx is done and then returns nil. It returns an error when the package cannot run,
// the data folder or the port is in use, or the handler crashed too often. When it returns, all child
// processes have ended.
func (h *Host) Run(ctx context.Context) (err error) {
	defer func() {
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			err = nil // it was stopped while it started
		}
	}()
	if h.app, err = loadPackage(h.options.PackageDir, h.options.Environ); err != nil {
		return err
	}
	if h.options.DataDir, err = filepath.Abs(h.options.DataDir); err != nil {
		return fmt.Errorf("find data folder: %w", err)
	}
	if err := os.MkdirAll(h.options.DataDir, 0o700); err != nil {
		return fmt.Errorf("make data folder: %w", err)
	}
	if h.broker, err = h.openBroker(ctx); err != nil {
		return fmt.Errorf("data folder %s: %w", h.options.DataDir, err)
	}
	defer func() { err = errors.Join(err, h.broker.close()) }()
	if h.listener, err = listen(h.options.Port); err != nil {
		return err
	}
	defer h.listener.Close()
	if h.redis, err = startRedis(ctx, h.options, h.app.settings, h.log, h.publish); err != nil {
		return err
	}
	defer h.redis.stop()
	h.onKill(h.redis.kill)
	if h.process, err = h.newProcess(); err != nil {
		return err
	}
	h.onKill(h.process.kill)
	if file := h.options.ReadyFile; file != "" {
		defer os.Remove(file)
	}
	return h.serve(ctx)
}

// Kill ends all child processes at once, for a host that was told twice to stop.
func (h *Host) Kill() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, kill := range h.killers {
		kill()
	}
}

func (h *Host) onKill(kill func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.killers = append(h.killers, kill)
}

// serve runs the handler, the triggers and the HTTP server until ctx is done or one of them fails.
func (h *Host) serve(ctx context.Context) error {
	stopping, stopTriggers := context.WithCancel(ctx)
	defer stopTriggers()
	calls, stopCalls := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stopCalls(errStopping)
	running, stopProcess := context.WithCancel(context.WithoutCancel(ctx))
	defer stopProcess()
	h.stopping, h.calls = stopping, calls

	h.transport = newHandlerTransport()
	defer h.transport.CloseIdleConnections()
	h.router = newRouter(h.app.functions)
	h.proxy = newProxy(h.process, h.transport, stopping, h.log)

	processEnded := make(chan error, 1)
	go func() { processEnded <- h.process.run(running) }()

	mux := h.broker.handler(h.app.queues())
	server := &http.Server{
		Handler: withinLimits(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == queuesPath || strings.HasPrefix(r.URL.Path, queuesPath+"/") {
				mux.ServeHTTP(w, r)
				return
			}
			h.serveFunction(w, r)
		})),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		ConnState:         beginRequest,
		ErrorLog:          slog.NewLogLogger(h.log.Handler(), slog.LevelDebug),
	}
	serverEnded := make(chan error, 1)
	go func() { serverEnded <- server.Serve(lenientListener{h.listener}) }()

	var triggers sync.WaitGroup
	for _, f := range h.app.functions {
		switch {
		case !f.active():
		case f.trigger.Type == "serviceBusTrigger":
			triggers.Go(func() { h.runQueueTrigger(stopping, f) })
		}
	}

	var err error
	select {
	case <-ctx.Done():
		h.log.Info("the host stops")
	case err = <-processEnded:
		processEnded <- nil
	case err = <-serverEnded:
		err = fmt.Errorf("serve: %w", err)
	}
	// No new work; what runs may end, and may still use the broker meanwhile; then the handler is killed, as
	// by the real host.
	stopTriggers()
	drained := h.drain(&triggers)
	if err == nil {
		timer := time.NewTimer(stopGrace)
		defer timer.Stop()
		select {
		case <-drained:
		case <-timer.C:
			h.log.Warn("some calls did not end in time")
		}
	}
	stopCalls(errStopping)
	stopProcess()
	<-processEnded
	_ = server.Close() // it only returns errors of connections
	<-drained
	return err
}

// drain lets no more requests in and returns a channel that is closed when requests and trigger calls have ended.
func (h *Host) drain(triggers *sync.WaitGroup) <-chan struct{} {
	drained := make(chan struct{})
	go func() {
		h.inFlight.Lock() // and stays locked
		triggers.Wait()
		close(drained)
	}()
	return drained
}

func (h *Host) openBroker(ctx context.Context) (*broker, error) {
	lock, deliveries := h.options.LockDuration, h.options.MaxDeliveryCount
	if lock <= 0 {
		lock = defaultLockDuration
	}
	if deliveries <= 0 {
		n, _ := strconv.Atoi(h.app.settings["MAX_DELIVERY_COUNT"])
		deliveries = positive(n, defaultMaxDeliveryCount)
	}
	return openBroker(ctx, filepath.Join(h.options.DataDir, "queues.db"), lock, deliveries)
}

// newProcess prepares the handler with its environment.
func (h *Host) newProcess() (*process, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	worker := uuid.NewString()
	env := map[string]string{
		"FUNCTIONS_CUSTOMHANDLER_PORT":      strconv.Itoa(port),
		"FUNCTIONS_HTTPWORKER_PORT":         strconv.Itoa(port),
		"FUNCTIONS_CUSTOMHANDLER_WORKER_ID": worker,
		"FUNCTIONS_HTTPWORKER_ID":           worker,
		"FUNCTIONS_APP_ROOT_PATH":           h.app.dir,
		"FUNCTIONS_WORKER_RUNTIME":          "custom",
		"LOCAL_QUEUE_URL":                   h.url() + queuesPath,
		"DATA_DIR":                          h.options.DataDir,
	}
	if url := h.redis.url(); url != "" {
		env["REDIS_URL"] = url
	}
	p := newProcess()
	p.path, p.args, p.dir, p.env = h.app.executable, h.app.arguments, h.app.dir, h.app.environ(env)
	p.stdout, p.stderr, p.port, p.log = h.options.HandlerStdout, h.options.HandlerStderr, port, h.log
	p.onReady = h.handlerReady
	return p, nil
}

func (h *Host) url() string { return "http://" + h.listener.Addr().String() }

// handlerReady tells everybody that the handler takes requests.
func (h *Host) handlerReady(pid int) {
	h.announce.Do(func() {
		ctx, cancel := context.WithTimeout(h.calls, advicePatience)
		defer cancel()
		h.printFunctions(h.options.Stdout, h.advice(ctx))
	})
	h.mu.Lock()
	h.handlerPID = pid
	h.mu.Unlock()
	h.publish()
}

// publish tells tools where everything is, once the handler was ready.
func (h *Host) publish() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.handlerPID == 0 {
		return
	}
	status := Status{
		URL: h.url(), QueueURL: h.url() + queuesPath, HandlerURL: h.process.url(), HandlerPID: h.handlerPID, HostPID: os.Getpid(),
		RedisURL: h.redis.url(), RedisPID: h.redis.pid(), DataDir: h.options.DataDir,
	}
	if h.options.ReadyFile != "" {
		if err := writeReadyFile(h.options.ReadyFile, status); err != nil {
			h.log.Error("ready file cannot be written", "error", err)
		}
	}
	if h.options.OnReady != nil {
		h.options.OnReady(status)
	}
}

// printFunctions lists what runs and where, and then what is not well.
func (h *Host) printFunctions(w io.Writer, advice []string) {
	var b strings.Builder
	b.WriteString("\nLocal host: a stand-in for the Azure Functions host, for development and tests.\n\nFunctions:\n")
	example := ""
	for _, f := range h.app.functions {
		fmt.Fprintf(&b, "  %s: ", f.name)
		switch {
		case f.err != nil:
			fmt.Fprintf(&b, "IN ERROR: %v\n", f.err)
		case f.disabled:
			b.WriteString("disabled\n")
		case f.trigger.Type == "httpTrigger":
			fmt.Fprintf(&b, "%s %s/%s\n", f.trigger.methods(), h.url(), f.route.template)
			if strings.HasSuffix(f.route.template, "/heartbeat") && f.trigger.allows(http.MethodPost) {
				example = h.example(f)
			}
		default:
			fmt.Fprintf(&b, "%s %s\n", f.trigger.Type, f.trigger.QueueName)
		}
	}
	fmt.Fprintf(&b, "\nRedis:  %s\nQueues: %s%s (persisted in %s)\nData:   %s\n", h.redis.describe(), h.url(), queuesPath,
		filepath.Join(h.options.DataDir, "queues.db"), h.options.DataDir)
	if len(advice) > 0 {
		b.WriteString("\nNot well:\n")
	}
	for _, line := range advice {
		fmt.Fprintf(&b, "  %s\n", line)
	}
	if example != "" {
		fmt.Fprintf(&b, "\nTry:\n  %s\n", example)
	}
	b.WriteString("\nCtrl-C stops everything.\n\n")
	_, _ = io.WriteString(w, b.String()) // nothing depends on it
}

func (h *Host) example(f *function) string {
	key := ""
	if h.options.AuthKey != "" {
		key = "-H 'x-functions-key: <key>' "
	}
	return fmt.Sprintf(`curl -sS %s-H 'Content-Type: application/json' -d '{"user":"alice","ttlSeconds":5}' %s/%s`,
		key, h.url(), f.route.template)
}

// writeReadyFile replaces the file in one step.
func writeReadyFile(path string, status Status) error {
	data, err := json.Marshal(status)
	if err != nil {
		return err
	}
	next := path + ".next"
	if err := os.WriteFile(next, append(data, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(next, path)
}

func listen(port int) (net.Listener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("port %d is in use; choose another one with PORT= or --port: %w", port, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return l, nil
}
