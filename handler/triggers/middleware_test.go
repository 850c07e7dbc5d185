package triggers_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/fault"
	"userconnectivity/handler/health"
	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/triggers"
	"userconnectivity/handler/worker"
)

// tracker is what Handlers.Tracker takes.
type tracker interface {
	Heartbeat(context.Context, presence.Beat) (presence.Receipt, error)
	Heartbeats(context.Context, []presence.Beat) (presence.BulkReceipt, error)
	Leave(context.Context, presence.Leave) (presence.LeaveOutcome, error)
	Leaves(context.Context, []presence.Leave) (presence.LeavesReceipt, error)
	User(context.Context, string) (presence.User, error)
	Users(context.Context, []string) ([]presence.User, error)
}

// failing is a core whose every call ends in what fail does.
type failing struct {
	fail func(ctx context.Context) error
}

func (f failing) Heartbeat(ctx context.Context, _ presence.Beat) (presence.Receipt, error) {
	return presence.Receipt{}, f.fail(ctx)
}

func (f failing) Heartbeats(ctx context.Context, _ []presence.Beat) (presence.BulkReceipt, error) {
	return presence.BulkReceipt{BeatAfter: time.Second}, f.fail(ctx)
}

func (f failing) Leave(ctx context.Context, _ presence.Leave) (presence.LeaveOutcome, error) {
	return presence.Left, f.fail(ctx)
}

func (f failing) Leaves(ctx context.Context, _ []presence.Leave) (presence.LeavesReceipt, error) {
	return presence.LeavesReceipt{}, f.fail(ctx)
}

func (f failing) User(ctx context.Context, _ string) (presence.User, error) {
	return presence.User{}, f.fail(ctx)
}

func (f failing) Users(ctx context.Context, _ []string) ([]presence.User, error) {
	return nil, f.fail(ctx)
}

func (f failing) Event(ctx context.Context, _ string) (eventlog.Record, error) {
	return eventlog.Record{}, f.fail(ctx)
}

func (f failing) UserEvents(ctx context.Context, _ string, _ int, _ string) (eventlog.Page, error) {
	return eventlog.Page{}, f.fail(ctx)
}
func (f failing) Replay(ctx context.Context, _ string) error                 { return f.fail(ctx) }
func (f failing) Process(ctx context.Context, _ []worker.Delivery) error     { return f.fail(ctx) }
func (f failing) DeadLetters(ctx context.Context, _ []worker.Delivery) error { return f.fail(ctx) }
func (f failing) Live() error                                                { return f.fail(context.Background()) }

func (f failing) Listener() (triggers.ListenerFigures, error) {
	return triggers.ListenerFigures{}, f.fail(context.Background())
}

func (f failing) Health(ctx context.Context) map[string]health.Part {
	_ = f.fail(ctx)
	return parts{}.Health(ctx)
}

func (f failing) Metrics() []byte {
	_ = f.fail(context.Background())
	return []byte("up 1\n")
}

var _ tracker = failing{}

// withFailing puts fail behind every function.
func withFailing(fail func(context.Context) error) func(*triggers.Handlers) {
	f := failing{fail}
	return func(h *triggers.Handlers) {
		h.Tracker, h.Events, h.Replayer, h.Worker, h.Health, h.Metrics = f, f, f, f, f, f
		h.Beats.Tracker = f
	}
}

// calls is a good call of every function over HTTP that does something.
func calls() map[string]call {
	id := presence.EventID("ann", "s", presence.UserOnline, 1)
	return map[string]call{
		"Heartbeat":  {method: "POST", path: "/api/heartbeat", body: object{"user": "ann"}},
		"Heartbeats": {method: "POST", path: "/api/heartbeats", body: object{"heartbeats": []object{{"user": "ann"}}}},
		"Leave":      {method: "POST", path: "/api/leave", body: object{"user": "ann"}},
		"Leaves":     {method: "POST", path: "/api/leaves", body: object{"leaves": []object{{"user": "ann"}}}},
		"EndSession": {method: "DELETE", path: "/api/users/ann/sessions/s"},
		"User":       {method: "GET", path: "/api/users/ann"},
		"UsersQuery": {method: "POST", path: "/api/users/query", body: object{"users": []string{"ann"}}},
		"UserEvents": {method: "GET", path: "/api/users/ann/events"},
		"Event":      {method: "GET", path: "/api/events/" + id},
		"Replay":     {method: "POST", path: "/api/events/" + id + "/replay"},
	}
}

// invocations is a good call of every function that gets envelopes.
func invocations(t *testing.T) map[string]string {
	return map[string]string{
		"HeartbeatMessages":  envelope(delivered{Body: `{"user":"ann"}`, ID: "m"}),
		"ConnectivityWorker": envelope(delivered{Body: "x", ID: "m"}),
		"DeadLetters":        envelope(delivered{Body: "x", ID: "m"}),
	}
}

// TestPanicsEndTheirRequestOnly: the process goes on, the caller gets 500, and one log line tells why.
func TestPanicsEndTheirRequestOnly(t *testing.T) {
	t.Parallel()
	b := setup(t, withFailing(func(context.Context) error { panic("a fault with a secret") }))
	for name, c := range calls() {
		c.header = http.Header{"X-Azure-Functions-Invocationid": {"of-" + name}}
		a := b.do(c)
		a.is(500)
		if strings.Contains(string(a.Body), "secret") {
			t.Errorf("%s shows what happened inside: %s", name, a.Body)
		}
		line := b.logged(t, "of-"+name)
		if line["msg"] != "request panicked" || line["panic"] != "a fault with a secret" || !strings.Contains(fmt.Sprint(line["stack"]), "goroutine") {
			t.Errorf("%s logged %v", name, line)
		}
		if route := fmt.Sprint(line["route"]); strings.Contains(route, "ann") || !strings.HasPrefix(route, "/api/") {
			t.Errorf("%s logged the route %s, want it without ids", name, route)
		}
	}
	b.get("/api/health").is(500)
	for name, body := range invocations(t) {
		if name == "HeartbeatMessages" { // it knows which beat it was: that one is put aside, and its batch goes on
			b.succeeds(name, delivered{Body: `{"user":"ann"}`, ID: "m"})
			continue
		}
		if outcome, a := b.invoke(name, body); outcome != "failed" || a.Status != 500 {
			t.Errorf("%s: %s %d", name, outcome, a.Status)
		}
	}
	if got := b.rejectedItems(); len(got) != 1 || !strings.Contains(fmt.Sprint(got["m/0"].Properties["reason"]), "panicked") {
		t.Errorf("rejected %+v", got)
	}
	b.get("/api/live").is(200)
}

// about returns the only line of an invocation.
func (b *bench) logged(t *testing.T, invocation string) object {
	t.Helper()
	var found []object
	for line := range strings.Lines(b.log.String()) {
		var o object
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		if o["invocation_id"] == invocation {
			found = append(found, o)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d lines about %s, want one", len(found), invocation)
	}
	return found[0]
}

// TestAbortedAnswer: net/http's own way to drop a connection is left to it.
func TestAbortedAnswer(t *testing.T) {
	t.Parallel()
	b := setup(t, withFailing(func(context.Context) error { panic(http.ErrAbortHandler) }))
	response, err := b.server.Client().Get(b.server.URL + "/api/users/ann")
	if err == nil {
		response.Body.Close()
		t.Errorf("answered %s", response.Status)
	}
	b.get("/api/live").is(200)
}

// TestFaultsAndTheirStatus: what only we can mend is 500 and logged, what passes is 503 with Retry-After.
func TestFaultsAndTheirStatus(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name       string
		err        error
		status     int
		retryAfter string
	}{
		{"foreign", errors.New("driver: password wrong"), 500, ""},
		{"internal", &fault.Error{Kind: fault.Internal, Message: "we are at fault"}, 500, ""},
		{"unavailable", fmt.Errorf("apply: %w", &fault.Error{Kind: fault.Unavailable, Message: "try again", Err: errors.New("driver: password wrong")}), 503, "1"},
		{"unavailable_for_long", &fault.Error{Kind: fault.Unavailable, Message: "try again", RetryAfter: 12400 * time.Millisecond}, 503, "12"},
		{"event_log_down", fmt.Errorf("read: %w", eventlog.ErrUnavailable), 503, "1"},
		{"out_of_time", fmt.Errorf("read: %w", context.DeadlineExceeded), 503, "1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, impatient, withFailing(func(context.Context) error { return tt.err }))
			for name, c := range calls() {
				c.header = http.Header{"X-Azure-Functions-Invocationid": {"of-" + name}}
				a := b.do(c)
				a.is(tt.status)
				if got := a.Header.Get("Retry-After"); got != tt.retryAfter {
					t.Errorf("%s: Retry-After %q, want %q", name, got, tt.retryAfter)
				}
				if strings.Contains(string(a.Body), "password") {
					t.Errorf("%s shows the cause: %s", name, a.Body)
				}
				want := "ERROR"
				if tt.status == 503 {
					want = "WARN"
				}
				if line := b.logged(t, "of-"+name); line["level"] != want || line["error"] != tt.err.Error() {
					t.Errorf("%s logged %v", name, line)
				}
			}
			for _, name := range []string{"ConnectivityWorker", "DeadLetters", "HeartbeatMessages"} {
				if outcome, a := b.invoke(name, invocations(t)[name]); outcome != "failed" || a.Status != tt.status && name != "HeartbeatMessages" {
					t.Errorf("%s: %s %d %s", name, outcome, a.Status, a.Body)
				}
			}
		})
	}
}

// TestEveryRequestHasADeadline: the host does not cancel what its caller has given up.
func TestEveryRequestHasADeadline(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var left []time.Duration
	kind := fault.Unavailable
	b := setup(t, withFailing(func(ctx context.Context) error {
		deadline, ok := ctx.Deadline()
		if !ok {
			return errors.New("no deadline")
		}
		mu.Lock()
		defer mu.Unlock()
		left = append(left, time.Until(deadline))
		return &fault.Error{Kind: kind, Message: "measured"}
	}))
	for _, c := range calls() {
		b.do(c).is(503)
	}
	for _, d := range left {
		if d > 10*time.Second {
			t.Errorf("a request has %s, want at most 10 s", d)
		}
	}
	if len(left) != len(calls()) {
		t.Errorf("%d of %d calls were made", len(left), len(calls()))
	}
	left, kind = nil, fault.Invalid // a batch waits for one that passes
	for _, name := range []string{"ConnectivityWorker", "DeadLetters", "HeartbeatMessages"} {
		b.invoke(name, invocations(t)[name])
	}
	for _, d := range left {
		if d > 150*time.Second {
			t.Errorf("a batch has %s, want at most half of the lock of 5 minutes", d)
		}
	}
	if len(left) != 3 {
		t.Errorf("%d batches had a deadline", len(left))
	}
}

// TestBusy: all places of the bulk calls taken is 503 at once, for bulk calls alone.
func TestBusy(t *testing.T) {
	t.Parallel()
	const places = 32
	inside, finish := make(chan struct{}, places), make(chan struct{})
	b := setup(t, withFailing(func(ctx context.Context) error {
		inside <- struct{}{}
		select {
		case <-finish:
		case <-ctx.Done():
		}
		return nil
	}))
	bulks := []call{calls()["Heartbeats"], calls()["Leaves"], calls()["UsersQuery"]}
	var wg sync.WaitGroup
	for i := range places {
		wg.Go(func() { b.do(bulks[i%len(bulks)]) })
	}
	for range places {
		<-inside
	}
	for _, c := range bulks {
		a := b.do(c)
		a.is(503)
		if !strings.Contains(string(a.Body), "32") {
			t.Errorf("%s does not name the limit", a.Body)
		}
	}
	b.get("/api/live").is(200)
	wg.Go(func() { b.do(calls()["Leave"]).is(204) })
	<-inside // a single call gets in
	close(finish)
	wg.Wait()
	b.do(bulks[1]).is(204)
}

// TestRedisDown: every call that needs the state is 503 with Retry-After while Redis is away, and works after.
func TestRedisDown(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t)
	b := &bench{t: t, prefix: "uc:"}
	b.open(server.URL(), impatient)
	b.do(calls()["Heartbeat"]).is(200)
	b.succeeds("ConnectivityWorker", b.relay()...)
	if u := b.user("ann"); u.Stale || len(u.Sessions) != 1 {
		t.Errorf("while Redis is there: %+v", u)
	}
	server.Stop()
	var wg sync.WaitGroup
	for _, name := range []string{"Heartbeat", "Heartbeats", "Leave", "Leaves", "EndSession"} {
		wg.Go(func() {
			if a := b.do(calls()[name]); a.Status != 503 || a.Header.Get("Retry-After") == "" {
				t.Errorf("%s: %d %v %s", name, a.Status, a.Header, a.Body)
			}
		})
	}
	wg.Go(func() {
		if s := b.query("ann", "nobody"); !s[0].Stale || s[0].Status != "online" || !s[1].Stale || s[1].Status != "unknown" {
			t.Errorf("what was last known: %+v", s)
		}
	})
	wg.Go(func() {
		if a := b.get("/api/users/nobody"); a.Status != 503 || a.Header.Get("Retry-After") == "" {
			t.Errorf("a user of whom nothing is known: %d %s", a.Status, a.Body)
		}
	})
	wg.Go(func() {
		if u := b.user("ann"); !u.Stale || u.Status != "online" || u.Epoch == nil || len(u.Sessions) != 0 {
			t.Errorf("what was last known: %+v", u)
		}
	})
	wg.Wait()
	b.get("/api/live").is(200)
	b.get("/api/users/ann/events").is(200)
	b.fails("HeartbeatMessages", delivered{Body: `{"user":"ann"}`, ID: "m"})
	if err := server.Run(); err != nil {
		t.Fatal(err)
	}
	until(t, "a beat gets in again", func() bool { return b.do(calls()["Heartbeat"]).Status == 200 })
}
