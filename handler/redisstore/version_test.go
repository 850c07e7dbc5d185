package redisstore

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/presence"
)

// The forms of a made-up next version.
func TestFormsOfALaterVersion(t *testing.T) {
	t.Parallel()
	for record, want := range map[string]bool{
		"b": true, "b1700000000123\n+": true, "b,x": true, "z\n": true, "c5,,,": true,
		"": false, "a5": false, "A5": false, "no record": false, "b x": false, "bb": false, "{5": false, "5": false, "\xff5": false,
	} {
		if got := laterRecord(record); got != want {
			t.Errorf("record %q: %v", record, got)
		}
	}
	for member, want := range map[string]bool{
		"/group/g": true, "user/session/part": true, "user#2/session": true, "a//b": true,
		"user/session": false, "no-slash": false, "": false, "/": false, "a/": false, "\xff/\x00": false, "a b/c": false,
	} {
		if got := laterMember(member); got != want {
			t.Errorf("member %q: %v", member, got)
		}
	}
	for text, want := range map[string][2]string{
		"": {}, `{"a":1}`: {`{"a":1}`, ""}, ",x": {"", ",x"}, `{"a":1},x,y`: {`{"a":1}`, ",x,y"},
		`{"a":{"b":1},"c":2}`: {`{"a":{"b":1},"c":2}`, ""}, `{"a":{"b":1},"c":2},{"n":3}`: {`{"a":{"b":1},"c":2}`, `,{"n":3}`},
		`{"a":"},x"}`: {`{"a":"},x"}`, ""}, `{"a":"\"},x"},y`: {`{"a":"\"},x"}`, ",y"}, `{"a":"\\"},y`: {`{"a":"\\"}`, ",y"},
		`{"a":1},`: {`{"a":1}`, ","}, `{"a},`: {`{"a},`, ""},
	} {
		if meta, more := splitMeta(text); meta != want[0] || more != want[1] {
			t.Errorf("%s is cut into %s and %s", text, meta, more)
		}
	}
}

// later writes a record of the next version with a live session that is long due.
func (b *bench) later(user string) string {
	b.t.Helper()
	record := "b1700000000123;new=1\n+{\"session\":\"default\"}"
	record = strings.Replace(record, ";", ",", 1)
	if err := b.raw.Set(b.t.Context(), b.store.keys.user(0, user), record, 0).Err(); err != nil {
		b.t.Fatal(err)
	}
	return record
}

// TestRecordOfALaterVersion: it stays as it is, whatever is done to it, and everything else goes on.
func TestRecordOfALaterVersion(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	record := b.later("new")
	due := b.store.keys.in(0, "due")
	if err := b.raw.ZAdd(ctx, due, redis.Z{Score: 1, Member: "new/default"}, redis.Z{Score: 2, Member: "/group/g"}).Err(); err != nil {
		t.Fatal(err)
	}
	b.beat(presence.Beat{User: "old"})

	beat := func(user string) presence.Beat {
		return presence.Beat{User: user, Session: presence.DefaultSession, TTL: seconds(10), At: time.Now()}
	}
	if got, err := b.store.Heartbeats(ctx, []presence.Beat{beat("new")}); err != nil || got[0].Change != presence.ChangeLater {
		t.Errorf("a beat: %+v, %v", got, err)
	}
	full := beat("new")
	full.Groups, full.Meta = []string{"g"}, json.RawMessage(`{"a":1}`)
	many := []presence.Beat{full}
	for i := range 2 * beatsATurn {
		many = append(many, beat(fmt.Sprint("many", i)))
	}
	got, err := b.store.Heartbeats(ctx, many)
	if err != nil || got[0].Change != presence.ChangeLater {
		t.Fatalf("beats in bulk: %v", err)
	}
	for i, o := range got[1:] {
		if o.Change != presence.ChangeOnline {
			t.Errorf("beat %d of the bulk: %+v", i+1, o)
		}
	}
	if u := b.user(many[len(many)-1].User); u == nil || u.Status != presence.Online {
		t.Errorf("the last beat of the bulk was not applied: %+v", u)
	}
	ended, err := b.store.Leaves(ctx, []presence.Leave{{User: "new", Session: presence.DefaultSession}, {User: "many0", Session: presence.DefaultSession}})
	if err != nil || ended[0] != presence.LeaveLater || ended[1] != presence.Left {
		t.Errorf("leaves: %v, %v", ended, err)
	}
	if u := b.user("many0"); u == nil || u.Status != presence.Offline {
		t.Errorf("the other leave was not applied: %+v", u)
	}
	if u := b.user("new"); u == nil || !u.Stale || u.Status != "" {
		t.Errorf("read as %+v", u)
	}
	b.pass(time.Minute)
	total := 0
	for range 5 {
		c := b.sweep()
		total += len(c.Late)
		if c.Quarantined != 0 {
			t.Fatalf("%+v", c)
		}
	}
	if want := 2 * beatsATurn; total != want { // all but the one who left, and the old one
		t.Errorf("%d of %d others were claimed", total, want)
	}
	if got := b.raw.Get(ctx, b.store.keys.user(0, "new")).Val(); got != record {
		t.Errorf("the record became %q", got)
	}
	if left := b.raw.ZRangeWithScores(ctx, due, 0, -1).Val(); len(left) != 2 || left[0].Score != 1 || left[1].Score != 2 {
		t.Errorf("the index has %v", left)
	}
	if n := b.raw.XLen(ctx, b.store.keys.in(0, "quarantine")).Val(); n != 0 {
		t.Errorf("%d notes in quarantine", n)
	}
	if got := b.store.Later(); got != (Later{Refused: 3, Unread: 1, Waiting: 2}) {
		t.Errorf("%+v", got)
	}
}

// TestManySessionsOfALaterVersion: more of them are due than a sweep takes, and those after them are claimed all the same;
// they are looked at again later, and a process of the later version finds them in the index.
func TestManySessionsOfALaterVersion(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	const n = 3*maxItems + 7
	due := b.store.keys.in(0, "due")
	for i := range n {
		user := fmt.Sprint("new", i)
		b.later(user)
		if err := b.raw.ZAdd(ctx, due, redis.Z{Score: float64(i + 1), Member: user + "/default"}).Err(); err != nil {
			t.Fatal(err)
		}
	}
	b.beat(presence.Beat{User: "old"})
	b.pass(time.Minute)
	lookAgain := func(at time.Time) {
		b.store.later.mu.Lock()
		defer b.store.later.mu.Unlock()
		b.store.later.passed[0].again = at
	}
	b.sweep()
	lookAgain(time.Now().Add(time.Hour))
	looks := 1
	for claimed := 0; claimed == 0; looks++ {
		if looks > n/maxItems+1 {
			t.Fatal("those of the later version hide the others")
		}
		claimed = len(b.sweep().Late)
	}
	// From now on they are passed over.
	for i := range 3 {
		b.beat(presence.Beat{User: "old"})
		b.pass(time.Minute)
		if c := b.sweep(); len(c.Late) != 1 || c.Later != 0 {
			t.Errorf("sweep %d: %+v", i, c)
		}
	}
	if got := b.store.Later().Waiting; got != n {
		t.Errorf("%d wait, want %d", got, n)
	}
	// They are looked at again. By then a later version has ended one, and another is of ours after a step back.
	b.raw.ZRem(ctx, due, "new0/default")
	b.raw.Del(ctx, b.store.keys.user(0, "new1"))
	lookAgain(time.Time{})
	var sum Claims
	for range n/maxItems + 1 {
		c := b.sweep()
		sum.Later, sum.Quarantined = sum.Later+c.Later, sum.Quarantined+c.Quarantined
	}
	if sum.Later != n-2 || sum.Quarantined != 1 || b.store.Later().Waiting != n-2 {
		t.Errorf("%+v, %+v", sum, b.store.Later())
	}
}

// TestFieldsAndLinesOfALaterVersion: what is added to a record that this version may change is kept, by every script.
func TestFieldsAndLinesOfALaterVersion(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	now := b.redisTime().UnixMilli()
	key := b.store.keys.user(0, "u")
	write := func(record string) {
		t.Helper()
		if err := b.raw.Set(ctx, key, record, 0).Err(); err != nil {
			t.Fatal(err)
		}
		if err := b.raw.ZAdd(ctx, b.store.keys.in(0, "due"), redis.Z{Score: float64(now), Member: "u/tab"}).Err(); err != nil {
			t.Fatal(err)
		}
	}
	has := func(when string, parts ...string) {
		t.Helper()
		got := "\n" + b.raw.Get(ctx, key).Val() + "\n"
		for _, part := range parts {
			if !strings.Contains(got, part) {
				t.Errorf("%s: %q is not in %q", when, part, got)
			}
		}
	}
	b.beat(presence.Beat{User: "other"}) // there is a life
	head := fmt.Sprintf("a%d,1000,%d,g h,head1,head2", now-5000, now-5000)
	line := `+0,30,tab,,5,,7,{"a":{"b":"},"},"c":1},x,{"y":2}`
	end := fmt.Sprintf("-z,%d,3,2,more", -100)
	beat := presence.Beat{User: "u", Session: "tab", TTL: seconds(30), Grace: 5 * time.Second, At: time.Now()}

	write(head + "\n" + line) // renew.lua
	if got := b.beat(beat); got.Change != presence.ChangeRenewed || *got.Seq != 7 {
		t.Fatalf("%+v", got)
	}
	has("renewed", ",g h,head1,head2\n", `,{"a":{"b":"},"},"c":1},x,{"y":2}`+"\n")
	u := b.user("u")
	if u == nil || u.Status != presence.Online || len(u.Sessions) != 1 || string(u.Sessions[0].Meta) != `{"a":{"b":"},"},"c":1}` || strings.Join(u.Groups, " ") != "g h" {
		t.Errorf("read as %+v", u)
	}

	write(head + "\n" + line + "\n" + end + "\n*new line\ng,1") // heartbeat.lua
	beat.At = time.Now()
	if got := b.beat(beat); got.Change != presence.ChangeRenewed {
		t.Fatalf("%+v", got)
	}
	all := []string{",g h,head1,head2\n", `,{"a":{"b":"},"},"c":1},x,{"y":2}` + "\n", ",3,2,more\n", "\n*new line\n", "\ng,1\n"}
	has("beaten", all...)
	if u := b.user("u"); u == nil || len(u.Sessions) != 1 {
		t.Errorf("read as %+v", u)
	}
	beat.At, beat.Meta = time.Now(), json.RawMessage(`{"m":2}`)
	b.beat(beat)
	has("new meta", `,{"m":2},x,{"y":2}`+"\n")

	if got := b.leave(presence.Leave{User: "u", Session: "tab", At: time.Now()}); got != presence.Leaving {
		t.Fatal(got)
	}
	has("leaving", all[0], `,{"m":2},x,{"y":2}`+"\n", all[2], all[3], all[4])
	b.pass(6 * time.Second)
	if c := b.sweep(); len(c.Late) != 1 || c.Later != 0 {
		t.Fatalf("%+v", c)
	}
	has("ended", all[0], all[2], all[3], all[4])
	write(head + "\n" + line) // claim.lua, the usual case
	b.pass(time.Minute)
	if c := b.sweep(); len(c.Late) != 2 {
		t.Fatalf("%+v", c)
	}
	has("claimed", all[0])
	for _, e := range b.events() {
		if e.User == "u" && string(e.Meta) != `{"m":2}` && string(e.Meta) != `{"a":{"b":"},"},"c":1}` {
			t.Errorf("%s has the meta %s", e.Type, e.Meta)
		}
	}

	// The session is in a line that only a later version can read.
	write(head + "\n*tab,1,2,3")
	if c := b.sweep(); len(c.Late) != 0 || c.Later != 1 || c.Quarantined != 0 {
		t.Errorf("%+v", c)
	}
	has("waiting", "\n*tab,1,2,3\n")
}
