package triggers_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/triggers"
)

// TestHead: HEAD is answered wherever GET is, as GET is, without the body.
func TestHead(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.beat(object{"user": "ann"})
	b.relay()
	id := b.events("/api/users/ann/events").Events[0].ID
	for path, status := range map[string]int{
		"/api/live": 200, "/api/health": 200, "/api/metrics": 200, "/api/openapi.json": 200, "/api/users/ann": 200, "/api/users/a%20b": 400,
		"/api/users/ann/events": 200, "/api/users/ann/events?limit=": 400, "/api/events/" + id: 200, "/api/events/x": 404, "/": 204,
	} {
		got, want := b.method("HEAD", path, status), b.method("GET", path, status)
		for _, name := range []string{"Content-Type", "Content-Length"} {
			if got.Get(name) != want.Get(name) {
				t.Errorf("%s: %s %q, GET has %q", path, name, got.Get(name), want.Get(name))
			}
		}
	}
}

// TestRoutesInAnyCase: the host does not count the case of a route, so the handler does not either. Ids keep theirs.
func TestRoutesInAnyCase(t *testing.T) {
	t.Parallel()
	b := setup(t)
	post := func(path, body string, status int) {
		t.Helper()
		if w := serve(b.routes, "POST", path, body); w.Code != status {
			t.Errorf("%s: %d %s, want %d", path, w.Code, w.Body, status)
		}
	}
	post("/API/Heartbeat", `{"user":"Ann"}`, 200)
	post("/api/HEARTBEATS", `{"heartbeats":[{"user":"Ann","session":"Tab:1"},{"user":"Users"}]}`, 200)
	post("/Api/users/Query", `{"users":["Ann"]}`, 200)
	post("/api/Leaves", `{"leaves":[{"user":"nobody"}]}`, 204)
	b.method("GET", "/Api/Live", 200)
	b.method("HEAD", "/api/OpenApi.JSON", 200)
	for path, want := range map[string]string{
		"/API/USERS/Ann": "Ann online", "/api/Users/ann": "ann offline", "/api/USERS/Users": "Users online", "/api/users/%41nn": "Ann online", "/api/Users/Ann?CODE=x": "Ann online",
	} {
		var u struct{ User, Status string }
		if err := json.Unmarshal(serve(b.routes, "GET", path, "").Body.Bytes(), &u); err != nil || u.User+" "+u.Status != want {
			t.Errorf("%s: %+v, %v, want %s", path, u, err, want)
		}
	}
	b.method("DELETE", "/api/users/Ann/Sessions/Tab:1", 204)
	b.method("DELETE", "/api/USERS/Ann/sessions/default", 204)
	if u := b.user("Ann"); u.Status != "offline" {
		t.Errorf("%+v", u)
	}
	b.relay()
	id := b.events("/api/users/Ann/events").Events[0].ID
	b.method("GET", "/API/Users/Ann/EVENTS", 200)
	b.method("GET", "/api/Events/"+id, 200)
	b.method("POST", "/api/events/"+id+"/Replay", 202)
	b.method("GET", "/api/Events/"+strings.ToLower(id), 404)
	b.method("GET", "/api/Heartbeat", 405)
}

// TestAnswersNameTheInvocation: what the text of an error names is in the answer.
func TestAnswersNameTheInvocation(t *testing.T) {
	t.Parallel()
	const id = "11111111-2222-4333-8444-555555555555"
	fault := errors.New("broken")
	broken := setup(t, withFailing(func(context.Context) error { return fault }))
	panicking := setup(t, withFailing(func(context.Context) error { panic("broken") }))
	for _, tt := range []struct {
		bench          *bench
		call           call
		sent, instance string
		status         int
	}{
		{broken, calls()["User"], id, id, 500},
		{panicking, calls()["User"], id, id, 500},
		{broken, call{method: "POST", path: "/api/heartbeat", body: "{", loose: true}, id, id, 400},
		{broken, call{method: "GET", path: "/api/nothing"}, id, id, 404},
		{broken, call{method: "GET", path: "/api/heartbeat"}, id, id, 405},
		{broken, call{method: "GET", path: "/api/live"}, id, "", 200},
		{broken, calls()["User"], "", "", 500},
		{broken, calls()["User"], "not an id of the host's", "", 500},
		{broken, calls()["User"], "{11111111-2222-4333-8444-5555555555", "", 500},
	} {
		if tt.sent != "" {
			tt.call.header = http.Header{"X-Azure-Functions-Invocationid": {tt.sent}}
		}
		a := tt.bench.do(tt.call)
		a.is(tt.status)
		var p struct{ Instance string }
		if err := json.Unmarshal(a.Body, &p); err != nil || p.Instance != tt.instance || a.Header.Get("X-Azure-Functions-InvocationId") != tt.sent {
			t.Errorf("%s with %q: %v %s", a.call, tt.sent, a.Header, a.Body)
		}
	}
	if line := panicking.logged(t, id); line["msg"] != "request panicked" {
		t.Errorf("%v", line)
	}
}

// seen keeps what an observer is told.
type seen struct {
	mu    sync.Mutex
	lines []string
}

func (s *seen) Observe(route, method string, status int, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if took < 0 {
		route += " took less than nothing"
	}
	s.lines = append(s.lines, fmt.Sprint(method, " ", route, " ", status))
}

// TestEveryAnswerIsObserved: by routes and methods that are few, whatever is asked.
func TestEveryAnswerIsObserved(t *testing.T) {
	t.Parallel()
	s := &seen{}
	b := setup(t, func(h *triggers.Handlers) { h.Observer = s })
	b.beat(object{"user": "ann"})
	b.do(call{method: "POST", path: "/API/Heartbeat", body: "{"})
	b.get("/api/users/ann")
	b.method("HEAD", "/api/users/bob", 200)
	b.delete("/api/users/ann/sessions/default").is(204)
	b.get("/api/events/" + presence.EventID("x", "x", presence.UserOnline, 1)).is(404)
	b.get("/api/nothing/" + strings.Repeat("x", 100))
	b.do(call{method: "BREW", path: "/api/live"})
	b.do(call{method: "POST", path: "/api/heartbeat", body: strings.Repeat(" ", 20_000), loose: true})
	b.succeeds("HeartbeatMessages", delivered{Body: `{"user":"ann"}`, ID: "m"})
	failing := setup(t, withFailing(func(context.Context) error { panic("broken") }), func(h *triggers.Handlers) { h.Observer = s })
	failing.get("/api/users/ann").is(500)
	want := []string{
		"POST /api/heartbeat 200", "POST /api/heartbeat 400", "GET /api/users/{user} 200", "HEAD /api/users/{user} 200",
		"DELETE /api/users/{user}/sessions/{session} 204", "GET /api/events/{id} 404", "GET unknown 404", "other unknown 405",
		"POST /api/heartbeat 413", "POST /HeartbeatMessages 200", "GET /api/users/{user} 500",
	}
	until(t, "all are told of", func() bool { // it is told once the answer is sent
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.lines) >= len(want)
	})
	if !slices.Equal(s.lines, want) {
		t.Errorf("observed\n%s\nwant\n%s", strings.Join(s.lines, "\n"), strings.Join(want, "\n"))
	}
}

// TestUsersWhileTheStateIsAway: what cannot be known is not called offline.
func TestUsersWhileTheStateIsAway(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.beat(object{"user": "ann"})
	b.succeeds("ConnectivityWorker", b.relay()...)
	away := setup(t, func(h *triggers.Handlers) {
		h.Tracker = presence.NewTracker(gone{}, b.records, presence.DefaultTTL)
	})
	if u := away.user("ann"); u.Status != "online" || !u.Stale {
		t.Errorf("a user who was stored: %+v", u)
	}
	if a := away.get("/api/users/nobody"); a.Status != 503 || a.Header.Get("Retry-After") != "7" || strings.Contains(string(a.Body), "offline") {
		t.Errorf("one of whom nothing was stored: %d %v %s", a.Status, a.Header, a.Body)
	}
	if s := away.query("nobody", "ann"); s[0].Status != "unknown" || !s[0].Stale || s[1].Status != "online" || !s[1].Stale {
		t.Errorf("both: %+v", s)
	}
}

// gone is a live state that cannot be reached.
type gone struct{}

var errGone = &fault.Error{Kind: fault.Unavailable, Message: "Redis cannot be reached", RetryAfter: 7 * time.Second}

func (gone) Heartbeats(context.Context, []presence.Beat) ([]presence.BeatOutcome, error) {
	return nil, errGone
}

func (gone) Leaves(context.Context, []presence.Leave) ([]presence.LeaveOutcome, error) {
	return nil, errGone
}
func (gone) Users(context.Context, []string) ([]*presence.User, error) { return nil, errGone }
