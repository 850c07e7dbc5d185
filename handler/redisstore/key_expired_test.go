package redisstore

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/presence"
)

// expired reports keys and returns how many became events.
func expired(t *testing.T, s *Store, keys ...string) int {
	t.Helper()
	n, err := s.KeysExpired(t.Context(), keys)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestKeyExpired: an event has the key and nothing of a user, and the next expiry of the key is another event.
func TestKeyExpired(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.beat(presence.Beat{User: "cart"})
	started := b.events()
	if got := expired(t, b.store, "cart", "a\nb", "cart"); got != 3 {
		t.Fatalf("%d were written", got)
	}
	entries, err := b.store.Outbox("test").Next(t.Context(), 0, 10)
	if err != nil || len(entries) != 3 {
		t.Fatal(entries, err)
	}
	ids := map[string]bool{}
	for i, key := range []string{"cart", "a\nb", "cart"} {
		e := entries[i].Event
		want := presence.Event{
			ID: presence.KeyEventID(key, e.Epoch, int64(i+2)), Type: presence.KeyExpired, Subject: presence.Subject{Key: key},
			Body: presence.Body{
				Epoch: e.DetectedAt.UnixMilli(), Reason: presence.ReasonExpired,
				DetectedAt: e.DetectedAt, Life: started[0].Life,
			},
			Traceparent: presence.TraceparentOf(e.ID),
		}
		if diff := cmp.Diff(want, e); diff != "" || entries[i].N != int64(i+2) || e.Epoch < started[0].Epoch {
			t.Errorf("event %d, number %d (-want +got):\n%s", i, entries[i].N, diff)
		}
		ids[e.ID] = true
	}
	if len(ids) != 3 {
		t.Errorf("ids %v", ids)
	}
}

// TestManyKeysExpired in all partitions, in more than one call for each, without a life of the data before.
func TestManyKeysExpired(t *testing.T) {
	t.Parallel()
	b := setup(t)
	s := New(b.store.client, Config{Prefix: b.prefix + "many", Partitions: 4})
	keys := map[string]int{}
	var list []string
	for i := range 5 * maxItems {
		list = append(list, fmt.Sprint("key-", i))
		keys[list[i]] = s.keys.partition(list[i])
	}
	if got := expired(t, s, list...); got != len(list) {
		t.Fatalf("%d were written", got)
	}
	for p := range 4 {
		entries, err := s.Outbox("test").Next(t.Context(), p, len(list))
		if err != nil {
			t.Fatal(err)
		}
		for i, e := range entries {
			if at, ok := keys[e.Event.Key]; !ok || at != p || e.N != int64(i+1) || e.Event.Life == "" {
				t.Errorf("partition %d has %+v", p, e)
			}
			delete(keys, e.Event.Key)
		}
	}
	if len(keys) > 0 {
		t.Errorf("%d keys have no event", len(keys))
	}
}

// TestListenerLease: one of two Stores writes, the other does when the first gives up or is gone.
func TestListenerLease(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	one, two := b.store, New(b.store.client, Config{Prefix: b.prefix, Partitions: 1})
	lease := b.store.keys.in(0, "listener")
	who := func(want string) {
		t.Helper()
		if got := b.raw.Get(ctx, lease).Val(); got != want {
			t.Fatalf("the lease is held by %q, want %q", got, want)
		}
	}
	writes := func(one, two int, s *Store, other *Store) {
		t.Helper()
		if a, b := expired(t, s, "k"), expired(t, other, "k"); a != one || b != two {
			t.Fatalf("%d and %d were written, want %d and %d", a, b, one, two)
		}
	}
	if err := two.HoldListener(ctx, ListenerLease); err != nil {
		t.Fatal(err)
	}
	if n := b.raw.Exists(ctx, one.keys.outbox(0), one.keys.in(0, "meta")).Val(); n != 0 {
		t.Error("holding the lease writes more than the lease")
	}
	writes(0, 1, one, two)
	who(two.args[0].(string))
	if left := b.raw.PTTL(ctx, lease).Val(); left <= 0 || left > ListenerLease {
		t.Errorf("the lease is for %v", left)
	}
	// A call of the other does not renew it, one of its own does.
	b.raw.PExpire(ctx, lease, ListenerLease/2)
	writes(0, 0, one, one)
	if left := b.raw.PTTL(ctx, lease).Val(); left > ListenerLease/2 {
		t.Errorf("the lease was renewed by another: %v", left)
	}
	writes(1, 0, two, one)
	if left := b.raw.PTTL(ctx, lease).Val(); left <= ListenerLease/2 {
		t.Errorf("the lease was not renewed: %v", left)
	}
	// One cannot give up what it does not hold.
	if err := one.HoldListener(ctx, time.Millisecond); err != nil {
		t.Fatal(err)
	}
	who(two.args[0].(string))
	if err := two.HoldListener(ctx, time.Millisecond); err != nil {
		t.Fatal(err)
	}
	for begin := time.Now(); b.raw.Exists(ctx, lease).Val() != 0; { // for a millisecond
		if time.Since(begin) > ListenerLease {
			t.Fatal("the lease was not given up")
		}
	}
	writes(1, 0, one, two)
	who(one.args[0].(string))
	b.raw.Del(ctx, lease) // as if its time were over
	writes(1, 0, two, one)
}

// TestKeyExpiredFailsWhole: without memory, or with junk in its place, nothing is written.
func TestKeyExpiredFailsWhole(t *testing.T) {
	t.Parallel()
	b := setupOn(t, testkit.Start(t), "uc")
	ctx := t.Context()
	b.beat(presence.Beat{User: "u"})
	before := b.raw.HGetAll(ctx, b.store.keys.in(0, "meta")).Val()
	fails := func(why, want string) {
		t.Helper()
		if n, err := b.store.KeysExpired(ctx, []string{"k"}); fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %d written, %v", why, n, err)
		}
		if diff := cmp.Diff(before, b.raw.HGetAll(ctx, b.store.keys.in(0, "meta")).Val()); diff != "" {
			t.Errorf("%s: the meta hash changed: %s", why, diff)
		}
		if n := b.raw.XLen(ctx, b.store.keys.outbox(0)).Val(); n != 1 {
			t.Errorf("%s: %d entries in the outbox", why, n)
		}
	}
	b.raw.ConfigSet(ctx, "maxmemory", "1")
	fails("full", "full")
	b.raw.ConfigSet(ctx, "maxmemory", "0")
	b.raw.LPush(ctx, b.store.keys.in(0, "listener"), "junk")
	fails("junk in the lease", "WRONGTYPE")
	b.raw.Del(ctx, b.store.keys.in(0, "listener"))
	if n := expired(t, b.store, "k"); n != 1 {
		t.Errorf("%d written afterwards", n)
	}
}

func TestOurs(t *testing.T) {
	t.Parallel()
	s := New(nil, Config{Prefix: "uc", Partitions: 2})
	for key, want := range map[string]bool{
		"uc{p0}alice": true, "uc{p1}/lease/alice/default": true, "uc{p0}/listener": true, "uc/partitions": true, "uc{p99}x": true, "uc{p0}": true, "uc/": true,
		"": false, "uc": false, "ucx": false, "uc:cart": false, "uc{p}x": false, "uc{px}y": false, "uc{p-1}y": false, "uc{p0": false, "xuc{p0}alice": false, "{p0}alice": false, "/partitions": false,
	} {
		if got := s.Ours(key); got != want {
			t.Errorf("%q: %v, want %v", key, got, want)
		}
	}
}

// TestPassesOverTheUnacknowledged: parts of them, each once, also when the ones before stay.
func TestPassesOverTheUnacknowledged(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const n = 7
	for i := range n {
		expired(t, b.store, fmt.Sprint("k", i))
	}
	ctx, o := t.Context(), b.store.Outbox("relay")
	if got, err := o.Next(ctx, 0, 100); err != nil || len(got) != n {
		t.Fatal(got, err)
	}
	var own, taken []string
	for after := ""; ; {
		entries, err := o.Own(ctx, 0, after, 3)
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) == 0 {
			break
		}
		for _, e := range entries {
			own = append(own, e.Event.Key)
		}
		after = entries[len(entries)-1].StreamID
	}
	for from, more := "", true; more; {
		entries, next, err := o.TakeOver(ctx, 0, 0, nil, from, 3)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			taken = append(taken, e.Event.Key)
		}
		from, more = next, next != ""
	}
	want := []string{"k0", "k1", "k2", "k3", "k4", "k5", "k6"}
	if !cmp.Equal(own, want) || !cmp.Equal(taken, want) {
		t.Errorf("own %v, taken over %v", own, taken)
	}
}
