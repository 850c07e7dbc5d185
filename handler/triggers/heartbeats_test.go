package triggers_test

import (
	"fmt"
	"strings"
	"testing"
)

type rejection struct {
	Index  int
	Detail string
	Retry  bool
}

// bulk is the answer to heartbeats.
type bulk struct {
	Accepted, Deferred, Stale int
	Rejected                  []rejection
	BeatAfterSeconds          int
}

func TestHeartbeatsAreJudgedOneByOne(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.beat(object{"user": "late", "seq": 5})
	var got bulk
	b.do(call{method: "POST", path: "/api/heartbeats", loose: true, body: object{"heartbeats": []any{
		object{"user": "ann"},
		object{"user": "b b"},
		"text",
		object{"user": "cid", "ttlSeconds": 30},
		object{"user": "cid", "ttlSeconds": 4},
		object{"user": "late", "seq": 5},
		object{"user": "dan", "colour": "blue"},
		nil,
		object{"user": "eve", "meta": strings.Repeat("x", 2000)},
		object{"user": "ann", "session": "laptop", "ttlSeconds": 60},
	}}}).into(200, &got)
	if got.Accepted != 3 || got.Deferred != 0 || got.Stale != 1 || !paced(got.BeatAfterSeconds, 30) {
		t.Errorf("%+v", got)
	}
	want := map[int]string{
		1: "/user", 2: "object", 4: "/ttlSeconds must be a whole number of seconds between 5 and 3600",
		6: "/colour is not a known field", 7: "/user must not be empty", 8: "/meta must be a JSON object",
	}
	for _, r := range got.Rejected {
		if text, ok := want[r.Index]; !ok || !strings.Contains(r.Detail, text) {
			t.Errorf("rejected %+v, want %q", r, text)
		}
		delete(want, r.Index)
	}
	if len(want) > 0 {
		t.Errorf("not rejected: %v", want)
	}
	if u := b.user("ann"); u.Status != "online" || len(u.Sessions) != 2 {
		t.Errorf("ann: %+v", u)
	}
}

func TestHeartbeatsTakeAThousand(t *testing.T) {
	t.Parallel()
	b := setup(t)
	beats := make([]object, 1000)
	users := make([]string, 1000)
	for i := range beats {
		users[i] = fmt.Sprint("user-", i)
		beats[i] = object{"user": users[i], "ttlSeconds": 5 + i}
	}
	var got bulk
	b.post("/api/heartbeats", object{"heartbeats": beats}).into(200, &got)
	if got.Accepted != 1000 || len(got.Rejected) != 0 || !paced(got.BeatAfterSeconds, 5) {
		t.Errorf("%+v", got)
	}
	for i, s := range b.query(users...) {
		if s.User != users[i] || s.Status != "online" {
			t.Fatalf("%d: %+v", i, s)
		}
	}
	b.post("/api/heartbeats", object{"heartbeats": []object{}}).into(200, &got)
	if got.Accepted != 0 || got.Rejected == nil || !paced(got.BeatAfterSeconds, 45) {
		t.Errorf("none: %+v", got)
	}
}
