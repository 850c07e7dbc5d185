package triggers_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
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
