package redisstore

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/presence"
)

// line is an outbox entry of version 1, changed: version, type, user, session, epoch, reason, basis, deadline, detected
// at, last seen, life, generation, n, traceparent, groups, sessions, meta.
func line(change func(f []string)) string {
	f := []string{"1", "user.online", "u", "s", "5", "beat", "5", "", "5", "5", "life", "0", "1", "", "", "", ""}
	change(f)
	return strings.Join(f, "\n")
}

// TestJunkInTheOutbox: what somebody else wrote goes to the quarantine, and does not hide what comes after it, however
// little is read at once.
func TestJunkInTheOutbox(t *testing.T) {
	t.Parallel()
	entry := func(user, session string) string { return line(func(f []string) { f[2], f[3] = user, session }) }
	junk := []string{
		"", "junk", "2\njunk", entry("\xff", "s"), entry(strings.Repeat("u", 129), "s"), entry("u", ""), entry("u", ".."),
		strings.Replace(entry("u", "s"), "user.online", "User Online", 1), "0\nx", "03\nx", "-3\nx", "v3\nx",
		strings.Replace(entry("u", "s"), "beat", "a reason", 1), "1\nuser.away",
	}
	for _, again := range []bool{false, true} {
		b := setup(t)
		p, ctx := b.store.keys.partition("good"), t.Context()
		stream := b.store.keys.outbox(p)
		for _, text := range junk {
			if err := b.raw.XAdd(ctx, &redis.XAddArgs{Stream: stream, Values: []any{"e", text}}).Err(); err != nil {
				t.Fatal(err)
			}
		}
		b.beat(presence.Beat{User: "good"})
		outbox := b.store.Outbox("one")
		read := outbox.Next
		if again { // the relay was given all of them before
			if err := b.raw.XGroupCreate(ctx, stream, relayGroup, "0").Err(); err != nil {
				t.Fatal(err)
			}
			args := &redis.XReadGroupArgs{Group: relayGroup, Consumer: "one", Streams: []string{stream, ">"}}
			if err := b.raw.XReadGroup(ctx, args).Err(); err != nil {
				t.Fatal(err)
			}
			read = func(ctx context.Context, p, limit int) ([]Entry, error) { return outbox.Own(ctx, p, "", limit) }
		}
		entries, err := read(ctx, p, 1)
		if err != nil || len(entries) != 1 || entries[0].Event.User != "good" {
			t.Fatalf("%+v, %v", entries, err)
		}
		if n := b.raw.XLen(ctx, stream).Val(); n != 1 {
			t.Errorf("%d entries are left", n)
		}
		if n := b.raw.XLen(ctx, b.store.keys.in(p, "quarantine")).Val(); n != int64(len(junk)) {
			t.Errorf("%d notes of %d pieces of junk", n, len(junk))
		}
	}
}

// TestNewerEntries: what a later version wrote stays, for that version, and holds up nothing; what a later version added
// to a form that is known does not matter.
func TestNewerEntries(t *testing.T) {
	t.Parallel()
	newer := []string{
		"3\nuser.online\nwhatever", "3", "17\n", "1\nuser.online" + strings.Repeat("\n", 3), // the last is junk
		line(func(f []string) { f[1] = "user.away" }), line(func(f []string) { f[1] = "group.online" }),
		line(func(f []string) { f[5] = "erased" }), "2\nredis.key.evicted\n5\nlife\n0\n7\nkey",
	}
	known := []string{
		line(func(f []string) { f[16] = "{}\nmore\nlines" }), line(func(f []string) { f[15] = "s,5,45,0,away s2,5,45,0" }),
	}
	b := setup(t)
	ctx := t.Context()
	stream := b.store.keys.outbox(0)
	for _, text := range append(slices.Clone(newer), known...) {
		if err := b.raw.XAdd(ctx, &redis.XAddArgs{Stream: stream, Values: []any{"e", text}}).Err(); err != nil {
			t.Fatal(err)
		}
	}
	waiting := len(newer) - 1
	split := func(entries []Entry) (known []Entry, newer []string) {
		for _, e := range entries {
			if e.Newer {
				newer = append(newer, e.StreamID)
			} else {
				known = append(known, e)
			}
		}
		return known, newer
	}
	old, other := b.store.Outbox("old"), b.store.Outbox("other")
	entries, err := old.Next(ctx, 0, 100)
	read, left := split(entries)
	if err != nil || len(left) != waiting || len(read) != len(known) {
		t.Fatalf("%d newer and %d known: %v", len(left), len(read), err)
	}
	if e := read[0].Event; string(e.Meta) != "{}" {
		t.Errorf("lines after the meta: meta is %s", e.Meta)
	}
	if s := read[1].Event.Sessions; len(s) != 2 || s[0].Session != "s" || s[0].TTLSeconds != 45 || s[1].Session != "s2" {
		t.Errorf("a session with more parts: %+v", s)
	}
	if err := old.Acknowledge(ctx, 0, read); err != nil {
		t.Fatal(err)
	}

	// Another relay takes them at once, and leaves them as well. Who knows them leaves them alone.
	entries, _, err = other.TakeOver(ctx, 0, 5*time.Second, nil, "", 100)
	if _, taken := split(entries); err != nil || len(taken) != waiting {
		t.Errorf("the other relay found %d newer: %v", len(taken), err)
	}
	seen := 0
	entries, _, err = old.TakeOver(ctx, 0, 5*time.Second, func(id string) bool { seen++; return slices.Contains(left, id) }, "", 100)
	if err != nil || len(entries) != 0 || seen != waiting {
		t.Errorf("%d were taken, %d seen: %v", len(entries), seen, err)
	}
	// A process that knows them, of the previous build or of the next one, takes them as they are.
	messages, _, err := b.raw.XAutoClaim(ctx, &redis.XAutoClaimArgs{
		Stream: stream, Group: relayGroup, Consumer: "next", MinIdle: 5 * time.Second, Start: "0-0", Count: 100,
	}).Result()
	if err != nil || len(messages) != waiting || messages[0].Values["e"] != newer[0] {
		t.Errorf("a process of the next version takes %d: %v", len(messages), err)
	}
	if n := b.raw.XLen(ctx, b.store.keys.in(0, "quarantine")).Val(); n != 1 {
		t.Errorf("%d are in quarantine, want the one that is no entry", n)
	}
	if n := b.raw.XLen(ctx, stream).Val(); n != int64(waiting) {
		t.Errorf("%d are left, want %d", n, waiting)
	}
}

// TestOldMeta: what older builds took at the edge is relayed as it is, and one that is no JSON is left out alone.
func TestOldMeta(t *testing.T) {
	t.Parallel()
	deep := `{"a":` + strings.Repeat("[", 400) + strings.Repeat("]", 400) + `}`
	for meta, want := range map[string]string{`{"n":1e309}`: `{"n":1e309}`, `{"n":0.10}`: `{"n":0.10}`, `{"a":1,"a":2}`: `{"a":1,"a":2}`, deep: deep, `{"a":`: ""} {
		b := setup(t)
		ctx, stream := t.Context(), b.store.keys.outbox(0)
		text := line(func(f []string) { f[16] = meta })
		if err := b.raw.XAdd(ctx, &redis.XAddArgs{Stream: stream, Values: []any{"e", text}}).Err(); err != nil {
			t.Fatal(err)
		}
		o := b.store.Outbox("one")
		entries, err := o.Next(ctx, 0, 10)
		if err != nil || len(entries) != 1 || string(entries[0].Event.Meta) != want {
			t.Fatalf("meta %.20s: %+v, %v", meta, entries, err)
		}
		if noted := b.raw.XLen(ctx, b.store.keys.in(0, "quarantine")).Val(); noted != o.Quarantined() || (noted == 1) != (want == "") {
			t.Errorf("meta %.20s: %d notes", meta, noted)
		}
	}
}

// TestDeletedEntries: one that was deleted while it was pending is forgotten, whoever looks.
func TestDeletedEntries(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, stream := t.Context(), b.store.keys.outbox(0)
	var ids []string
	for range 3 {
		ids = append(ids, b.raw.XAdd(ctx, &redis.XAddArgs{Stream: stream, Values: []any{"e", line(func([]string) {})}}).Val())
	}
	one, two := b.store.Outbox("one"), b.store.Outbox("two")
	if entries, err := one.Next(ctx, 0, 10); err != nil || len(entries) != 3 {
		t.Fatal(entries, err)
	}
	pending := func() int64 { return b.raw.XPending(ctx, stream, relayGroup).Val().Count }
	b.raw.XDel(ctx, stream, ids[1])
	if entries, err := one.Own(ctx, 0, "", 10); err != nil || len(entries) != 2 || pending() != 2 {
		t.Errorf("own: %d, %v; %d pending", len(entries), err, pending())
	}
	b.raw.XDel(ctx, stream, ids[0])
	entries, next, err := two.TakeOver(ctx, 0, 0, nil, "", 10)
	if err != nil || len(entries) != 1 || entries[0].StreamID != ids[2] || next != "" || pending() != 1 {
		t.Errorf("takeover: %v, %q, %v; %d pending", entries, next, err, pending())
	}
	if q := one.Quarantined() + two.Quarantined(); q != 0 {
		t.Errorf("%d were put in quarantine", q)
	}
}

// TestKeep: a relay that has entries in hand keeps them from the others.
func TestKeep(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx, stream := t.Context(), b.store.keys.outbox(0)
	var ids []string
	for range keepAtOnce + 10 {
		ids = append(ids, b.raw.XAdd(ctx, &redis.XAddArgs{Stream: stream, Values: []any{"e", line(func([]string) {})}}).Val())
	}
	one, two := b.store.Outbox("one"), b.store.Outbox("two")
	if entries, err := one.Next(ctx, 0, len(ids)); err != nil || len(entries) != len(ids) {
		t.Fatal(len(entries), err)
	}
	if err := one.setIdle(ctx, 0, ids, time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := one.Keep(ctx, 0, append(ids[10:], "1-1")); err != nil { // one that is pending no more does not matter
		t.Fatal(err)
	}
	entries, _, err := two.TakeOver(ctx, 0, 30*time.Second, nil, "", 1000)
	if err != nil || len(entries) != 10 || entries[9].StreamID != ids[9] {
		t.Errorf("%d were taken over, want the first 10: %v", len(entries), err)
	}
}
