package redisstore

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/maintenance"
	"userconnectivity/handler/presence"
)

// clusterBenches makes the benches of TestOnACluster.
var clusterBenches struct {
	*testkit.Cluster
	n atomic.Int64
}

func endpointOf(c *testkit.Cluster) Endpoint { return Endpoint{URL: "redis://" + c.Primaries[0].Addr} }

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
		"Connections":                          testConnectionsToACluster,
		"ExpiredEventsOfEveryPrimary":          testExpiredEventsOfEveryPrimary,
		"NoCommandIsSentTwice":                 testNoCommandIsSentTwice,
		"EnsureNotificationsAsksEveryPrimary":  testEnsureNotificationsAsksEveryPrimary,
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

// testConnectionsToACluster: one connection for commands and one for the subscription to each primary.
func testConnectionsToACluster(t *testing.T) {
	b := setup(t)
	e := listen(t, b.store.client, 3)
	beats := beatsOf(usersOf(b.store))
	var running errgroup.Group
	over := make(chan struct{})
	for range 16 {
		running.Go(func() error {
			return until(over, func() error {
				_, err := b.store.Heartbeats(t.Context(), beats)
				return err
			})
		})
	}
	for range 50 {
		for _, primary := range clusterBenches.Primaries {
			ours := 0
			raw := primary.Client()
			found, err := connectionsOf(t.Context(), raw)
			_ = raw.Close()
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range found {
				if strings.HasSuffix(c.name, "/Connections") {
					ours++
				}
			}
			if ours > 2 {
				t.Errorf("%d connections to %s: %+v", ours, primary.Addr, found)
			}
		}
	}
	close(over)
	if err := running.Wait(); err != nil {
		t.Error(err)
	}
	if _, n, _ := b.store.client.Server(); n != 2 {
		t.Errorf("the client says it has %d connections to a primary", n)
	}
	if len(e.lost) > 0 {
		t.Error(<-e.lost)
	}
}

func testExpiredEventsOfEveryPrimary(t *testing.T) {
	b := setup(t)
	e := listen(t, b.store.client, 3)
	users := usersOf(b.store)
	for p, user := range users {
		if err := b.raw.Set(t.Context(), b.store.keys.lease(p, user, "s"), "", time.Millisecond).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for p, user := range users {
		e.hears(t, clusterBenches.Primaries[0], "expired "+b.store.keys.lease(p, user, "s"))
	}
}

func testEnsureNotificationsAsksEveryPrimary(t *testing.T) {
	b := setup(t)
	last := clusterBenches.Primaries[2].Client()
	defer last.Close()
	if err := last.ConfigSet(t.Context(), "notify-keyspace-events", "").Err(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if state, err := b.store.client.EnsureNotifications(t.Context()); state != NotificationsOn || err != nil {
			t.Fatal(state, err)
		}
	}
	if got := last.ConfigGet(t.Context(), "notify-keyspace-events").Val()["notify-keyspace-events"]; got != "xE" {
		t.Errorf("on the last primary: %q", got)
	}
}

// testNoCommandIsSentTwice: a command whose connection breaks may have been run, so it is not sent again.
func testNoCommandIsSentTwice(t *testing.T) {
	b := setup(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	client, err := b.store.client.connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	counter, never := b.store.keys.in(0, "counter"), b.store.keys.in(0, "never")
	server := clusterBenches.Owner(t, slotOf(b, 0))
	for name, send := range map[string]func() error{
		"a command": func() error { return client.BLPop(ctx, 0, never).Err() },
		"a pipeline": func() error {
			_, err := client.Pipelined(ctx, func(pipe redis.Pipeliner) error {
				pipe.Incr(ctx, counter)
				pipe.BLPop(ctx, 0, never)
				return nil
			})
			return err
		},
	} {
		if err := b.raw.Set(ctx, counter, 0, 0).Err(); err != nil {
			t.Fatal(err)
		}
		sent := make(chan error, 1)
		go func() { sent <- send() }()
		testkit.Eventually(t, name+" is under way", func(ctx context.Context, raw *redis.Client) (bool, error) {
			select {
			case err := <-sent:
				sent <- err
				return true, nil
			default:
			}
			found, err := connectionsOf(ctx, raw)
			for _, c := range found {
				if c.cmd == "blpop" {
					return true, raw.Do(ctx, "client", "kill", "id", c.id).Err()
				}
			}
			return false, err
		}, server)
		if err := <-sent; err == nil || isReply(err) || ctx.Err() != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if n := b.raw.Get(ctx, counter).Val(); name != "a command" && n != "1" {
			t.Errorf("%s was run %s times", name, n)
		}
	}
}

// TestClusterFollowsItsPrimaries: a failover and a new primary are followed, by commands and by the subscription.
func TestClusterFollowsItsPrimaries(t *testing.T) {
	t.Parallel()
	c := testkit.StartCluster(t, 3, 1)
	b := newBench(t, clusterClient(c), endpointOf(c), "uc", 16)
	b.store.client.rescan = 100 * time.Millisecond
	circuits := maintenance.NewSet(maintenance.SetConfig{Log: slog.New(slog.DiscardHandler)})
	b.store.client.circuit = circuits
	users := usersOf(b.store)
	expectCircuits := func(primaries ...*testkit.Redis) {
		t.Helper()
		var want []string
		for _, p := range primaries {
			want = append(want, p.Addr)
		}
		slices.Sort(want)
		testkit.Eventually(t, "a circuit for each primary", func(context.Context, *redis.Client) (bool, error) {
			got := slices.Sorted(maps.Keys(circuits.State().Nodes))
			return slices.Equal(got, want), fmt.Errorf("%q, want %q", got, want)
		}, c.Primaries[1])
	}
	e := listen(t, b.store.client, 3)
	hearsAll := func(round string) {
		t.Helper()
		for p, user := range users {
			key := b.store.keys.lease(p, user, round)
			testkit.Eventually(t, "heard expired "+key, func(ctx context.Context, _ *redis.Client) (bool, error) {
				// Again and again: what expires before the subscription has followed is told to nobody.
				err := b.raw.Set(ctx, key, "", time.Millisecond).Err()
				return e.times("expired "+key) > 0, err
			}, c.Primaries[1])
		}
	}
	beatAll := func(want presence.Change) {
		t.Helper()
		testkit.Eventually(t, "beats of all partitions", func(ctx context.Context, _ *redis.Client) (bool, error) {
			out, err := b.store.Heartbeats(ctx, beatsOf(users))
			if err != nil {
				if presence.KindOf(err) != presence.Unavailable {
					t.Fatal(err)
				}
				return false, err
			}
			for p, o := range out {
				if o.Change != want {
					t.Errorf("partition %d: %+v, want %s", p, o, want)
				}
			}
			return true, nil
		}, c.Primaries[1])
	}
	beatAll(presence.ChangeOnline)
	hearsAll("first")
	expectCircuits(c.Primaries...)

	c.Failover(t, c.Replicas[0])
	<-e.stands // with the new primary
	beatAll(presence.ChangeRenewed)
	hearsAll("after the failover")
	expectCircuits(c.Replicas[0], c.Primaries[1], c.Primaries[2])

	added := c.AddPrimary(t)
	slot := slotOf(b, 0)
	c.BeginMove(t, slot, c.Owner(t, slot), added)
	for source := c.Owner(t, slot); c.MoveKeys(t, slot, 100, source, added) > 0; {
	}
	c.EndMove(t, slot, added)
	<-e.stands
	beatAll(presence.ChangeRenewed)
	hearsAll("after a primary was added")
	expectCircuits(c.Replicas[0], c.Primaries[1], c.Primaries[2], added)
	if err := b.store.client.Subscription(); err != nil {
		t.Errorf("of a primary that is one no more: %v", err)
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
			if presence.KindOf(err) != presence.Unavailable {
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
		} else if presence.KindOf(err) != presence.Unavailable {
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
			{request: newRequest(ctx), beat: presence.Beat{User: moving, Session: presence.DefaultSession, TTL: seconds(60)}},
			{request: newRequest(ctx), beat: presence.Beat{User: other, Session: presence.DefaultSession, TTL: seconds(60)}},
		}
		for _, it := range items {
			it.prepare(b.store)
		}
		b.store.applyBeats(ctx, items)
		if err := items[0].err; err != nil {
			refused++
			if presence.KindOf(err) != presence.Unavailable {
				t.Errorf("step %d: %v", steps, err)
			}
		} else if items[0].outcome.Change != presence.ChangeRenewed {
			t.Errorf("step %d: %+v", steps, items[0].outcome)
		}
		if items[1].err != nil || items[1].outcome.Change != presence.ChangeRenewed {
			t.Errorf("step %d: a beat of another partition: %+v, %v", steps, items[1].outcome, items[1].err)
		}
		due, err := b.store.Due(ctx, b.partitions())
		if len(due) < len(users)-1 || err != nil && presence.KindOf(err) != presence.Unavailable {
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

func TestTLSCluster(t *testing.T) {
	t.Parallel()
	c := testkit.StartClusterTLS(t, testkit.Trusted(t), "localhost", 3)
	port := c.Primaries[0].Addr[strings.LastIndex(c.Primaries[0].Addr, ":")+1:]
	client := NewClient(Endpoint{Host: "localhost:" + port}, "test", nil)
	defer client.Close()
	store := New(client, Config{Partitions: 16})
	defer store.Close()
	out, err := store.Heartbeats(t.Context(), beatsOf(usersOf(store)))
	if err != nil {
		t.Fatal(err)
	}
	for p, o := range out {
		if o.Change != presence.ChangeOnline {
			t.Errorf("partition %d: %+v", p, o)
		}
	}
	listen(t, client, 3)
	if _, n, _ := client.Server(); n != 2 {
		t.Errorf("%d connections to a primary", n)
	}
}
