package triggers_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/health"
	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/queue"
	"userconnectivity/handler/redisconn"
	"userconnectivity/handler/redisstore"
	"userconnectivity/handler/sqlitestore"
	"userconnectivity/handler/triggers"
	"userconnectivity/handler/worker"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const (
	partitions  = 2
	maxDelivery = 3
)

// bench is the app behind its routes: a real Redis, a real event log, a queue that keeps what it is sent, and the
// published contract that every call is held against.
type bench struct {
	t       *testing.T
	routes  *chi.Mux
	server  *httptest.Server
	store   *redisstore.Store
	records *records
	queues  *queues
	codec   queue.Codec
	log     *testkit.Output
	raw     redis.UniversalClient
	prefix  string
}

// setup starts a bench; change alters what the functions call before the routes are made.
func setup(t *testing.T, change ...func(*triggers.Handlers)) *bench {
	t.Helper()
	server, prefix := testkit.Shared(t)
	raw := redis.NewClient(&redis.Options{Addr: server.Addr})
	t.Cleanup(func() { _ = raw.Close() })
	b := &bench{t: t, raw: raw, prefix: prefix}
	b.open(server.URL(), change...)
	return b
}

func (b *bench) open(redisURL string, change ...func(*triggers.Handlers)) {
	client := redisconn.NewClient(redisconn.Endpoint{URL: redisURL}, b.t.Name(), nil)
	b.t.Cleanup(func() { _ = client.Close() })
	b.store = redisstore.New(client, redisstore.Config{Prefix: b.prefix, Partitions: partitions, LeaseKeys: true})
	b.t.Cleanup(b.store.Close)
	b.records = &records{Store: sqlitestore.New(filepath.Join(b.t.TempDir(), "events.db"))}
	b.t.Cleanup(func() { _ = b.records.Close() })
	b.queues = &queues{seen: map[string]bool{}}
	b.codec = queue.Codec{Source: "/test", TypePrefix: "userconnectivity."}
	b.log = &testkit.Output{}

	log := slog.New(slog.NewJSONHandler(b.log, nil))
	tracker := presence.NewTracker(b.store, b.records, presence.DefaultTTL)
	work := worker.New(b.records, b.records, b.queues, b.codec, queue.Destinations{Events: "events-topic", Routes: "cart:*=carts"}, maxDelivery, log)
	h := triggers.Handlers{
		Tracker: tracker, Events: b.records, Replayer: work, Worker: work,
		Beats:    triggers.HeartbeatQueue{Tracker: tracker, Sender: b.queues},
		Listener: listener{}, Health: parts{"redis": {Figures: map[string]any{"partitions": partitions}}},
		Metrics: meter("up 1\n"), Version: "test", Log: log,
	}
	for _, c := range change {
		c(&h)
	}
	b.routes = triggers.Routes(h)
	b.server = httptest.NewServer(b.routes)
	b.t.Cleanup(b.server.Close)
}

// answer is what a call was answered.
type answer struct {
	t      *testing.T
	call   string
	Status int
	Header http.Header
	Body   []byte
}

// call is one HTTP request of a test.
type call struct {
	method, path string
	body         any // a string is sent as it is, anything else as JSON; nil is no body
	header       http.Header
	// loose leaves out the check of the request against the contract: it is wrong on purpose.
	loose bool
}

func (b *bench) get(path string) *answer { b.t.Helper(); return b.do(call{method: "GET", path: path}) }

func (b *bench) delete(path string) *answer {
	b.t.Helper()
	return b.do(call{method: "DELETE", path: path})
}

func (b *bench) post(path string, body any) *answer {
	b.t.Helper()
	return b.do(call{method: "POST", path: path, body: body})
}

// do makes a call and holds request and response against the contract.
func (b *bench) do(c call) *answer {
	b.t.Helper()
	var body []byte
	switch v := c.body.(type) {
	case nil:
	case string:
		body = []byte(v)
	default:
		var err error
		if body, err = json.Marshal(v); err != nil {
			b.t.Fatal(err)
		}
	}
	request := func() *http.Request {
		var reader io.Reader
		if c.body != nil {
			reader = bytes.NewReader(body)
		}
		r, err := http.NewRequestWithContext(b.t.Context(), c.method, b.server.URL+c.path, reader)
		if err != nil {
			b.t.Fatal(err)
		}
		if c.body != nil {
			r.Header.Set("Content-Type", "application/json")
		}
		r.Header.Set("X-Functions-Key", "test")
		for name, values := range c.header {
			r.Header[name] = values
		}
		return r
	}
	response, err := b.server.Client().Do(request())
	if err != nil {
		b.t.Fatal(err)
	}
	defer response.Body.Close()
	a := &answer{t: b.t, call: c.method + " " + c.path, Status: response.StatusCode, Header: response.Header}
	if a.Body, err = io.ReadAll(response.Body); err != nil {
		b.t.Fatal(err)
	}
	contractOf(b.t).check(b.t, b.routes, request(), a, c.loose)
	return a
}

// method makes a call with a method that the contract does not list.
func (b *bench) method(method, path string, status int) http.Header {
	b.t.Helper()
	r, err := http.NewRequestWithContext(b.t.Context(), method, b.server.URL+path, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	response, err := b.server.Client().Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer response.Body.Close()
	if body, err := io.ReadAll(response.Body); err != nil || response.StatusCode != status || len(body) > 0 && method == http.MethodHead {
		b.t.Errorf("%s %s: %s %q, %v, want %d", method, path, response.Status, body, err, status)
	}
	return response.Header
}

// into decodes the body of an answer with the given status.
func (a *answer) into(status int, v any) {
	a.t.Helper()
	a.is(status)
	if err := json.Unmarshal(a.Body, v); err != nil {
		a.t.Fatalf("%s: %v in %s", a.call, err, a.Body)
	}
}

func (a *answer) is(status int) {
	a.t.Helper()
	if a.Status != status {
		a.t.Fatalf("%s: %d %s, want %d", a.call, a.Status, a.Body, status)
	}
}

// pass moves the clock of Redis's scripts.
func (b *bench) pass(d time.Duration) {
	b.t.Helper()
	for _, p := range []string{"{p0}", "{p1}"} {
		if err := b.raw.HIncrBy(b.t.Context(), b.prefix+p+"/meta", "offset", d.Milliseconds()).Err(); err != nil {
			b.t.Fatal(err)
		}
	}
}

// sweep claims what is due.
func (b *bench) sweep() {
	b.t.Helper()
	due, err := b.store.Due(b.t.Context(), []int{0, 1})
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.store.Claim(b.t.Context(), due); err != nil {
		b.t.Fatal(err)
	}
}

// relay logs what is in the outbox and returns it as the broker would deliver it, oldest epoch first.
func (b *bench) relay() []delivered {
	b.t.Helper()
	var events []presence.Event
	outbox := b.store.Outbox("test")
	for p := range partitions {
		entries, err := outbox.Next(b.t.Context(), p, 1000)
		if err != nil {
			b.t.Fatal(err)
		}
		for _, e := range entries {
			events = append(events, e.Event)
		}
		if len(entries) > 0 {
			if err := outbox.Acknowledge(b.t.Context(), p, entries); err != nil {
				b.t.Fatal(err)
			}
		}
	}
	slices.SortStableFunc(events, func(x, y presence.Event) int { return int(x.Epoch - y.Epoch) })
	messages := make([]delivered, len(events))
	for i, e := range events {
		b.write(eventlog.Update{Event: e, Steps: []eventlog.Step{
			{Status: eventlog.Detected, At: e.DetectedAt}, {Status: eventlog.Queued, At: e.DetectedAt.Add(time.Millisecond)},
		}})
		messages[i] = b.message(e, 0)
	}
	return messages
}

func (b *bench) write(u eventlog.Update) {
	b.t.Helper()
	if err := b.records.Write(b.t.Context(), []eventlog.Update{u}); err != nil {
		b.t.Fatal(err)
	}
}

// message is an event as the broker delivers it.
func (b *bench) message(e presence.Event, replay int) delivered {
	b.t.Helper()
	m, err := b.codec.Encode(e, replay)
	if err != nil {
		b.t.Fatal(err)
	}
	return delivered{Body: string(m.Body), ID: m.ID, Count: 1, Properties: m.Properties}
}

// dump is everything that is stored, to see that nothing changed.
func (b *bench) dump() string {
	b.t.Helper()
	ctx := b.t.Context()
	var out strings.Builder
	keys, err := b.raw.Keys(ctx, strings.NewReplacer("*", "\\*").Replace(b.prefix)+"*").Result()
	if err != nil {
		b.t.Fatal(err)
	}
	slices.Sort(keys)
	for _, k := range keys {
		content, err := b.raw.Dump(ctx, k).Result()
		if err != nil && !errors.Is(err, redis.Nil) {
			b.t.Fatal(err)
		}
		out.WriteString(k + "=" + content + "\n")
	}
	b.queues.mu.Lock()
	defer b.queues.mu.Unlock()
	for _, m := range b.queues.messages {
		out.WriteString(m.queue + " " + m.ID + "\n")
	}
	return out.String()
}

// records is the event log with faults that tests switch on.
type records struct {
	*sqlitestore.Store
	mu                    sync.Mutex
	applyFault            func(presence.Event) error
	readFault, writeFault error
}

func (r *records) set(change func(*records)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(r)
}

func (r *records) Apply(ctx context.Context, e presence.Event) (bool, error) {
	r.mu.Lock()
	fault := r.applyFault
	r.mu.Unlock()
	if fault != nil {
		if err := fault(e); err != nil {
			return false, err
		}
	}
	return r.Store.Apply(ctx, e)
}

func (r *records) Write(ctx context.Context, updates []eventlog.Update) error {
	r.mu.Lock()
	fault := r.writeFault
	r.mu.Unlock()
	if fault != nil {
		return fault
	}
	return r.Store.Write(ctx, updates)
}

func (r *records) Event(ctx context.Context, id string) (eventlog.Record, error) {
	r.mu.Lock()
	fault := r.readFault
	r.mu.Unlock()
	if fault != nil {
		return eventlog.Record{}, fault
	}
	return r.Store.Event(ctx, id)
}

func (r *records) UserEvents(ctx context.Context, user string, limit int, continuation string) (eventlog.Page, error) {
	r.mu.Lock()
	fault := r.readFault
	r.mu.Unlock()
	if fault != nil {
		return eventlog.Page{}, fault
	}
	return r.Store.UserEvents(ctx, user, limit, continuation)
}

// queues is a broker in memory: it keeps what it is sent and drops an id that it has seen in a queue.
type queues struct {
	mu       sync.Mutex
	fault    error
	seen     map[string]bool
	messages []sent
}

type sent struct {
	queue string
	queue.Message
}

func (q *queues) Send(_ context.Context, name string, messages []queue.Message) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.fault != nil {
		return q.fault
	}
	for _, m := range messages {
		if m.ID == "" || len(m.ID) > 128 {
			return errors.New("a broker takes no message with the id " + m.ID)
		}
		if !q.seen[name+"/"+m.ID] {
			q.seen[name+"/"+m.ID] = true
			q.messages = append(q.messages, sent{name, m})
		}
	}
	return nil
}

func (q *queues) fail(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.fault = err
}

// in returns what a queue holds.
func (q *queues) in(name string) []queue.Message {
	q.mu.Lock()
	defer q.mu.Unlock()
	var messages []queue.Message
	for _, m := range q.messages {
		if m.queue == name {
			messages = append(messages, m.Message)
		}
	}
	return messages
}

// listener is that of a process: well, or with what is wrong with its loops and with its sweep.
type listener struct{ hung, silent error }

func (l listener) Live() error { return l.hung }

func (l listener) Listener() (triggers.ListenerFigures, error) {
	return triggers.ListenerFigures{
		Instance: "app/one", StartedAt: "2026-03-01T08:15:00.000Z", LastSweepAt: "2026-03-01T08:15:31.000Z", LastLatenessMs: 3,
		Sweeps: 700, Claimed: 2, Relayed: 4, OutboxDepth: 1, OldestOutboxMs: 12, Notifications: "on",
	}, l.silent
}

type parts map[string]health.Part

// Health has every part: those that the test names, and the others, which are well.
func (p parts) Health(context.Context) map[string]health.Part {
	all := map[string]health.Part{}
	for _, name := range []string{"redis", "listener", "queue", "eventLog", "worker", "clock", "process"} {
		all[name] = health.Part{}
	}
	maps.Copy(all, p)
	return all
}

type meter string

func (m meter) Metrics() []byte { return []byte(m) }

// until waits until done.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for !done() {
		select {
		case <-deadline:
			t.Fatalf("still waiting until %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}
