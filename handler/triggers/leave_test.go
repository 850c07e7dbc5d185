package triggers_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"userconnectivity/handler/deferral"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/triggers"
)

func TestLeave(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.beat(object{"user": "ann"})
	b.beat(object{"user": "ann", "session": "laptop"})
	b.post("/api/leave", object{"user": "ann"}).is(204)
	if u := b.user("ann"); u.Status != "online" || len(u.Sessions) != 1 || u.Sessions[0].Session != "laptop" {
		t.Errorf("after one leave: %+v", u)
	}
	b.delete("/api/users/ann/sessions/laptop").is(204)
	if u := b.user("ann"); u.Status != "offline" || len(u.Sessions) != 0 || u.LastSeen == nil {
		t.Errorf("after both: %+v", u)
	}
	for range 2 { // repeated and unknown are no errors
		b.delete("/api/users/ann/sessions/laptop").is(204)
		b.post("/api/leave", object{"user": "nobody", "session": nil, "seq": nil}).is(204)
	}
	var types []string
	for _, m := range b.relay() {
		types = append(types, fmt.Sprint(m.Properties["type"], " ", m.Properties["reason"]))
	}
	if got := strings.Join(types, ", "); got != "user.online beat, session.started beat, session.ended left, user.offline left" {
		t.Errorf("events %s", got)
	}
}

func TestLeaveWaitsForItsGrace(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.beat(object{"user": "ann", "ttlSeconds": 3600, "graceSeconds": 600})
	b.post("/api/leave", object{"user": "ann"}).is(204)
	b.pass(300 * time.Second)
	b.sweep()
	if u := b.user("ann"); u.Status != "online" {
		t.Errorf("within its grace: %+v", u)
	}
	if got := b.beat(object{"user": "ann", "ttlSeconds": 3600, "graceSeconds": 600}); got.Change != "renewed" {
		t.Errorf("back within the grace: %+v", got)
	}
	b.post("/api/leave", object{"user": "ann"}).is(204)
	b.pass(601 * time.Second)
	b.sweep()
	if u := b.user("ann"); u.Status != "offline" {
		t.Errorf("after its grace: %+v", u)
	}
}

func TestLeaves(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.post("/api/heartbeats", object{"heartbeats": []object{{"user": "ann"}, {"user": "bob", "session": "laptop"}, {"user": "cid"}}}).is(200)
	b.post("/api/leaves", object{"leaves": []object{{"user": "ann"}, {"user": "nobody"}}}).is(204)
	var got struct{ Rejected []rejection }
	b.do(call{method: "POST", path: "/api/leaves", loose: true, body: object{"leaves": []any{
		object{"user": ""}, object{"user": "bob", "session": "laptop"}, 7, object{"user": "cid", "ttlSeconds": 5}, object{"user": "cid", "seq": -1},
	}}}).into(200, &got)
	want := []string{"0 /user must not be empty", "2 object", "3 /ttlSeconds is not a known field", "4 /seq must be between 0 and 9007199254740991"}
	for _, w := range want {
		index, text, _ := strings.Cut(w, " ")
		found := false
		for _, r := range got.Rejected {
			found = found || fmt.Sprint(r.Index) == index && strings.Contains(r.Detail, text)
		}
		if !found {
			t.Errorf("%s is not in %+v", w, got.Rejected)
		}
	}
	if len(got.Rejected) != len(want) {
		t.Errorf("rejected %+v", got.Rejected)
	}
	for i, want := range []string{"offline", "offline", "online"} {
		if s := b.query("ann", "bob", "cid")[i]; s.Status != want {
			t.Errorf("%+v, want %s", s, want)
		}
	}
	b.post("/api/leaves", object{"leaves": []object{}}).is(204)
	thousand := make([]object, 1000)
	for i := range thousand {
		thousand[i] = object{"user": fmt.Sprint("user-", i)}
	}
	b.post("/api/leaves", object{"leaves": thousand}).is(204)
}

// TestDeferredLeaves: what is only kept in memory is not answered as if it were done.
func TestDeferredLeaves(t *testing.T) {
	t.Parallel()
	away := setup(t)
	records := away.records
	open := func() deferral.Away {
		return func(user string) (time.Duration, bool) { return time.Second, user != "near" }
	}
	store := deferral.New(away.store, open, deferral.Config{Log: discard})
	b := setup(t, func(h *triggers.Handlers) { h.Tracker = presence.NewTracker(store, records, presence.DefaultTTL) })
	for _, c := range []call{
		{method: "POST", path: "/api/leave", body: object{"user": "ann", "session": "phone"}},
		{method: "DELETE", path: "/api/users/ann/sessions/phone"},
	} {
		var got map[string]string
		b.do(c).into(202, &got)
		if len(got) != 3 || got["user"] != "ann" || got["session"] != "phone" || got["change"] != "deferred" {
			t.Errorf("%s: %v", c.path, got)
		}
	}
	b.post("/api/leave", object{"user": "near"}).is(204)
	for _, tt := range []struct {
		name     string
		leaves   []any
		status   int
		deferred int
		rejected int
	}{
		{"none_deferred", []any{object{"user": "near"}}, 204, 0, 0},
		{"all_deferred", []any{object{"user": "bob"}, object{"user": "cid"}}, 200, 2, 0},
		{"some_deferred", []any{object{"user": "near"}, object{"user": "dan"}}, 200, 1, 0},
		{"deferred_and_rejected", []any{object{"user": "eve"}, object{"user": "e e"}, 7}, 200, 1, 2},
	} {
		a := b.do(call{method: "POST", path: "/api/leaves", body: object{"leaves": tt.leaves}, loose: true})
		if tt.status == 204 {
			a.is(204)
			continue
		}
		var got struct {
			Deferred int
			Rejected []rejection
		}
		a.into(tt.status, &got)
		if got.Deferred != tt.deferred || got.Rejected == nil || len(got.Rejected) != tt.rejected {
			t.Errorf("%s: %s", tt.name, a.Body)
		}
	}
}
