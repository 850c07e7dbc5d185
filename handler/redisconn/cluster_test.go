package redisconn

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/maintenance"
)

func endpointOf(c *testkit.Cluster) Endpoint { return Endpoint{URL: "redis://" + c.Primaries[0].Addr} }

// clusterOf returns a client beside those under test.
func clusterOf(t *testing.T, c *testkit.Cluster) *redis.ClusterClient {
	t.Helper()
	raw := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{c.Primaries[0].Addr}, ClientName: "testkit"})
	t.Cleanup(func() { _ = raw.Close() })
	return raw
}

// storeOn returns a countStore with keys in 16 slots of a cluster.
func storeOn(t *testing.T, c *testkit.Cluster) *countStore {
	t.Helper()
	client := NewClient(endpointOf(c), t.Name(), nil)
	t.Cleanup(func() { _ = client.Close() })
	store := newCountStore(client, 16)
	t.Cleanup(store.close)
	return store
}

func TestACluster(t *testing.T) {
	c := testkit.StartCluster(t, 3, 0)
	for name, test := range map[string]func(*testing.T, *testkit.Cluster){
		"Connections":                         testConnectionsToACluster,
		"ExpiredEventsOfEveryPrimary":         testExpiredEventsOfEveryPrimary,
		"NoCommandIsSentTwice":                testNoCommandIsSentTwice,
		"EnsureNotificationsAsksEveryPrimary": testEnsureNotificationsAsksEveryPrimary,
	} {
		t.Run(name, func(t *testing.T) { test(t, c) })
	}
}

// testConnectionsToACluster: one connection for commands and one for the subscription to each primary.
func testConnectionsToACluster(t *testing.T, cluster *testkit.Cluster) {
	store := storeOn(t, cluster)
	e := listen(t, store.client, 3)
	names := store.names()
	var running errgroup.Group
	over := make(chan struct{})
	for range 16 {
		running.Go(func() error {
			return testkit.Until(over, func() error {
				_, err := store.add(t.Context(), names...)
				return err
			})
		})
	}
	for range 50 {
		for _, primary := range cluster.Primaries {
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
	if _, n, _ := store.client.Server(); n != 2 {
		t.Errorf("the client says it has %d connections to a primary", n)
	}
	if len(e.lost) > 0 {
		t.Error(<-e.lost)
	}
}

func testExpiredEventsOfEveryPrimary(t *testing.T, cluster *testkit.Cluster) {
	store, raw := storeOn(t, cluster), clusterOf(t, cluster)
	e := listen(t, store.client, 3)
	names := store.names()
	for _, name := range names {
		if err := raw.Set(t.Context(), store.key(name), "", time.Millisecond).Err(); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range names {
		e.hears(t, cluster.Primaries[0], "expired "+store.key(name))
	}
}

func testEnsureNotificationsAsksEveryPrimary(t *testing.T, cluster *testkit.Cluster) {
	store := storeOn(t, cluster)
	last := cluster.Primaries[2].Client()
	defer last.Close()
	if err := last.ConfigSet(t.Context(), "notify-keyspace-events", "").Err(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if state, err := store.client.EnsureNotifications(t.Context()); state != NotificationsOn || err != nil {
			t.Fatal(state, err)
		}
	}
	if got := last.ConfigGet(t.Context(), "notify-keyspace-events").Val()["notify-keyspace-events"]; got != "xE" {
		t.Errorf("on the last primary: %q", got)
	}
}

// testNoCommandIsSentTwice: a command whose connection breaks may have been run, so it is not sent again.
func testNoCommandIsSentTwice(t *testing.T, cluster *testkit.Cluster) {
	store, other := storeOn(t, cluster), clusterOf(t, cluster)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	client, err := store.client.Connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const counter, never = "{sent}counter", "{sent}never"
	server := cluster.Owner(t, int(other.ClusterKeySlot(ctx, counter).Val()))
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
		if err := other.Set(ctx, counter, 0, 0).Err(); err != nil {
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
		if n := other.Get(ctx, counter).Val(); name != "a command" && n != "1" {
			t.Errorf("%s was run %s times", name, n)
		}
	}
}

// TestClusterFollowsItsPrimaries: a failover and a new primary are followed, by commands and by the subscription.
func TestClusterFollowsItsPrimaries(t *testing.T) {
	t.Parallel()
	c := testkit.StartCluster(t, 3, 1)
	store, raw := storeOn(t, c), clusterOf(t, c)
	store.client.rescan = 100 * time.Millisecond
	circuits := maintenance.NewSet(maintenance.SetConfig{Log: slog.New(slog.DiscardHandler)})
	store.client.circuit = circuits
	names := store.names()
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
	e := listen(t, store.client, 3)
	hearsAll := func(round string) {
		t.Helper()
		for _, name := range names {
			key := store.key(name) + round
			testkit.Eventually(t, "heard expired "+key, func(ctx context.Context, _ *redis.Client) (bool, error) {
				// Again and again: what expires before the subscription has followed is told to nobody.
				err := raw.Set(ctx, key, "", time.Millisecond).Err()
				return e.times("expired "+key) > 0, err
			}, c.Primaries[1])
		}
	}
	counted := make([]int64, len(names))
	addAll := func() {
		t.Helper()
		testkit.Eventually(t, "names of all slots are counted", func(ctx context.Context, _ *redis.Client) (bool, error) {
			now, err := store.add(ctx, names...)
			if err != nil {
				if fault.KindOf(err) != fault.Unavailable {
					t.Fatal(err)
				}
				return false, err
			}
			for i, n := range now {
				if n <= counted[i] {
					t.Errorf("%s was counted %d times before, now %d", names[i], counted[i], n)
				}
			}
			counted = now
			return true, nil
		}, c.Primaries[1])
	}
	addAll()
	hearsAll("first")
	expectCircuits(c.Primaries...)

	c.Failover(t, c.Replicas[0])
	<-e.stands // with the new primary
	addAll()
	hearsAll("after the failover")
	expectCircuits(c.Replicas[0], c.Primaries[1], c.Primaries[2])

	added := c.AddPrimary(t)
	slot := int(raw.ClusterKeySlot(t.Context(), store.key(names[0])).Val())
	c.BeginMove(t, slot, c.Owner(t, slot), added)
	for source := c.Owner(t, slot); c.MoveKeys(t, slot, 100, source, added) > 0; {
	}
	c.EndMove(t, slot, added)
	<-e.stands
	addAll()
	hearsAll("after a primary was added")
	expectCircuits(c.Replicas[0], c.Primaries[1], c.Primaries[2], added)
	if err := store.client.Subscription(); err != nil {
		t.Errorf("of a primary that is one no more: %v", err)
	}
}

func TestTLSCluster(t *testing.T) {
	t.Parallel()
	c := testkit.StartClusterTLS(t, testkit.Trusted(t), "localhost", 3)
	port := c.Primaries[0].Addr[strings.LastIndex(c.Primaries[0].Addr, ":")+1:]
	client := NewClient(Endpoint{Host: "localhost:" + port}, "test", nil)
	defer client.Close()
	store := newCountStore(client, 16)
	defer store.close()
	counted, err := store.add(t.Context(), store.names()...)
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range counted {
		if n != 1 {
			t.Errorf("name %d was counted %d times", i, n)
		}
	}
	listen(t, client, 3)
	if _, n, _ := client.Server(); n != 2 {
		t.Errorf("%d connections to a primary", n)
	}
}
