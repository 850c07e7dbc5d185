package redisstore

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/redisconn"
)

// clusterBenches makes the benches of TestOnACluster.
var clusterBenches struct {
	*testkit.Cluster
	n atomic.Int64
}

func endpointOf(c *testkit.Cluster) redisconn.Endpoint {
	return redisconn.Endpoint{URL: "redis://" + c.Primaries[0].Addr}
}

func clusterClient(c *testkit.Cluster) *redis.ClusterClient {
	return redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{c.Primaries[0].Addr}, ClientName: "testkit"})
}

func setupOnCluster(t *testing.T) *bench {
	t.Helper()
	c := clusterBenches.Cluster
	return newBench(t, clusterClient(c), endpointOf(c), fmt.Sprintf("c%d:", clusterBenches.n.Add(1)), 16)
}

// TestOnACluster runs tests again with 16 partitions on a cluster of three primaries.
func TestOnACluster(t *testing.T) {
	clusterBenches.Cluster = testkit.StartCluster(t, 3, 0)
	for name, test := range map[string]func(*testing.T){
		"OneSessionFromBeatToExpiry":           TestOneSessionFromBeatToExpiry,
		"SeveralSessions":                      TestSeveralSessions,
		"BeatInTheGraceCancelsALeave":          TestBeatInTheGraceCancelsALeave,
		"Leave":                                TestLeave,
		"LateBeatsAndLeaves":                   TestLateBeatsAndLeaves,
		"SessionLimit":                         TestSessionLimit,
		"AChangedNumberOfPartitionsIsRefused":  TestAChangedNumberOfPartitionsIsRefused,
		"TakeOverOfADeadRelaysEntries":         TestTakeOverOfADeadRelaysEntries,
		"ConcurrentBeatsLeavesSweepsAndRelays": TestConcurrentBeatsLeavesSweepsAndRelays,
		"ScriptsAreLoadedAgain":                testScriptsAreLoadedAgainOnEachPrimary,
	} {
		t.Run(name, test)
	}
}

// usersOf returns one user of each partition.
func usersOf(s *Store) []string {
	users := make([]string, s.Partitions())
	for n, found := 0, 0; found < len(users); n++ {
		user := fmt.Sprintf("user-%d", n)
		if p := s.keys.partition(user); users[p] == "" {
			users[p], found = user, found+1
		}
	}
	return users
}

func beatsOf(users []string) []presence.Beat {
	beats := make([]presence.Beat, len(users))
	for i, user := range users {
		beats[i] = presence.Beat{User: user, Session: "s", TTL: seconds(60)}
	}
	return beats
}

func testScriptsAreLoadedAgainOnEachPrimary(t *testing.T) {
	b := setup(t)
	beats := beatsOf(usersOf(b.store))
	for _, want := range []presence.Change{presence.ChangeOnline, presence.ChangeRenewed} {
		if err := b.raw.(*redis.ClusterClient).ForEachMaster(t.Context(), func(ctx context.Context, c *redis.Client) error {
			return c.ScriptFlush(ctx).Err()
		}); err != nil {
			t.Fatal(err)
		}
		out, err := b.store.Heartbeats(t.Context(), beats)
		if err != nil {
			t.Fatal(err)
		}
		for p, o := range out {
			if o.Change != want {
				t.Errorf("partition %d: %+v, want %s", p, o, want)
			}
		}
	}
}

func slotOf(b *bench, p int) int {
	return int(b.raw.ClusterKeySlot(b.t.Context(), b.store.keys.in(p, "meta")).Val())
}

// TestASlotOnTheMove: while half of a partition's keys are at another primary a call gives the right result or
// Unavailable, nothing is applied by half, the other partitions are served, and afterwards everything is.
func TestASlotOnTheMove(t *testing.T) {
	t.Parallel()
	c := testkit.StartCluster(t, 3, 0)
	b := newBench(t, clusterClient(c), endpointOf(c), "uc", 16)
	ctx := t.Context()
	users := usersOf(b.store)
	for _, user := range users {
		b.beat(presence.Beat{User: user})
		b.beat(presence.Beat{User: user, Session: "two"})
	}
	moving, other := users[0], users[1]
	slot := slotOf(b, 0)
	source := c.Owner(t, slot)
	target := c.Primaries[0]
	if target == source {
		target = c.Primaries[1]
	}
	relay := b.store.Outbox("relay")
	relayed := map[string]presence.Event{}
	var unacknowledged []Entry
	take := func(entries []Entry, err error) {
		t.Helper()
		if err != nil {
			if fault.KindOf(err) != fault.Unavailable {
				t.Error(err)
			}
			return
		}
		for _, e := range entries {
			relayed[e.StreamID] = e.Event
		}
		unacknowledged = append(unacknowledged, entries...)
		if len(unacknowledged) == 0 {
			return
		}
		if err := relay.Acknowledge(ctx, 0, unacknowledged); err == nil {
			unacknowledged = nil
		} else if fault.KindOf(err) != fault.Unavailable {
			t.Error(err)
		}
	}
	b.pass(9 * time.Second)
	b.beat(presence.Beat{User: moving, TTL: seconds(60)})
	c.BeginMove(t, slot, source, target)
	b.pass(2 * time.Second) // everybody is overdue, but for that session
	steps, refused := 0, 0
	try := func() {
		t.Helper()
		steps++
		// In one flush, as beats of different requests are.
		items := []*beatItem{
			{Request: redisconn.NewRequest(ctx), beat: presence.Beat{User: moving, Session: presence.DefaultSession, TTL: seconds(60)}},
			{Request: redisconn.NewRequest(ctx), beat: presence.Beat{User: other, Session: presence.DefaultSession, TTL: seconds(60)}},
		}
		for _, it := range items {
			it.prepare(b.store)
		}
		b.store.applyBeats(ctx, items)
		if err := items[0].Err; err != nil {
			refused++
			if fault.KindOf(err) != fault.Unavailable {
				t.Errorf("step %d: %v", steps, err)
			}
		} else if items[0].outcome.Change != presence.ChangeRenewed {
			t.Errorf("step %d: %+v", steps, items[0].outcome)
		}
		if items[1].Err != nil || items[1].outcome.Change != presence.ChangeRenewed {
			t.Errorf("step %d: a beat of another partition: %+v, %v", steps, items[1].outcome, items[1].Err)
		}
		due, err := b.store.Due(ctx, b.partitions())
		if len(due) < len(users)-1 || err != nil && fault.KindOf(err) != fault.Unavailable {
			t.Errorf("step %d: %d partitions looked at, %v", steps, len(due), err)
		}
		if known, err := b.store.Users(ctx, users); err != nil || known[0] == nil || known[0].Status != presence.Online {
			t.Errorf("step %d: users: %+v, %v", steps, known, err)
		}
		take(relay.Next(ctx, 0, 1))
	}
	try()
	for c.MoveKeys(t, slot, 1, source, target) > 0 {
		try()
	}
	try()
	c.EndMove(t, slot, target)
	try()
	if b.beat(presence.Beat{User: moving, TTL: seconds(60)}).Change != presence.ChangeRenewed {
		t.Error("the first beat after the move")
	}
	if claims := b.sweep(); len(claims.Late) != 2*len(users)-2 {
		t.Errorf("%d sessions claimed, want %d: %+v", len(claims.Late), 2*len(users)-2, claims)
	}
	take(relay.Own(ctx, 0, "", 100))
	take(relay.Next(ctx, 0, 100))
	var events []presence.Event
	for _, id := range slices.Sorted(maps.Keys(relayed)) {
		events = append(events, relayed[id])
	}
	if got, want := types(events), "user.online(beat) default, session.started(beat) two, session.ended(expired) two"; got != want {
		t.Errorf("events of the partition that moved: %s, want %s", got, want)
	}
	if n := b.raw.XLen(ctx, b.store.keys.outbox(0)).Val(); n != 0 {
		t.Errorf("%d entries are left in its outbox", n)
	}
	if refused == 0 || refused == steps {
		t.Errorf("%d of %d beats refused: the move was not seen", refused, steps)
	}
	t.Logf("%d steps, %d beats refused", steps, refused)
}
