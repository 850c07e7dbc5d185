package redisstore

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"userconnectivity/handler/internal/testkit"
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
		"OneSessionFromBeatToExpiry":              TestOneSessionFromBeatToExpiry,
		"SeveralSessions":                         TestSeveralSessions,
		"BeatInTheGraceCancelsALeave":             TestBeatInTheGraceCancelsALeave,
		"Leave":                                   TestLeave,
		"LateBeatsAndLeaves":                      TestLateBeatsAndLeaves,
		"SessionLimit":                            TestSessionLimit,
		"AChangedNumberOfPartitionsIsRefused":     TestAChangedNumberOfPartitionsIsRefused,
		"TakeOverOfADeadRelaysEntries":            TestTakeOverOfADeadRelaysEntries,
		"ConcurrentBeatsLeavesSweepsAndRelays":    TestConcurrentBeatsLeavesSweepsAndRelays,
		"ScriptsAreLoadedAgain":                   testScriptsAreLoadedAgainOnEachPrimary,
		"Connections":                             testConnectionsToACluster,
		"ExpiredEventsOfEveryPrimary":             testExpiredEventsOfEveryPrimary,
		"EnsureNotificationsAsksEveryPrimary":     testEnsureNotificationsAsksEveryPrimary,
		"ARefusedPartitionNumberLeavesTheOthers1": TestBeatInTheGraceCancelsALeave,
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
	for p, user := range usersOf(b.store) {
		lease := b.store.keys.lease(p, user, "s")
		if err := b.raw.Set(t.Context(), lease, "", time.Millisecond).Err(); err != nil {
			t.Fatal(err)
		}
		e.hears(t, clusterBenches.Primaries[0], "expired "+lease)
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

// TestClusterFollowsItsPrimaries: a failover and a new primary are followed, by commands and by the subscription.
func TestClusterFollowsItsPrimaries(t *testing.T) {
	t.Parallel()
	c := testkit.StartCluster(t, 3, 1)
	b := newBench(t, clusterClient(c), endpointOf(c), "uc", 16)
	users := usersOf(b.store)
	e := listen(t, b.store.client, 3)
	hearsAll := func(round string) {
		t.Helper()
		for p, user := range users {
			lease := b.store.keys.lease(p, user, round)
			if err := b.raw.Set(t.Context(), lease, "", time.Millisecond).Err(); err != nil {
				t.Fatal(err)
			}
			e.hears(t, c.Primaries[1], "expired "+lease)
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

	c.Failover(t, c.Replicas[0])
	<-e.stands // with the new primary
	beatAll(presence.ChangeRenewed)
	hearsAll("after the failover")

	added := c.AddPrimary(t)
	slot := slotOf(b, 0)
	c.BeginMove(t, slot, c.Owner(t, slot), added)
	for source := c.Owner(t, slot); c.MoveKeys(t, slot, 100, source, added) > 0; {
	}
	c.EndMove(t, slot, added)
	<-e.stands
	beatAll(presence.ChangeRenewed)
	hearsAll("after a primary was added")
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
	users := usersOf(b.store)
	for _, user := range users {
		b.beat(presence.Beat{User: user})
		b.beat(presence.Beat{User: user, Session: "two"})
	}
	slot := slotOf(b, 0)
	source := c.Owner(t, slot)
	target := c.Primaries[0]
	if target == source {
		target = c.Primaries[1]
	}
	c.BeginMove(t, slot, source, target)
	steps, refused := 0, 0
	b.pass(11 * time.Second) // everybody is overdue
	try := func() {
		t.Helper()
		steps++
		ctx := t.Context()
		if out, err := b.store.Heartbeats(ctx, []presence.Beat{{User: users[0], Session: presence.DefaultSession, TTL: seconds(10)}}); err == nil {
			if out[0].Change != presence.ChangeRenewed {
				t.Errorf("step %d: %+v", steps, out[0])
			}
		} else if refused++; presence.KindOf(err) != presence.Unavailable {
			t.Errorf("step %d: beat: %v", steps, err)
		}
		if out, err := b.store.Heartbeats(ctx, []presence.Beat{{User: users[1], Session: presence.DefaultSession, TTL: seconds(10)}}); err != nil || out[0].Change != presence.ChangeRenewed {
			t.Errorf("step %d: a beat of another partition: %+v, %v", steps, out, err)
		}
		if due, err := b.store.Due(ctx, []int{0}); err == nil && len(due[0].Members) > 0 {
			due[0].Members = nil // claimed below
		} else if err != nil && presence.KindOf(err) != presence.Unavailable {
			t.Errorf("step %d: due: %v", steps, err)
		}
		if known, err := b.store.Users(ctx, users[:1]); err != nil || known[0] == nil || known[0].Status != presence.Online {
			t.Errorf("step %d: users: %+v, %v", steps, known, err)
		}
	}
	try()
	for c.MoveKeys(t, slot, 1, source, target) > 0 {
		try()
	}
	try()
	c.EndMove(t, slot, target)
	if err := b.store.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	out, err := b.store.Heartbeats(t.Context(), []presence.Beat{{User: users[0], Session: presence.DefaultSession, TTL: seconds(10)}})
	if err != nil || out[0].Change != presence.ChangeRenewed {
		t.Fatalf("after the move: %+v, %v", out, err)
	}
	claims := b.sweep()
	if want := 2*len(users) - 2; len(claims.Late) != want {
		t.Errorf("%d sessions claimed, want %d: %+v", len(claims.Late), want, claims)
	}
	perUser := map[string][]presence.Event{}
	for _, e := range b.events() {
		perUser[e.User] = append(perUser[e.User], e)
	}
	if got, want := types(perUser[users[0]]), "user.online(beat) default, session.started(beat) two, session.ended(expired) two"; got != want {
		t.Errorf("events of the user whose slot moved: %s, want %s", got, want)
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
	var mu sync.Mutex
	_ = &mu
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
