package redisstore

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/redisconn"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// bench is a store on a real Redis with a clock that the test moves.
type bench struct {
	t        *testing.T
	store    *Store
	raw      redis.UniversalClient
	endpoint redisconn.Endpoint
	prefix   string
}

// setup returns a bench on the package's server, or for the tests that TestOnACluster runs again on its cluster.
func setup(t *testing.T) *bench {
	t.Helper()
	if strings.HasPrefix(t.Name(), "TestOnACluster/") {
		return setupOnCluster(t)
	}
	server, prefix := testkit.Shared(t)
	return setupOn(t, server, prefix)
}

func setupOn(t *testing.T, server *testkit.Redis, prefix string) *bench {
	t.Helper()
	return newBench(t, server.Client(), redisconn.Endpoint{URL: server.URL()}, prefix, 1)
}

func newBench(t *testing.T, raw redis.UniversalClient, e redisconn.Endpoint, prefix string, partitions int) *bench {
	t.Helper()
	t.Cleanup(func() { _ = raw.Close() })
	b := &bench{t: t, raw: raw, endpoint: e, prefix: prefix}
	b.store = b.newStore(partitions)
	return b
}

// newStore is a further process.
func (b *bench) newStore(partitions int) *Store {
	client := redisconn.NewClient(b.endpoint, b.t.Name(), nil)
	b.t.Cleanup(func() { _ = client.Close() })
	store := New(client, Config{Prefix: b.prefix, Partitions: partitions, LeaseKeys: true})
	b.t.Cleanup(store.Close)
	return store
}

// pass moves the clock of the scripts.
func (b *bench) pass(d time.Duration) {
	b.t.Helper()
	for p := range b.store.Partitions() {
		if err := b.raw.HIncrBy(b.t.Context(), b.store.keys.in(p, "meta"), "offset", d.Milliseconds()).Err(); err != nil {
			b.t.Fatal(err)
		}
	}
}

func seconds(n int) *time.Duration { d := time.Duration(n) * time.Second; return &d }

func (b *bench) beat(beat presence.Beat) presence.BeatOutcome {
	b.t.Helper()
	if beat.Session == "" {
		beat.Session = presence.DefaultSession
	}
	if beat.TTL == nil {
		beat.TTL = seconds(10)
	}
	out, err := b.store.Heartbeats(b.t.Context(), []presence.Beat{beat})
	if err != nil {
		b.t.Fatal(err)
	}
	return out[0]
}

func (b *bench) leave(l presence.Leave) presence.LeaveOutcome {
	b.t.Helper()
	if l.Session == "" {
		l.Session = presence.DefaultSession
	}
	out, err := b.store.Leaves(b.t.Context(), []presence.Leave{l})
	if err != nil {
		b.t.Fatal(err)
	}
	return out[0]
}

func (b *bench) sweep() Claims {
	b.t.Helper()
	due, err := b.store.Due(b.t.Context(), b.partitions())
	if err != nil {
		b.t.Fatal(err)
	}
	claims, err := b.store.Claim(b.t.Context(), due)
	if err != nil {
		b.t.Fatal(err)
	}
	return claims
}

func (b *bench) partitions() []int {
	all := make([]int, b.store.Partitions())
	for p := range all {
		all[p] = p
	}
	return all
}

// events reads the outbox as a relay does, and acknowledges it.
func (b *bench) events() []presence.Event {
	b.t.Helper()
	o := b.store.Outbox("test")
	var events []presence.Event
	for _, p := range b.partitions() {
		entries, err := o.Next(b.t.Context(), p, 1000)
		if err != nil {
			b.t.Fatal(err)
		}
		if len(entries) == 0 {
			continue
		}
		for _, e := range entries {
			events = append(events, e.Event)
		}
		if err := o.Acknowledge(b.t.Context(), p, entries); err != nil {
			b.t.Fatal(err)
		}
	}
	return events
}

func (b *bench) user(id string) *presence.User {
	b.t.Helper()
	users, err := b.store.Users(b.t.Context(), []string{id})
	if err != nil {
		b.t.Fatal(err)
	}
	return users[0]
}

func types(events []presence.Event) string {
	var out []string
	for _, e := range events {
		out = append(out, string(e.Type)+"("+string(e.Reason)+") "+e.Session)
	}
	return strings.Join(out, ", ")
}

func TestOneSessionFromBeatToExpiry(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := b.beat(presence.Beat{User: "alice", Groups: []string{"g1", "g2"}, Meta: json.RawMessage(`{"a":1}`)})
	if first.Change != presence.ChangeOnline || first.Status != presence.Online || first.Epoch == 0 {
		t.Fatalf("first beat: %+v", first)
	}
	b.pass(5 * time.Second)
	second := b.beat(presence.Beat{User: "alice"})
	if second.Change != presence.ChangeRenewed || second.Epoch != first.Epoch || !second.ExpiresAt.After(first.ExpiresAt) {
		t.Fatalf("second beat: %+v after %+v", second, first)
	}
	b.pass(9 * time.Second)
	if c := b.sweep(); len(c.Late) != 0 {
		t.Fatalf("claimed before the deadline: %+v", c)
	}
	b.pass(2 * time.Second)
	if c := b.sweep(); len(c.Late) != 1 {
		t.Fatalf("sweep after the deadline: %+v", c)
	}
	if c := b.sweep(); len(c.Late) != 0 {
		t.Fatalf("claimed twice: %+v", c)
	}
	events := b.events()
	if got, want := types(events), "user.online(beat) default, user.offline(expired) default"; got != want {
		t.Fatalf("events %s, want %s", got, want)
	}
	off := events[1]
	want := presence.Event{
		ID: presence.EventID("alice", "default", presence.UserOffline, first.Epoch), Type: presence.UserOffline, Subject: presence.Subject{User: "alice", Session: "default"},
		Body: presence.Body{
			Reason: presence.ReasonExpired, Deadline: second.ExpiresAt, Groups: []string{"g1", "g2"}, Meta: json.RawMessage(`{"a":1}`),
			LastSeen: second.ExpiresAt.Add(-10 * time.Second),
		},
	}
	ignored := cmpopts.IgnoreFields(presence.Event{}, "Epoch", "DetectedAt", "Life", "Traceparent")
	if diff := cmp.Diff(want, off, ignored); diff != "" {
		t.Error(diff)
	}
	if off.Epoch <= events[0].Epoch || off.Life == "" || off.Traceparent != presence.TraceparentOf(off.ID) {
		t.Errorf("offline event %+v after %+v", off, events[0])
	}
	u := b.user("alice")
	if u == nil || u.Status != presence.Offline || len(u.Sessions) != 0 || !u.Since.Equal(off.DetectedAt) || !u.LastSeen.Equal(off.LastSeen) {
		t.Errorf("user after expiry: %+v", u)
	}
}

func TestSeveralSessions(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.beat(presence.Beat{User: "bob", Session: "phone", TTL: seconds(10)})
	started := b.beat(presence.Beat{User: "bob", Session: "laptop", TTL: seconds(20), Grace: 5 * time.Second})
	if started.Change != presence.ChangeStarted {
		t.Fatalf("second session: %+v", started)
	}
	b.pass(11 * time.Second)
	b.sweep()
	if got := b.leave(presence.Leave{User: "bob", Session: "laptop"}); got != presence.Leaving {
		t.Fatalf("leave with a grace: %s", got)
	}
	if u := b.user("bob"); u.Status != presence.Online || len(u.Sessions) != 1 {
		t.Fatalf("in the grace: %+v", u)
	}
	b.pass(6 * time.Second)
	b.sweep()
	events := b.events()
	want := "user.online(beat) phone, session.started(beat) laptop, session.ended(expired) phone, user.offline(left) laptop"
	if got := types(events); got != want {
		t.Fatalf("events %s, want %s", got, want)
	}
	if diff := cmp.Diff([]presence.EventSession{{Session: "laptop", StartEpoch: started.Epoch, TTLSeconds: 20, GraceSeconds: 5}}, events[2].Sessions); diff != "" {
		t.Error(diff)
	}
	if events[3].Deadline.IsZero() {
		t.Error("a leave with a grace has a deadline")
	}
}

func TestBeatInTheGraceCancelsALeave(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.beat(presence.Beat{User: "u", Grace: 5 * time.Second})
	b.leave(presence.Leave{User: "u"})
	if got := b.beat(presence.Beat{User: "u", Grace: 5 * time.Second}).Change; got != presence.ChangeRenewed {
		t.Fatal(got)
	}
	b.pass(6 * time.Second)
	if c := b.sweep(); len(c.Late) != 0 {
		t.Fatal("the cancelled leave was claimed")
	}
	if got := types(b.events()); got != "user.online(beat) default" {
		t.Fatal(got)
	}
}

func TestLeave(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.beat(presence.Beat{User: "u"})
	b.pass(time.Second)
	for i, want := range []presence.LeaveOutcome{presence.Left, presence.LeaveUnknown, presence.LeaveUnknown} {
		if got := b.leave(presence.Leave{User: "u"}); got != want {
			t.Errorf("leave %d: %s, want %s", i, got, want)
		}
	}
	events := b.events()
	if got, want := types(events), "user.online(beat) default, user.offline(left) default"; got != want {
		t.Fatalf("events %s, want %s", got, want)
	}
	if !events[1].Deadline.IsZero() {
		t.Error("a leave without grace has no deadline")
	}
}

func TestLateBeatsAndLeaves(t *testing.T) {
	t.Parallel()
	ago := func(d time.Duration) time.Time { return time.Now().Add(-d) }
	seq := func(n int64) *int64 { return &n }
	t.Run("a beat that a leave overtook starts no ghost", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		if got := b.leave(presence.Leave{User: "u"}); got != presence.LeaveUnknown {
			t.Fatal(got)
		}
		if got := b.beat(presence.Beat{User: "u", At: ago(time.Second)}); got.Change != presence.ChangeStale || got.Status != presence.Offline || got.Epoch != 0 {
			t.Fatalf("%+v", got)
		}
		if u := b.user("u"); u != nil {
			t.Fatalf("a leave made a user known: %+v", u)
		}
		if got := b.beat(presence.Beat{User: "u"}).Change; got != presence.ChangeOnline {
			t.Fatal(got)
		}
	})
	t.Run("a beat older than the last one is stale", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		now := b.beat(presence.Beat{User: "u"})
		if got := b.beat(presence.Beat{User: "u", At: ago(2 * time.Second)}); got.Change != presence.ChangeStale || !got.ExpiresAt.Equal(now.ExpiresAt) {
			t.Fatalf("%+v", got)
		}
	})
	t.Run("a beat whose deadline is past is stale", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		if got := b.beat(presence.Beat{User: "u", At: ago(11 * time.Second)}).Change; got != presence.ChangeStale {
			t.Fatal(got)
		}
	})
	t.Run("an aged beat counts from its instant", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.beat(presence.Beat{User: "u", At: ago(9 * time.Second)})
		b.pass(2 * time.Second)
		if c := b.sweep(); len(c.Late) != 1 {
			t.Fatalf("%+v", c)
		}
	})
	t.Run("seq orders the writers of a session", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		b.beat(presence.Beat{User: "u", Seq: seq(presence.MaxSeq - 1)})
		if got := b.beat(presence.Beat{User: "u", Seq: seq(presence.MaxSeq - 1)}); got.Change != presence.ChangeStale || *got.Seq != presence.MaxSeq-1 {
			t.Fatalf("%+v", got)
		}
		if got := b.leave(presence.Leave{User: "u", Seq: seq(3)}); got != presence.LeaveStale {
			t.Fatal(got)
		}
		if got := b.leave(presence.Leave{User: "u", Seq: seq(presence.MaxSeq)}); got != presence.Left {
			t.Fatal(got)
		}
		if got := b.beat(presence.Beat{User: "u", Seq: seq(7)}); got.Change != presence.ChangeStale || *got.Seq != presence.MaxSeq {
			t.Fatalf("%+v", got)
		}
	})
}

func TestSessionLimit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for i := range presence.MaxSessions {
		b.beat(presence.Beat{User: "u", Session: "s" + string(rune('A'+i))})
	}
	if got := b.beat(presence.Beat{User: "u", Session: "one-more"}); got.Change != presence.ChangeFull || got.Status != presence.Online {
		t.Fatalf("%+v", got)
	}
	if got := b.beat(presence.Beat{User: "u", Session: "sA"}).Change; got != presence.ChangeRenewed {
		t.Fatal(got)
	}
}

// TestJunkIsQuarantined: what cannot be understood is put aside, and the rest goes on.
func TestJunkIsQuarantined(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	k := b.store.keys
	b.beat(presence.Beat{User: "good"})
	b.raw.Set(ctx, k.user(0, "text"), "no record", 0)
	b.raw.LPush(ctx, k.user(0, "list"), "x")
	b.raw.ZAdd(ctx, k.in(0, "due"), redis.Z{Score: 1, Member: "junk"}, redis.Z{Score: 1, Member: "no/body"}, redis.Z{Score: 1, Member: "text/default"})
	b.pass(11 * time.Second)
	if c := b.sweep(); len(c.Late) != 1 || c.Quarantined != 3 {
		t.Fatalf("%+v", c)
	}
	if got := b.beat(presence.Beat{User: "list"}).Change; got != presence.ChangeOnline {
		t.Fatal(got)
	}
	if got := types(b.events()); got != "user.online(beat) default, user.offline(expired) default, user.online(beat) default" {
		t.Fatal(got)
	}
	b.raw.XAdd(ctx, &redis.XAddArgs{Stream: k.outbox(0), Values: []any{"e", "junk"}})
	if got := b.events(); len(got) != 0 {
		t.Fatalf("%+v", got)
	}
	if n := b.raw.XLen(ctx, k.outbox(0)).Val(); n != 0 {
		t.Errorf("%d entries left in the outbox", n)
	}
	notes := b.raw.XRange(ctx, k.in(0, "quarantine"), "-", "+").Val()
	if len(notes) != 6 {
		t.Errorf("quarantine has %d notes: %v", len(notes), notes)
	}
}

// TestFullMemoryFailsWhole: with memory full no transition happens in part.
func TestFullMemoryFailsWhole(t *testing.T) {
	t.Parallel()
	b := setupOn(t, testkit.Start(t), "full:")
	ctx := t.Context()
	b.beat(presence.Beat{User: "u"})
	b.pass(11 * time.Second)
	b.raw.ConfigSet(ctx, "maxmemory", "1")
	due, err := b.store.Due(ctx, []int{0})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.store.Claim(ctx, due); fault.KindOf(err) != fault.Unavailable {
		t.Fatalf("claim with memory full: %v", err)
	}
	beats := []presence.Beat{{User: "u", Session: "default", TTL: seconds(10)}}
	if _, err := b.store.Heartbeats(ctx, beats); fault.KindOf(err) != fault.Unavailable {
		t.Fatalf("beat with memory full: %v", err)
	}
	if u := b.user("u"); u.Status != presence.Online {
		t.Fatalf("%+v", u)
	}
	b.raw.ConfigSet(ctx, "maxmemory", "0")
	if c := b.sweep(); len(c.Late) != 1 {
		t.Fatalf("the refused claim was lost: %+v", c)
	}
	if got := types(b.events()); got != "user.online(beat) default, user.offline(expired) default" {
		t.Fatal(got)
	}
}

func TestScriptsAreLoadedAgainAfterTheServerForgotThem(t *testing.T) {
	t.Parallel()
	b := setupOn(t, testkit.Start(t), "flush:")
	b.beat(presence.Beat{User: "u"})
	if err := b.raw.ScriptFlush(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	if got := b.beat(presence.Beat{User: "u"}).Change; got != presence.ChangeRenewed {
		t.Fatal(got)
	}
}

func TestAChangedNumberOfPartitionsIsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.beat(presence.Beat{User: "u"})
	other := New(b.store.client, Config{Prefix: b.prefix, Partitions: b.store.Partitions() + 1})
	err := other.Ping(t.Context())
	if fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), fmt.Sprintf("set REDIS_PARTITIONS=%d,", b.store.Partitions())) {
		t.Fatalf("changed number of partitions: %v", err)
	}
}

func TestTakeOverOfADeadRelaysEntries(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	b.beat(presence.Beat{User: "u"})
	dead, heir := b.store.Outbox("dead"), b.store.Outbox("heir")
	p := b.store.keys.partition("u")
	read, err := dead.Next(ctx, p, 10)
	if err != nil || len(read) != 1 {
		t.Fatal(read, err)
	}
	if rest, err := heir.Next(ctx, p, 10); err != nil || len(rest) != 0 {
		t.Fatal(rest, err)
	}
	if own, err := dead.Own(ctx, p, "", 10); err != nil || len(own) != 1 {
		t.Fatal(own, err)
	}
	if early, _, err := heir.TakeOver(ctx, p, time.Hour, nil, "", 10); err != nil || len(early) != 0 {
		t.Fatal(early, err)
	}
	taken, _, err := heir.TakeOver(ctx, p, 0, nil, "", 10)
	if err != nil || len(taken) != 1 || taken[0].Event.ID != read[0].Event.ID {
		t.Fatal(taken, err)
	}
	if err := heir.Acknowledge(ctx, p, taken); err != nil {
		t.Fatal(err)
	}
	if own, err := dead.Own(ctx, p, "", 10); err != nil || len(own) != 0 {
		t.Fatal(own, err)
	}
}

func TestUnreachableRedisIsUnavailable(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"", "redis://user:secret@%zz", "redis://:secret@127.0.0.1:1/0"} {
		s := New(redisconn.NewClient(redisconn.Endpoint{URL: url}, "test", nil), Config{Partitions: 1})
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		err := s.Ping(ctx)
		if fault.KindOf(err) != fault.Unavailable || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", url, err)
		}
	}
}
