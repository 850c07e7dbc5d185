package triggers_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"userconnectivity/handler/presence"
)

// receipt is the answer to a heartbeat.
type receipt struct {
	User, Session, Status, Change string
	Epoch                         *int64
	ExpiresAt                     *string
	BeatAfterSeconds              int
	Seq                           *int64
}

type object = map[string]any

func (b *bench) beat(body any) receipt {
	b.t.Helper()
	var r receipt
	b.post("/api/heartbeat", body).into(200, &r)
	return r
}

// paced reports whether the next beat is asked for within a third and half of the ttl, as the load has it.
func paced(beatAfter, ttl int) bool { return beatAfter >= ttl/3 && beatAfter <= ttl/2 }

// due is when the session ends.
func (r receipt) due(t *testing.T) time.Time {
	t.Helper()
	if r.ExpiresAt == nil {
		t.Fatalf("%+v has no deadline", r)
	}
	at, err := time.Parse(presence.TimeFormat, *r.ExpiresAt)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func TestHeartbeatOfASession(t *testing.T) {
	t.Parallel()
	b := setup(t)
	begin := time.Now()
	first := b.beat(object{"user": "ann"})
	if first.User != "ann" || first.Session != "default" || first.Status != "online" || first.Change != "online" ||
		first.Epoch == nil || !paced(first.BeatAfterSeconds, 45) || first.Seq != nil {
		t.Fatalf("first beat: %+v", first)
	}
	started := time.UnixMilli(*first.Epoch)
	if ttl := first.due(t).Sub(started); ttl < 44*time.Second || ttl > 46*time.Second {
		t.Errorf("held online for %s, want the default of 45 s", ttl)
	}
	b.pass(10 * time.Second)
	second := b.beat(object{"user": "ann", "ttlSeconds": 90, "graceSeconds": 30})
	if second.Change != "renewed" || *second.Epoch != *first.Epoch || !paced(second.BeatAfterSeconds, 90) {
		t.Errorf("second beat: %+v", second)
	}
	took := time.Since(begin) + time.Second
	if held := second.due(t).Sub(started); held < 130*time.Second || held > 130*time.Second+took {
		t.Errorf("held online for %s after 10 s and at most %s, want 10 + 90 + 30 s", held, took)
	}
	third := b.beat(object{"user": "ann", "session": "laptop"})
	if third.Change != "started" || *third.Epoch <= *first.Epoch || third.Session != "laptop" {
		t.Errorf("further session: %+v", third)
	}
}

func TestHeartbeatTakesEveryBound(t *testing.T) {
	t.Parallel()
	b := setup(t)
	groups := make([]string, 16)
	for i := range groups {
		groups[i] = fmt.Sprint("group-", i)
	}
	meta := object{"text": strings.Repeat("x", 1024-len(`{"text":""}`))}
	b.beat(object{
		"user": strings.Repeat("u", 128), "session": "AZaz09._~:@|+=-", "ttlSeconds": 3600, "graceSeconds": 600,
		"groups": groups, "meta": meta, "seq": 1<<53 - 1,
	})
	b.beat(object{"user": "...", "ttlSeconds": 5, "graceSeconds": 0, "groups": []string{}, "meta": object{}, "seq": 0})
	b.beat(object{"user": "nulls", "session": nil, "ttlSeconds": nil, "graceSeconds": nil, "groups": nil, "meta": nil, "seq": nil})
	b.beat(`{"user":"spaces" , "meta" : { "a" : [ 1 , {} ] , "é\u0000" : "\ud83d\ude00" } } ` + "\n")
	for _, ct := range []string{"application/json; charset=UTF-8", `application/json;charset="utf-8"`, "Application/JSON", "application/json; charset=us-ascii; x=y"} {
		b.do(call{method: "POST", path: "/api/heartbeat", body: `{"user":"types"}`, header: http.Header{"Content-Type": {ct}}}).is(200)
	}
	// An array and an object within the meta object are the levels 31 and 32.
	b.beat(`{"user":"deep","meta":` + strings.Repeat(`{"]\\":`, 30) + "[{}]" + strings.Repeat("}", 30) + "}")
	b.beat(`{"user":"numbers","meta":{"n":[9007199254740991,-9007199254740991,1.7976931348623157e308,5e-324,-0,-0.0,0e-999,1E+2,0.1234567890123456789012345]}}`)
	for path, body := range map[string]string{"/api/heartbeat": `{"user":"marked"}`, "/api/heartbeats": `{"heartbeats":[{"user":"marked"}]}`} {
		b.do(call{method: "POST", path: path, body: "\ufeff" + body, loose: true}).is(200) // the checker of the contract takes no mark
	}
}

// TestWholeNumbersHoweverWritten: JSON has one type of numbers, and its readers and writers know no other difference.
func TestWholeNumbersHoweverWritten(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, text := range []string{"45", "45.0", "45.000", "4.5e1", "450e-1", "0.45E+2", "4500000000000000000000e-20", "0.00045e5"} {
		r := b.beat(`{"user":"ann","ttlSeconds":` + text + `,"graceSeconds":` + text + `}`)
		if !paced(r.BeatAfterSeconds, 45) {
			t.Errorf("ttl %s: beat after %d s", text, r.BeatAfterSeconds)
		}
	}
	b.beat(`{"user":"seq","seq":9.007199254740990e15,"graceSeconds":-0.0}`)
	if r := b.beat(`{"user":"seq","seq":9007199254740990.0}`); r.Change != "stale" || *r.Seq != 9007199254740990 {
		t.Errorf("the same seq, written otherwise: %+v", r)
	}
	b.post("/api/leave", `{"user":"seq","seq":9007199254740991.0}`).is(204)
	if u := b.user("seq"); u.Status != "offline" {
		t.Errorf("after the leave: %+v", u)
	}
	b.succeeds("HeartbeatMessages", delivered{Body: `[{"user":"queued","ttlSeconds":45.0,"graceSeconds":1e1}]`, ID: "m1"}, delivered{Body: "\ufeff" + `{"user":"queued-too","seq":7.0}`, ID: "m2"})
	for _, user := range []string{"queued", "queued-too"} {
		if u := b.user(user); u.Status != "online" {
			t.Errorf("%+v", u)
		}
	}
}

func TestGroupsAndMetaAreKeptOrCleared(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.beat(object{"user": "ann", "groups": []string{"north", "team:7"}, "meta": object{"v": 1}})
	for _, tt := range []struct {
		name         string
		beat         object
		groups, meta string
	}{
		{"omitted keeps", object{}, "[north team:7]", `{"v":1}`},
		{"null keeps", object{"groups": nil, "meta": nil}, "[north team:7]", `{"v":1}`},
		{"a value replaces", object{"groups": []string{"south"}, "meta": object{"w": []int{2}}}, "[south]", `{"w":[2]}`},
		{"empty clears", object{"groups": []string{}, "meta": object{}}, "[]", "null"},
	} {
		tt.beat["user"] = "ann"
		b.beat(tt.beat)
		u := b.user("ann")
		if got := fmt.Sprint(u.Groups); got != tt.groups {
			t.Errorf("%s: groups %s, want %s", tt.name, got, tt.groups)
		}
		if got := string(u.Sessions[0].Meta); got != tt.meta {
			t.Errorf("%s: meta %s, want %s", tt.name, got, tt.meta)
		}
	}
}

func TestStaleHeartbeat(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := b.beat(object{"user": "ann", "seq": 7})
	for _, seq := range []int{7, 6, 0} {
		stale := b.beat(object{"user": "ann", "seq": seq, "meta": object{"late": true}})
		if stale.Change != "stale" || stale.Status != "online" || stale.Seq == nil || *stale.Seq != 7 ||
			*stale.Epoch != *first.Epoch || *stale.ExpiresAt != *first.ExpiresAt {
			t.Errorf("seq %d: %+v", seq, stale)
		}
	}
	if got := b.beat(object{"user": "ann", "seq": 8}); got.Change != "renewed" || got.Seq != nil {
		t.Errorf("seq 8: %+v", got)
	}
	b.post("/api/leave", object{"user": "ann", "seq": 9}).is(204)
	ended := b.beat(object{"user": "ann", "seq": 9})
	if ended.Change != "stale" || ended.Status != "offline" || ended.ExpiresAt != nil || *ended.Seq != 9 || ended.Epoch == nil {
		t.Errorf("after a leave with the same seq: %+v", ended)
	}
	// An unknown session that a leave overtook: remembered, without an epoch.
	b.post("/api/leave", object{"user": "eve", "seq": 5}).is(204)
	ghost := b.beat(object{"user": "eve", "seq": 5})
	if ghost.Change != "stale" || ghost.Status != "offline" || ghost.Epoch != nil || ghost.ExpiresAt != nil {
		t.Errorf("overtaken beat: %+v", ghost)
	}
}

func TestTooManySessions(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var beats []object
	for i := range presence.MaxSessions {
		beats = append(beats, object{"user": "ann", "session": fmt.Sprint("s", i)})
	}
	b.post("/api/heartbeats", object{"heartbeats": beats}).is(200)
	a := b.post("/api/heartbeat", object{"user": "ann", "session": "one-more"})
	a.is(409)
	if !strings.Contains(string(a.Body), "32") {
		t.Errorf("%s does not name the limit", a.Body)
	}
	if got := b.beat(object{"user": "ann", "session": "s0"}); got.Change != "renewed" {
		t.Errorf("a session that is there: %+v", got)
	}
	var bulk bulk
	b.post("/api/heartbeats", object{"heartbeats": []object{{"user": "bob"}, {"user": "ann", "session": "one-more"}}}).into(200, &bulk)
	if bulk.Accepted != 1 || len(bulk.Rejected) != 1 || bulk.Rejected[0].Index != 1 || !strings.Contains(bulk.Rejected[0].Detail, "32") {
		t.Errorf("bulk: %+v", bulk)
	}
}

// TestTraceparentReachesTheEvent: the trace of the request is that of its event; one of another form is ignored.
func TestTraceparentReachesTheEvent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	odd := []string{
		"", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7", "01" + trace[2:], strings.ToUpper(trace), trace + "-x",
		strings.ReplaceAll(trace, "-", "_"), "00-" + strings.Repeat("0", 32) + trace[35:], trace[:36] + strings.Repeat("0", 16) + trace[52:], "00-" + strings.Repeat("-", 32) + trace[35:], trace[:36] + "\n" + trace[37:],
	}
	for i, h := range append(odd, trace) {
		user := fmt.Sprint("user-", i)
		header := http.Header{"Traceparent": {strings.ReplaceAll(h, "\n", "\t")}}
		b.do(call{method: "POST", path: "/api/heartbeat", body: object{"user": user}, header: header}).is(200)
		e := b.relay()
		var events struct {
			Events []struct{ ID, Traceparent string }
		}
		b.get("/api/users/"+user+"/events").into(200, &events)
		if len(e) != 1 || len(events.Events) != 1 {
			t.Fatalf("%d events, %d in the log", len(e), len(events.Events))
		}
		want := presence.TraceparentOf(events.Events[0].ID)
		if h == trace {
			want = trace
		}
		if got := events.Events[0].Traceparent; got != want {
			t.Errorf("%q: the event has %s, want %s", h, got, want)
		}
	}
}
