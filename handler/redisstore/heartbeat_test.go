package redisstore

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/redisconn"
)

// TestPartitionsStay: a user's partition is the same for ever, that of FNV-1a.
func TestPartitionsStay(t *testing.T) {
	t.Parallel()
	k := newKeys("uc", 1000)
	for i := range 1000 {
		user := strings.Repeat("é~", i%7) + fmt.Sprint(i)
		h := fnv.New32a()
		_, _ = h.Write([]byte(user))
		if got, want := k.partition(user), int(h.Sum32()%1000); got != want {
			t.Fatalf("partition of %s is %d, want %d", user, got, want)
		}
	}
}

// TestChunks: every item is in one chunk of its partition, in order, and a call takes maxItems at most.
func TestChunks(t *testing.T) {
	t.Parallel()
	const partitions = 5
	rng := rand.New(rand.NewPCG(1, 2))
	store := New(redisconn.NewClient(redisconn.Endpoint{}, "chunks", nil), Config{Partitions: partitions})
	for _, n := range []int{0, 1, 2, maxItems, maxItems + 1, 1000, 3 * maxItems * partitions} {
		items := make([]*beatItem, n)
		for i := range items {
			// The last partition has none, and one has most.
			items[i] = &beatItem{partition: min(rng.IntN(10), partitions-2), renewalArg: renewalArg{at: int64(i)}}
		}
		chunks := chunksOf(items, partitions, func(it *beatItem) int { return it.partition })
		inOrder := func(chunks []chunk[*beatItem]) (total int) {
			t.Helper()
			var last [partitions]int64
			for _, ch := range chunks {
				if len(ch.items) == 0 || len(ch.items) > maxItems {
					t.Errorf("a chunk of %d items has %d", n, len(ch.items))
				}
				for _, it := range ch.items {
					if it.partition != ch.partition || it.at < last[ch.partition] {
						t.Fatalf("item %d of partition %d comes in a chunk of %d after %d", it.at, it.partition, ch.partition, last[ch.partition])
					}
					last[ch.partition] = it.at
				}
				total += len(ch.items)
			}
			return total
		}
		if got := inOrder(chunks); got != n {
			t.Errorf("%d items of %d", got, n)
		}
		for _, together := range []bool{false, true} {
			renewals := store.renewals(chunks, together)
			if want := (n + maxItems - 1) / maxItems; together && len(renewals) != want || !together && len(renewals) != len(chunks) {
				t.Errorf("%d calls for %d items, together %v", len(renewals), n, together)
			}
			var all []chunk[*beatItem]
			for _, r := range renewals {
				all = append(all, r.chunks...)
			}
			if got := inOrder(all); got != n {
				t.Errorf("%d items of %d in calls, together %v", got, n, together)
			}
		}
	}
}

// calls counts the script calls since the last look.
func (b *bench) calls() (n int) {
	b.t.Helper()
	text, err := b.raw.Info(b.t.Context(), "commandstats").Result()
	if err == nil {
		err = b.raw.Do(b.t.Context(), "config", "resetstat").Err()
	}
	if err != nil {
		b.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(text, "cmdstat_evalsha:")
	_, _ = fmt.Sscanf(rest, "calls=%d", &n)
	return n
}

// TestBeatsOfAllPartitionsTogether: renewals of many partitions are one call of a script on one server. A partition
// with a fault fails alone.
func TestBeatsOfAllPartitionsTogether(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t)
	b := newBench(t, server.Client(), redisconn.Endpoint{URL: server.URL()}, "uc", 16)
	users := usersOf(b.store)
	beats := beatsOf(users)
	if _, err := b.store.Heartbeats(t.Context(), beats); err != nil {
		t.Fatal(err)
	}
	b.calls()
	out, err := b.store.Heartbeats(t.Context(), beatsOf(users))
	if err != nil {
		t.Fatal(err)
	}
	if n := b.calls(); n != 1 {
		t.Errorf("%d calls of a script renew %d sessions", n, len(users))
	}
	for p, o := range out {
		want := b.user(users[p])
		if o.Change != presence.ChangeRenewed || o.Epoch != want.Epoch || !o.ExpiresAt.Equal(want.Sessions[0].ExpiresAt) {
			t.Errorf("partition %d: %+v, but the record has %+v", p, o, want)
		}
	}

	const broken = 3
	if err := b.raw.Set(t.Context(), b.store.keys.in(broken, "due"), "junk", 0).Err(); err != nil {
		t.Fatal(err)
	}
	items := make([]*beatItem, len(users))
	for i, beat := range beatsOf(users) {
		items[i] = &beatItem{beat: beat}
		items[i].prepare(b.store)
	}
	b.store.applyBeats(t.Context(), items)
	for p, it := range items {
		if failed := it.Err != nil; failed != (p == broken) {
			t.Errorf("partition %d: %v", p, it.Err)
		}
	}
}

// TestOneAddressOfACluster: where a server is a cluster but does not say so, as behind a proxy, and refuses scripts with
// keys of several slots, each partition gets a call of its own.
func TestOneAddressOfACluster(t *testing.T) {
	t.Parallel()
	c := testkit.StartCluster(t, 1, 0)
	raw := c.Primaries[0].Client()
	// Who may ask neither INFO nor CLUSTER SLOTS is not told that this is a cluster.
	if err := raw.Do(t.Context(), "acl", "setuser", "app", "on", ">secret", "~*", "&*", "+@all", "-info", "-cluster").Err(); err != nil {
		t.Fatal(err)
	}
	b := newBench(t, raw, redisconn.Endpoint{URL: "redis://app:secret@" + c.Primaries[0].Addr}, "uc", 16)
	users := usersOf(b.store)
	for _, want := range []presence.Change{presence.ChangeOnline, presence.ChangeRenewed, presence.ChangeRenewed} {
		b.calls()
		out, err := b.store.Heartbeats(t.Context(), beatsOf(users))
		if err != nil {
			t.Fatal(err)
		}
		for p, o := range out {
			if o.Change != want {
				t.Errorf("partition %d: %+v, want %s", p, o, want)
			}
		}
	}
	if b.store.client.Together() || !b.store.client.OneServer() {
		t.Fatal("the server did not refuse, or was known as a cluster")
	}
	if n := b.calls(); n != 16 {
		t.Errorf("%d calls renew the sessions of 16 partitions", n)
	}
}

// TestUnexpectedAnswers: what is no answer of renew.lua fails the beats and changes no outcome.
func TestUnexpectedAnswers(t *testing.T) {
	t.Parallel()
	for _, answer := range []any{
		nil, int64(3), "", "1700000000000", "1700000000000\n0\n5\n6\n7", "x\n0\n5\n6", "1700000000000\nx\n5\n6", "1700000000000\n0\nx\n6",
		"1700000000000\n0\n5,x\n6",
		[]any{"1700000000000", "0", "5", "6"},
	} {
		r := renewal{Call: &redisconn.Call{Cmd: redis.NewCmd(context.Background())}, Dating: redisconn.NewClock().Dating(), chunks: []chunk[*beatItem]{{items: []*beatItem{{}, {}}}}}
		r.Cmd.SetVal(answer)
		if err := r.read(); err == nil {
			t.Errorf("%v was read as %+v", answer, *r.chunks[0].items[0])
		}
		if it := r.chunks[0].items[0]; it.renewed && it.outcome.Epoch == 0 {
			t.Errorf("%v renewed without an epoch", answer)
		}
	}
}

// TestClaimsOfAllKinds: in one call are sessions that end alone, one of several of a user, one that was renewed, junk,
// and a user in a second life of the data: each has the event that it would have alone, in the order of the deadlines.
func TestClaimsOfAllKinds(t *testing.T) {
	t.Parallel()
	b := setup(t)
	at := time.Now()
	for i, beat := range []presence.Beat{
		{User: "plain"},
		{User: "meta", Meta: []byte(`{"a":1}`), Groups: []string{"g", "h"}},
		{User: "named", Session: "tab", TTL: seconds(8), Grace: 2 * time.Second},
		{User: "two", Session: "a"},
		{User: "two", Session: "b"},
		{User: "renewed"},
		{User: "ended", Session: "before"},
		{User: "last"},
	} {
		beat.At = at.Add(time.Duration(i-20) * 10 * time.Millisecond) // the order of the deadlines
		b.beat(beat)
	}
	b.leave(presence.Leave{User: "ended", Session: "before"})
	b.beat(presence.Beat{User: "ended", Session: "tab", At: at.Add(-50 * time.Millisecond)})
	if err := b.raw.ZAdd(t.Context(), b.store.keys.in(0, "due"), redis.Z{Score: 1, Member: "junk"}, redis.Z{Score: 2, Member: "no/body"}).Err(); err != nil {
		t.Fatal(err)
	}
	b.events()
	b.pass(time.Minute)
	due, err := b.store.Due(t.Context(), []int{0})
	if err != nil {
		t.Fatal(err)
	}
	b.beat(presence.Beat{User: "renewed"})
	claims, err := b.store.Claim(t.Context(), due)
	if err != nil || len(claims.Late) != 7 || claims.Lost != 1 || claims.Quarantined != 2 {
		t.Fatalf("%+v, %v", claims, err)
	}
	var got []string
	for _, e := range b.events() {
		got = append(got, fmt.Sprintf("%s %s/%s %s %d %v %s", e.Type, e.User, e.Session, e.Reason, len(e.Sessions), e.Groups, e.Meta))
		if e.Type == presence.UserOffline {
			u := b.user(e.User)
			if u == nil || u.Status != presence.Offline || u.Epoch != e.Epoch || !u.LastSeen.Equal(e.LastSeen) {
				t.Errorf("%s is %+v after %+v", e.User, u, e)
			}
		}
	}
	want := []string{
		"user.offline plain/default expired 0 [] ",
		`user.offline meta/default expired 0 [g h] {"a":1}`,
		"user.offline named/tab expired 0 [] ",
		"session.ended two/a expired 1 [] ",
		"user.offline two/b expired 0 [] ",
		"user.offline last/default expired 0 [] ",
		"user.offline ended/tab expired 0 [] ",
	}
	if a, b := strings.Join(got, "\n"), strings.Join(want, "\n"); a != b {
		t.Errorf("events:\n%s\nwant:\n%s", a, b)
	}
	if again, err := b.store.Claim(t.Context(), due); err != nil || len(again.Late) != 0 {
		t.Errorf("the second claim took %+v, %v", again, err)
	}
	if n := len(b.events()); n != 0 {
		t.Errorf("%d events more", n)
	}
	b.beat(presence.Beat{User: "named", Session: "tab"})
	if err := b.raw.HSet(t.Context(), b.store.keys.in(0, "meta"), "n", "junk").Err(); err != nil {
		t.Fatal(err)
	}
	b.pass(time.Minute)
	if due, err = b.store.Due(t.Context(), []int{0}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.store.Claim(t.Context(), due); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("claimed with a counter that cannot count: %v", err)
	}
	if u := b.user("named"); u.Status != presence.Online {
		t.Errorf("a claim that failed left %+v", u)
	}
}

// TestJunkInPlaceOfTheOffset is read as none, and spoils no renewal of a call: not even those of its own partition.
func TestJunkInPlaceOfTheOffset(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.beat(presence.Beat{User: "u", Session: "default"})
	if err := b.raw.HSet(t.Context(), b.store.keys.in(0, "meta"), "offset", "junk").Err(); err != nil {
		t.Fatal(err)
	}
	if o := b.beat(presence.Beat{User: "u", Session: "default"}); o.Change != presence.ChangeRenewed {
		t.Errorf("a beat was %+v", o)
	}
}
