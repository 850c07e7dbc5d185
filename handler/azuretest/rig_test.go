// Package azuretest runs the real handler binary against the nearest real thing to Azure that fits on one machine:
// a real Redis, a broker that speaks AMQP like Service Bus, an account that speaks HTTP like Cosmos DB, and itself in
// the role of the Functions host.
package azuretest

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/cosmosstore/cosmosfake"
	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/queue"
	"userconnectivity/handler/servicebus/amqpstub"
)

const (
	eventsQueue = queue.ConnectivityEvents
	database    = "connectivity"
	instance    = "instance-1"
	// patience bounds every wait of a test.
	patience = time.Minute
)

// accountKey is the key of the Cosmos DB account.
var accountKey = base64.StdEncoding.EncodeToString([]byte("the key of the account in tests"))

// handlerPath is the binary under test.
var handlerPath string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "azuretest")
	if err != nil {
		log.Fatal(err)
	}
	handlerPath = filepath.Join(dir, "handler")
	redis.SetLogger(quiet{}) // a server that is not up yet is no news
	build := exec.Command("go", "build", "-o", handlerPath, "userconnectivity/handler")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	code := 1
	if out, err := build.CombinedOutput(); err != nil {
		log.Printf("build the handler: %v\n%s", err, out)
	} else {
		code = m.Run()
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

// foreign are variables of the machine that must not reach the handler.
var foreign = []string{
	"ServiceBusConnection__fullyQualifiedNamespace", "AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET", "IDENTITY_ENDPOINT",
	"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
}

// rig is what the handler talks to. Its zero settings are those of a healthy deployment.
type rig struct {
	tb      testing.TB
	redis   *testkit.Redis
	broker  *amqpstub.Broker
	gate    *gate // in front of the broker
	account *cosmosfake.Server
	env     map[string]string
	dir     string // where the handler is started; "" is here
}

// newRig starts everything but the handler. The queue has the properties that the deployment gives it.
func newRig(tb testing.TB) *rig { return newRigWith(tb, cosmosfake.Config{}) }

// newRigWith has an account of its own kind.
func newRigWith(tb testing.TB, c cosmosfake.Config) *rig {
	tb.Helper()
	r := &rig{tb: tb, redis: testkit.Start(tb), broker: amqpstub.Start(tb), account: newAccount(c)}
	for _, name := range []string{eventsQueue, eventsQueue + queue.RejectedSuffix} {
		r.broker.CreateQueue(name, amqpstub.QueueOptions{DuplicateDetection: true, Lock: 5 * time.Minute})
	}
	r.gate = newGate(tb, r.broker.Addr())
	cosmos := httptest.NewServer(r.account)
	tb.Cleanup(cosmos.Close)
	r.env = map[string]string{
		"REDIS_URL":            r.redis.URL(),
		"ServiceBusConnection": strings.Replace(r.broker.ConnectionString(), r.broker.Addr(), r.gate.addr, 1),
		"COSMOS_ENDPOINT":      cosmos.URL,
		"COSMOS_KEY":           accountKey,
		"WEBSITE_SITE_NAME":    "app",
		"WEBSITE_INSTANCE_ID":  instance,
		"DATA_DIR":             tb.TempDir(),
	}
	for _, name := range foreign {
		r.env[name] = ""
	}
	return r
}

// newAccount is an account with the containers of the deployment.
func newAccount(c cosmosfake.Config) *cosmosfake.Server {
	c.Key = accountKey
	account := cosmosfake.New(c)
	account.CreateContainer(database, "events", "/pk", 30*24*3600)
	account.CreateContainer(database, "users", "/id", 0)
	account.CreateContainer(database, "profiles", "/id", 0)
	return account
}

// handler is one running process of the handler.
type handler struct {
	tb     testing.TB
	cmd    *exec.Cmd
	url    string
	client *http.Client
	exited chan struct{}
	output *testkit.Output
}

// command is the handler with the rig's settings, changed by more of them.
func (r *rig) command(settings ...string) *exec.Cmd {
	env := maps.Clone(r.env)
	for _, s := range settings {
		name, value, _ := strings.Cut(s, "=")
		env[name] = value
	}
	cmd := exec.Command(handlerPath)
	cmd.Dir, cmd.Env = r.dir, os.Environ()
	for name, value := range env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	return cmd
}

// start starts the handler and waits until it answers. It is killed when the test ends.
func (r *rig) start(settings ...string) *handler {
	r.tb.Helper()
	for range 5 {
		h := &handler{
			tb: r.tb, client: &http.Client{Timeout: patience, Transport: &http.Transport{MaxIdleConnsPerHost: 32}},
			exited: make(chan struct{}), output: &testkit.Output{},
		}
		port := freePort(r.tb)
		h.url = "http://127.0.0.1:" + port
		h.cmd = r.command(append(settings, "FUNCTIONS_CUSTOMHANDLER_PORT="+port)...)
		h.cmd.Stdout, h.cmd.Stderr = h.output, h.output
		if err := h.cmd.Start(); err != nil {
			r.tb.Fatal(err)
		}
		go func() {
			_ = h.cmd.Wait()
			close(h.exited)
		}()
		r.tb.Cleanup(func() {
			h.kill()
			h.client.CloseIdleConnections()
			if r.tb.Failed() {
				r.tb.Logf("output of handler %d:\n%s", h.cmd.Process.Pid, h.output)
			}
		})
		if h.answers() {
			return h
		}
		if !strings.Contains(h.output.String(), "address already in use") { // somebody else was given the port meanwhile
			r.tb.Fatalf("the handler did not start:\n%s", h.output)
		}
	}
	r.tb.Fatal("no port was free")
	return nil
}

func freePort(tb testing.TB) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// answers waits until the process answers, false when it ended before.
func (h *handler) answers() bool {
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		if resp, err := h.client.Get(h.url + "/api/live"); err == nil {
			_ = resp.Body.Close()
			return resp.StatusCode == http.StatusOK
		}
		select {
		case <-h.exited:
			return false
		case <-time.After(2 * time.Millisecond):
		}
	}
	return false
}

// kill ends the process without notice, as the host does, and waits for it.
func (h *handler) kill() {
	_ = h.cmd.Process.Signal(syscall.SIGKILL)
	<-h.exited
}

// call sends one request and returns the status; into may be nil.
func (h *handler) call(method, path string, body, into any) int {
	h.tb.Helper()
	status, err := h.request(h.tb.Context(), method, path, body, into)
	if err != nil {
		h.tb.Fatal(err)
	}
	return status
}

func (h *handler) request(ctx context.Context, method, path string, body, into any) (status int, err error) {
	var text io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return 0, err
		}
		text = bytes.NewReader(encoded)
	}
	req, err := http.NewRequestWithContext(ctx, method, h.url+path, text)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := h.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && into != nil && resp.StatusCode < 300 {
		err = json.Unmarshal(answer, into)
	}
	if err != nil {
		return 0, fmt.Errorf("%s %s: %d %s: %w", method, path, resp.StatusCode, answer, err)
	}
	return resp.StatusCode, nil
}

// beat has users beat, in one request, with settings such as ttlSeconds.
func (h *handler) beat(users []string, settings map[string]any) {
	h.tb.Helper()
	beats := make([]map[string]any, len(users))
	for i, user := range users {
		beats[i] = map[string]any{"user": user}
		maps.Copy(beats[i], settings)
	}
	var answer struct{ Accepted int }
	if status := h.call("POST", "/api/heartbeats", map[string]any{"heartbeats": beats}, &answer); status != http.StatusOK || answer.Accepted != len(users) {
		h.tb.Fatalf("%d beats: status %d, %d accepted", len(users), status, answer.Accepted)
	}
}

// leave ends the sessions of users.
func (h *handler) leave(users []string) {
	h.tb.Helper()
	for _, user := range users {
		if status := h.call("DELETE", "/api/users/"+user+"/sessions/default", nil, nil); status != http.StatusNoContent {
			h.tb.Fatalf("leave: status %d", status)
		}
	}
}

// health is what GET /api/health answers.
type health struct {
	Status string
	Parts  map[string]map[string]any
}

func (p health) detail(part string) string {
	text, _ := p.Parts[part]["detail"].(string)
	return text
}

func (p health) number(part, name string) float64 {
	n, _ := p.Parts[part][name].(float64)
	return n
}

func (h *handler) health() health {
	h.tb.Helper()
	p, err := h.askHealth()
	if err != nil {
		h.tb.Fatal(err)
	}
	return p
}

func (h *handler) askHealth() (p health, err error) {
	resp, err := h.client.Get(h.url + "/api/health")
	if err != nil {
		return p, err
	}
	defer resp.Body.Close()
	return p, json.NewDecoder(resp.Body).Decode(&p)
}

// waitHealth asks for health until ok.
func (h *handler) waitHealth(what string, ok func(health) bool) health {
	h.tb.Helper()
	var last health
	wait(h.tb, what, func() (bool, any) {
		last = h.health()
		return ok(last), last
	})
	return last
}

// wait polls until ok: nothing of what the tests wait for in other processes can ring.
func wait(tb testing.TB, what string, ok func() (bool, any)) {
	tb.Helper()
	deadline := time.Now().Add(patience)
	for {
		good, seen := ok()
		if good {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatalf("%s: not after %v; last seen: %+v", what, patience, seen)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// waitMessages waits until the queue has taken n messages and returns them. It never takes more.
func (r *rig) waitMessages(n int) []amqpstub.Message {
	r.tb.Helper()
	var q amqpstub.Queue
	wait(r.tb, fmt.Sprintf("%d messages", n), func() (bool, any) {
		q = r.broker.Queue(eventsQueue)
		return len(q.Messages) >= n, len(q.Messages)
	})
	if len(q.Messages) > n {
		r.tb.Fatalf("%d messages, want %d", len(q.Messages), n)
	}
	return q.Messages
}

// users makes n names.
func users(prefix string, n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("%s-%04d", prefix, i)
	}
	return names
}

// gate is a TCP front of a server that can be shut and opened again.
type gate struct {
	tb   testing.TB
	addr string
	to   string

	mu     sync.Mutex
	wrap   func(net.Conn) (net.Conn, bool) // what to do with a connection first; false keeps it from to
	listen net.Listener
	conns  map[net.Conn]struct{}
	all    sync.WaitGroup
}

func newGate(tb testing.TB, to string) *gate {
	tb.Helper()
	g := &gate{tb: tb, addr: "127.0.0.1:0", to: to, conns: map[net.Conn]struct{}{}}
	g.open()
	tb.Cleanup(func() {
		g.shut()
		g.all.Wait()
	})
	return g
}

// open lets connections through.
func (g *gate) open() {
	g.tb.Helper()
	l, err := net.Listen("tcp", g.addr)
	if err != nil {
		g.tb.Fatal(err)
	}
	g.mu.Lock()
	g.listen, g.addr = l, l.Addr().String()
	g.mu.Unlock()
	g.all.Go(func() {
		for {
			front, err := l.Accept()
			if err != nil {
				return
			}
			g.all.Go(func() { g.serve(front) })
		}
	})
}

// shut refuses connections and cuts those that stand.
func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	_ = g.listen.Close()
	for c := range g.conns {
		_ = c.Close()
	}
}

func (g *gate) keep(c net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.conns[c] = struct{}{}
}

// setWrap has f see each connection first.
func (g *gate) setWrap(f func(net.Conn) (net.Conn, bool)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.wrap = f
}

func (g *gate) serve(front net.Conn) {
	g.keep(front)
	g.mu.Lock()
	wrap := g.wrap
	g.mu.Unlock()
	if wrap != nil {
		var ok bool
		if front, ok = wrap(front); !ok {
			return
		}
	}
	defer front.Close()
	back, err := net.Dial("tcp", g.to)
	if err != nil {
		return
	}
	g.keep(back)
	defer back.Close()
	var both sync.WaitGroup
	for _, pair := range [][2]net.Conn{{front, back}, {back, front}} {
		both.Go(func() {
			_, _ = io.Copy(pair[0], pair[1])
			_ = front.Close()
			_ = back.Close()
		})
	}
	both.Wait()
}
