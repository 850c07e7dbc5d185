package triggers_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/queue"
	"userconnectivity/handler/sqlitestore"
	"userconnectivity/handler/triggers"
	"userconnectivity/handler/worker"
)

// memory is a live state that takes everything, and checks that only good input reaches it.
type memory struct{ t *testing.T }

func (m memory) checkID(what, id string) {
	if wrong := presence.CheckID(id); wrong != "" {
		m.t.Errorf("%s %q %s, but it got in", what, id, wrong)
	}
}

func (m memory) Heartbeats(_ context.Context, beats []presence.Beat) ([]presence.BeatOutcome, error) {
	outcomes := make([]presence.BeatOutcome, len(beats))
	for i, b := range beats {
		m.checkID("user", b.User)
		m.checkID("session", b.Session)
		for _, g := range b.Groups {
			m.checkID("group", g)
		}
		if *b.TTL < presence.MinTTL || *b.TTL > presence.MaxTTL || b.Grace < 0 || b.Grace > presence.MaxGrace || len(b.Groups) > presence.MaxGroups ||
			b.Seq != nil && (*b.Seq < 0 || *b.Seq > presence.MaxSeq) {
			m.t.Errorf("%+v got in", b)
		}
		if b.Meta != nil && (len(b.Meta) > presence.MaxMetaBytes || b.Meta[0] != '{' || !json.Valid(b.Meta) || bytes.ContainsAny(b.Meta, "\n\r")) {
			m.t.Errorf("meta %q got in", b.Meta)
		}
		outcomes[i] = presence.BeatOutcome{Change: presence.ChangeOnline, Status: presence.Online, Epoch: 1, ExpiresAt: time.Now()}
	}
	return outcomes, nil
}

func (m memory) Leaves(_ context.Context, leaves []presence.Leave) ([]presence.LeaveOutcome, error) {
	for _, l := range leaves {
		m.checkID("user", l.User)
		m.checkID("session", l.Session)
	}
	return make([]presence.LeaveOutcome, len(leaves)), nil
}

func (m memory) Users(_ context.Context, ids []string) ([]*presence.User, error) {
	for _, id := range ids {
		m.checkID("user", id)
	}
	return make([]*presence.User, len(ids)), nil
}

// fuzzed is the app with nothing real behind it but the event log.
func fuzzed(t *testing.T, records *sqlitestore.Store) (http.Handler, *queues) {
	tracker := presence.NewTracker(memory{t}, records, presence.DefaultTTL)
	sender := &queues{seen: map[string]bool{}}
	work := worker.New(records, records, sender, queue.Codec{Source: "/test", TypePrefix: "userconnectivity."}, queue.Destinations{Events: "events"}, maxDelivery, discard)
	return triggers.Routes(triggers.Handlers{
		Tracker: tracker, Events: records, Replayer: work, Worker: work, Listener: listener{}, Health: parts{}, Metrics: meter("1"),
		Beats: triggers.HeartbeatQueue{Tracker: tracker, Sender: sender}, Version: "test", Log: discard,
	}), sender
}

func openRecords(f *testing.F) *sqlitestore.Store {
	records := sqlitestore.New(filepath.Join(f.TempDir(), "events.db"))
	f.Cleanup(func() { _ = records.Close() })
	return records
}

// judge wants an answer that is not our fault, and a problem where it is the caller's.
func judge(t *testing.T, w *httptest.ResponseRecorder) {
	t.Helper()
	if w.Code >= 500 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if w.Code == http.StatusNoContent {
		return
	}
	if !json.Valid(w.Body.Bytes()) {
		t.Fatalf("%d %q is not JSON", w.Code, w.Body)
	}
	if ct := w.Header().Get("Content-Type"); w.Code >= 400 && ct != "application/problem+json" {
		t.Fatalf("%d with content type %q", w.Code, ct)
	}
}

func FuzzHeartbeat(f *testing.F) {
	for _, seed := range []string{
		"", "{}", "null", `{"user":"ann"}`, `{"user":"ann","session":"s","ttlSeconds":45,"graceSeconds":5,"groups":["a","b"],"meta":{"a":[1,{}]},"seq":7}`,
		`{"user":"ann","user":"bob"}`, `{"user":"a\u0000"}`, `{"user":"ann","ttlSeconds":1e9}`, `{"user":"ann","meta":{"a":1,"a":2}}`, "{\"user\":\"\xff\"}", `{"user":"ann"} {}`, "\ufeff{}",
	} {
		f.Add(seed)
	}
	records := openRecords(f)
	f.Fuzz(func(t *testing.T, body string) {
		routes, _ := fuzzed(t, records)
		for _, path := range []string{"/api/heartbeat", "/api/leave"} {
			judge(t, serve(routes, "POST", path, body))
		}
	})
}

func FuzzHeartbeats(f *testing.F) {
	for _, seed := range []string{
		"", `{"heartbeats":[]}`, `{"heartbeats":[{"user":"ann"},{"user":""},7,null,{"user":"ann","x":1}]}`, `{"heartbeats":{}}`, `{"heartbeats":[[[[]]]]}`,
		`{"leaves":[{"user":"ann"},{"seq":-1}]}`, `{"users":["ann","a b",null]}`,
	} {
		f.Add(seed)
	}
	records := openRecords(f)
	f.Fuzz(func(t *testing.T, body string) {
		routes, _ := fuzzed(t, records)
		w := serve(routes, "POST", "/api/heartbeats", body)
		judge(t, w)
		if w.Code == 200 {
			var in struct{ Heartbeats []json.RawMessage }
			var out bulk
			if json.Unmarshal([]byte(body), &in) != nil || json.Unmarshal(w.Body.Bytes(), &out) != nil {
				t.Fatalf("%q was answered %s", body, w.Body)
			}
			if out.Accepted+out.Deferred+out.Stale+len(out.Rejected) != len(in.Heartbeats) {
				t.Errorf("%d heartbeats in, %+v", len(in.Heartbeats), out)
			}
		}
		judge(t, serve(routes, "POST", "/api/leaves", body))
		judge(t, serve(routes, "POST", "/api/users/query", body))
	})
}

// FuzzPaths puts text where an id is in a path.
func FuzzPaths(f *testing.F) {
	for _, seed := range []string{
		"ann", "a%3Ab", "a%2Fb", "a%252Fb", "%2e%2E", ".", "..", "", "/", "a/../b", "%", "%zz", "%00", "%ff", "é", "a;b", "a?b#c", "query", "events", strings.Repeat("x", 200),
		"ABCDEFGHIJKLM-ABCDEFGHIJKLMNOP", "ABCDEFGHIJKLM-ABCDEFGHIJKLMNOP:r1",
	} {
		f.Add(seed)
	}
	records := openRecords(f)
	f.Fuzz(func(t *testing.T, id string) {
		routes, _ := fuzzed(t, records)
		for _, route := range []string{"GET /api/users/*", "GET /api/users/*/events", "DELETE /api/users/ann/sessions/*", "DELETE /api/users/*/sessions/*", "GET /api/events/*", "POST /api/events/*/replay", "GET /*", "POST /*"} {
			method, path, _ := strings.Cut(route, " ")
			u, err := url.ParseRequestURI(strings.ReplaceAll(path, "*", id))
			if err != nil {
				continue // net/http would refuse it
			}
			r := httptest.NewRequest(method, "/", nil)
			r.URL, r.RequestURI = u, u.RequestURI()
			w := httptest.NewRecorder()
			routes.ServeHTTP(w, r)
			judge(t, w)
		}
	})
}

// FuzzPaging puts text into the query of a paged list.
func FuzzPaging(f *testing.F) {
	records := openRecords(f)
	var updates []eventlog.Update
	for epoch := range int64(3) {
		id := presence.EventID("ann", "s", presence.UserOnline, epoch)
		updates = append(updates, eventlog.Update{
			Event: presence.Event{ID: id, Type: presence.UserOnline, Subject: presence.Subject{User: "ann", Session: "s"}, Body: presence.Body{Epoch: 1 + epoch, Reason: presence.ReasonBeat, DetectedAt: time.Now()}},
			Steps: []eventlog.Step{{Status: eventlog.Detected, At: time.Now()}},
		})
	}
	if err := records.Write(context.Background(), updates); err != nil {
		f.Fatal(err)
	}
	page, err := records.UserEvents(context.Background(), "ann", 1, "")
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{
		"limit=1&continuation=" + page.Continuation, "continuation=" + eventlog.Continuation("ann", "7 x"), "continuation=" + eventlog.Continuation("ann", "-9223372036854775809"),
		"continuation=1", "limit=0", "limit=100", "limit=%31", "limit=+1", "%", "a;b", "limit=5&limit=6", "continuation=%00",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, query string) {
		routes, _ := fuzzed(t, records)
		r := httptest.NewRequest("GET", "/api/users/ann/events", nil)
		r.URL.RawQuery = query
		w := httptest.NewRecorder()
		routes.ServeHTTP(w, r)
		judge(t, w)
		if w.Code != 200 && w.Code != 400 {
			t.Errorf("%q: %d", query, w.Code)
		}
	})
}

// FuzzEnvelope puts anything where the host puts an invocation.
func FuzzEnvelope(f *testing.F) {
	files, err := filepath.Glob("testdata/invocations/*.json")
	if err != nil || len(files) == 0 {
		f.Fatalf("%d seeds, %v", len(files), err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	for _, seed := range []string{"", "null", "{}", `{"Data":{"messages":["a",{}]}}`, `{"Data":{"messages":"[\"{}\"]"},"Metadata":{"DeliveryCountArray":"[9]"}}`, envelope(delivered{Body: `[{"user":"ann"}]`, ID: "m"})} {
		f.Add(seed)
	}
	records := openRecords(f)
	f.Fuzz(func(t *testing.T, body string) {
		routes, _ := fuzzed(t, records)
		for _, function := range []string{"HeartbeatMessages", "HeartbeatDeadLetters", "ConnectivityWorker", "DeadLetters"} {
			w := serve(routes, "POST", "/"+function, body)
			judge(t, w)
			if w.Code < 300 && hostOutcome(w.Code, w.Header().Get("Content-Type"), w.Body.Bytes()) != "succeeded" {
				t.Errorf("%s: the host would not take %d %s", function, w.Code, w.Body)
			}
		}
	})
}

// FuzzMessageBody puts anything into a message: it is applied or put aside, and never fails its batch.
func FuzzMessageBody(f *testing.F) {
	for _, seed := range []string{"", "text", `{"user":"ann"}`, `[{"user":"ann"},{"user":""},7]`, " [", `{"specversion":"1.0","id":"x","type":"userconnectivity.user.online","source":"/x","data":{}}`, "{\"user\":\"ann\"}\n[{\"user\":\"bob\"}]", `{"heartbeats":["{\"user\":\"ann\"}"]}`, `{"systemProperties":{},"body":"e30="}`} {
		f.Add(seed)
	}
	records := openRecords(f)
	f.Fuzz(func(t *testing.T, body string) {
		routes, sender := fuzzed(t, records)
		for _, function := range []string{"HeartbeatMessages", "HeartbeatDeadLetters", "ConnectivityWorker", "DeadLetters"} {
			w := serve(routes, "POST", "/"+function, envelope(delivered{Body: body, ID: "m"}))
			if hostOutcome(w.Code, w.Header().Get("Content-Type"), w.Body.Bytes()) != "succeeded" {
				t.Errorf("%s: %d %s", function, w.Code, w.Body)
			}
		}
		for _, m := range sender.messages {
			if reason, _ := m.Properties["reason"].(string); reason == "" {
				t.Errorf("rejected without a reason: %+v", m)
			}
		}
	})
}
