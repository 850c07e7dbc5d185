package triggers_test

import (
	"encoding/json"
	"testing"
	"time"

	"userconnectivity/handler/presence"
)

// known is the answer to GET /api/users/{user}.
type known struct {
	User, Status    string
	Epoch           *int64
	Since, LastSeen *string
	Sessions        []struct {
		Session, ExpiresAt string
		Meta               json.RawMessage
	}
	Groups []string
	Stale  bool
}

func (b *bench) user(id string) known {
	b.t.Helper()
	var u known
	b.get("/api/users/"+id).into(200, &u)
	return u
}

// status is one line of the answer to a query.
type status struct {
	User, Status string
	LastSeen     *string
	Stale        bool
}

func (b *bench) query(ids ...string) []status {
	b.t.Helper()
	var answer struct{ Users []status }
	b.post("/api/users/query", object{"users": append([]string{}, ids...)}).into(200, &answer)
	if len(answer.Users) != len(ids) {
		b.t.Fatalf("%d answers to %d users", len(answer.Users), len(ids))
	}
	return answer.Users
}

func TestUser(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if u := b.user("ann"); u.User != "ann" || u.Status != "offline" || u.Epoch != nil || u.Since != nil || u.LastSeen != nil || len(u.Sessions) != 0 || len(u.Groups) != 0 {
		t.Errorf("unknown: %+v", u)
	}
	beat := b.beat(object{"user": "ann", "session": "phone", "groups": []string{"north"}, "meta": object{"app": "2"}})
	u := b.user("ann")
	if u.Status != "online" || *u.Epoch != *beat.Epoch || u.Since == nil || u.LastSeen == nil || len(u.Sessions) != 1 ||
		u.Sessions[0].Session != "phone" || u.Sessions[0].ExpiresAt != *beat.ExpiresAt || string(u.Sessions[0].Meta) != `{"app":"2"}` || u.Groups[0] != "north" {
		t.Errorf("online: %+v after %+v", u, beat)
	}
	b.pass(46 * time.Second)
	b.sweep()
	u = b.user("ann")
	if u.Status != "offline" || *u.Epoch <= *beat.Epoch || len(u.Sessions) != 0 || u.Groups[0] != "north" {
		t.Errorf("offline: %+v", u)
	}
}

// TestUserAfterRedisForgot: 24 hours after going offline the users record answers.
func TestUserAfterRedisForgot(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.beat(object{"user": "ann", "groups": []string{"north"}})
	b.post("/api/leave", object{"user": "ann"}).is(204)
	b.succeeds("ConnectivityWorker", b.relay()...)
	before := b.user("ann")
	// What Redis does itself after 24 hours: the record's time to live passes.
	keys, err := b.raw.Keys(t.Context(), b.prefix+"{p*}ann").Result()
	if err != nil || len(keys) != 1 {
		t.Fatalf("%q, %v", keys, err)
	}
	if ttl, err := b.raw.PTTL(t.Context(), keys[0]).Result(); err != nil || ttl < 23*time.Hour || ttl > 24*time.Hour {
		t.Errorf("an offline user's record lives for %s, %v; want 24 h", ttl, err)
	}
	if err := b.raw.Del(t.Context(), keys[0]).Err(); err != nil {
		t.Fatal(err)
	}
	after := b.user("ann")
	if after.Status != "offline" || *after.Epoch != *before.Epoch || *after.Since != *before.Since || *after.LastSeen != *before.LastSeen || after.Groups[0] != "north" {
		t.Errorf("%+v, want %+v", after, before)
	}
	if s := b.query("nobody", "ann"); s[0].LastSeen != nil || s[1].LastSeen == nil || *s[1].LastSeen != *before.LastSeen {
		t.Errorf("query: %+v", s)
	}
}

func TestUsersQuery(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.beat(object{"user": "ann"})
	got := b.query("bob", "ann", "bob", "ann")
	for i, want := range []string{"bob offline", "ann online", "bob offline", "ann online"} {
		if s := got[i]; s.User+" "+s.Status != want || (s.LastSeen == nil) != (s.User == "bob") {
			t.Errorf("%d: %+v, want %s", i, s, want)
		}
	}
	b.query()
	// A user may have the name of this route, and is asked for by it.
	b.beat(object{"user": "query"})
	b.get("/api/users/query").is(405)
	if s := b.query("query"); s[0].Status != "online" {
		t.Errorf("%+v", s)
	}
}

// TestIDsInPaths: every character of an id works in a path, escaped or not.
func TestIDsInPaths(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for id, paths := range map[string][]string{
		"a:b@c":     {"a:b@c", "a%3Ab%40c", "a%3ab@c", "%61:b@c"},
		"x|y+z=1~2": {"x|y+z=1~2", "x%7Cy%2Bz%3D1%7E2", "x%7cy+z=1%7e2"},
		"...":       {"...", "%2E..", "%2e%2e%2e"},
		"sessions":  {"sessions"},
		"events":    {"events"},
		"-._~":      {"-._~", "%2D%2E%5F%7E"},
	} {
		want := b.beat(object{"user": id, "session": id})
		for _, path := range paths {
			if u := b.user(path); u.User != id || *u.Epoch != *want.Epoch {
				t.Errorf("%s: %+v, want user %s", path, u, id)
			}
			b.get("/api/users/" + path + "/events").is(200)
		}
		for _, path := range paths {
			b.delete("/api/users/" + path + "/sessions/" + path).is(204)
			if u := b.user(path); u.Status != "offline" {
				t.Errorf("DELETE of %s ended nothing", path)
			}
			b.beat(object{"user": id, "session": id})
		}
	}
}

func TestTimesHaveMilliseconds(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.beat(object{"user": "ann"})
	u := b.user("ann")
	for _, at := range []string{*u.Since, *u.LastSeen, u.Sessions[0].ExpiresAt} {
		if _, err := time.Parse(presence.TimeFormat, at); err != nil || len(at) != len("2026-01-01T00:00:00.000Z") {
			t.Errorf("%s: %v", at, err)
		}
	}
}
