package testkit

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// Slots is how many hash slots a cluster has.
const Slots = 16384

// Cluster is a Redis Cluster of a test's own: real servers, joined by the test.
type Cluster struct {
	// Primaries are the nodes that began as primaries, each with an equal share of the slots, and what AddPrimary
	// added; Replicas those that began as replicas, in turn of the first, the second, ... primary.
	Primaries, Replicas []*Redis
	start               func(t testing.TB, args ...string) *Redis
	args                []string
}

// StartCluster starts a cluster that serves; args override the settings of its servers. It is stopped when the test
// ends.
func StartCluster(t testing.TB, primaries, replicas int, args ...string) *Cluster {
	t.Helper()
	return startCluster(t, Start, primaries, replicas, args)
}

// StartClusterTLS is StartCluster for servers that speak TLS alone. Their certificate is made out to one name, and
// they announce themselves by address.
func StartClusterTLS(t testing.TB, a *Authority, name string, primaries int, args ...string) *Cluster {
	t.Helper()
	start := func(t testing.TB, args ...string) *Redis { return StartTLS(t, a, []string{name}, args...) }
	return startCluster(t, start, primaries, 0, args)
}

func startCluster(t testing.TB, start func(testing.TB, ...string) *Redis, primaries, replicas int, args []string) *Cluster {
	t.Helper()
	c := &Cluster{start: start, args: append([]string{
		"--cluster-enabled", "yes", "--cluster-node-timeout", "2000",
		"--cluster-allow-replica-migration", "no", "--repl-diskless-sync-delay", "0",
	}, args...)}
	for range primaries {
		c.Primaries = append(c.Primaries, c.start(t, c.args...))
	}
	for range replicas {
		c.Replicas = append(c.Replicas, c.start(t, c.args...))
	}
	for i, r := range c.nodes() {
		c.do(t, r, "cluster", "set-config-epoch", i+1)
	}
	for i, r := range c.Primaries {
		slots := []any{"cluster", "addslots"}
		for slot := Slots * i / primaries; slot < Slots*(i+1)/primaries; slot++ {
			slots = append(slots, slot)
		}
		c.do(t, r, slots...)
	}
	for _, r := range c.nodes()[1:] {
		c.meet(t, r)
	}
	c.wait(t)
	for i, r := range c.Replicas {
		c.do(t, r, "cluster", "replicate", c.ID(t, c.Primaries[i%primaries]))
	}
	for _, r := range c.Replicas {
		Eventually(t, "the replica is in step", func(ctx context.Context, client *redis.Client) (bool, error) {
			info, err := client.Info(ctx, "replication").Result()
			return strings.Contains(info, "master_link_status:up"), err
		}, r)
	}
	c.wait(t)
	return c
}

func (c *Cluster) nodes() []*Redis {
	return append(c.Primaries[:len(c.Primaries):len(c.Primaries)], c.Replicas...)
}

// AddPrimary adds a primary without slots.
func (c *Cluster) AddPrimary(t testing.TB) *Redis {
	t.Helper()
	r := c.start(t, c.args...)
	c.do(t, r, "cluster", "set-config-epoch", len(c.nodes())+1)
	c.Primaries = append(c.Primaries, r)
	c.meet(t, r)
	c.wait(t)
	return r
}

func (c *Cluster) meet(t testing.TB, r *Redis) {
	t.Helper()
	host, port, _ := net.SplitHostPort(r.Addr)
	c.do(t, c.Primaries[0], "cluster", "meet", host, port)
}

// ID is the name of a node in its cluster.
func (c *Cluster) ID(t testing.TB, r *Redis) string {
	t.Helper()
	return c.do(t, r, "cluster", "myid").(string)
}

// Owner returns the node that serves a slot now.
func (c *Cluster) Owner(t testing.TB, slot int) *Redis {
	t.Helper()
	for _, r := range c.nodes() {
		client := r.Client()
		//lint:ignore SA1019 CLUSTER SHARDS needs Redis 7, and 6.2 is supported
		ranges, err := client.ClusterSlots(t.Context()).Result()
		_ = client.Close()
		if err != nil {
			continue // it is down
		}
		for _, s := range ranges {
			if s.Start > slot || s.End < slot {
				continue
			}
			for _, r := range c.nodes() {
				if r.Addr == s.Nodes[0].Addr {
					return r
				}
			}
		}
	}
	t.Fatalf("nobody serves slot %d", slot)
	return nil
}

// BeginMove begins to move a slot: the source is migrating it, the target importing.
func (c *Cluster) BeginMove(t testing.TB, slot int, source, target *Redis) {
	t.Helper()
	c.do(t, target, "cluster", "setslot", slot, "importing", c.ID(t, source))
	c.do(t, source, "cluster", "setslot", slot, "migrating", c.ID(t, target))
}

// MoveKeys moves keys of a slot on the move to its target; it reports how many there were to move.
func (c *Cluster) MoveKeys(t testing.TB, slot, limit int, source, target *Redis) int {
	t.Helper()
	keys := c.do(t, source, "cluster", "getkeysinslot", slot, limit).([]any)
	if len(keys) == 0 {
		return 0
	}
	host, port, _ := net.SplitHostPort(target.Addr)
	c.do(t, source, append([]any{"migrate", host, port, "", 0, 5000, "keys"}, keys...)...)
	return len(keys)
}

// EndMove ends the move of a slot whose keys are all at the target.
func (c *Cluster) EndMove(t testing.TB, slot int, target *Redis) {
	t.Helper()
	id := c.ID(t, target)
	c.do(t, target, "cluster", "setslot", slot, "node", id) // the target first: until it knows, nobody may
	for _, r := range c.nodes() {
		client := r.Client()
		info, err := client.Info(t.Context(), "replication").Result()
		_ = client.Close()
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(info, "role:master") {
			c.do(t, r, "cluster", "setslot", slot, "node", id)
		}
	}
}

// Failover has a replica take its primary's place, and returns when all nodes know.
func (c *Cluster) Failover(t testing.TB, replica *Redis) {
	t.Helper()
	var asked time.Time
	Eventually(t, "the replica is primary", func(ctx context.Context, client *redis.Client) (bool, error) {
		role, err := client.Do(ctx, "role").Slice()
		if err != nil || role[0] == "master" {
			return err == nil, err
		}
		if time.Since(asked) > 2*time.Second { // a primary that is slow to agree ends the attempt
			asked = time.Now()
			err = client.ClusterFailover(ctx).Err()
		}
		return false, err
	}, replica)
	id := c.ID(t, replica)
	for _, r := range c.nodes() {
		Eventually(t, "the replica is primary to all", func(ctx context.Context, client *redis.Client) (bool, error) {
			nodes, err := client.ClusterNodes(ctx).Result()
			for line := range strings.Lines(nodes) {
				if f := strings.Fields(line); f[0] == id && strings.Contains(f[2], "master") && len(f) > 8 {
					return true, nil
				}
			}
			return false, err
		}, r)
	}
}

// wait returns when every node knows all others and serves.
func (c *Cluster) wait(t testing.TB) {
	t.Helper()
	for _, r := range c.nodes() {
		Eventually(t, "the cluster serves", func(ctx context.Context, client *redis.Client) (bool, error) {
			info, err := client.ClusterInfo(ctx).Result()
			return strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:"+strconv.Itoa(len(c.nodes()))+"\r"), err
		}, r)
	}
}

func (c *Cluster) do(t testing.TB, r *Redis, args ...any) any {
	t.Helper()
	client := r.Client()
	defer client.Close()
	reply, err := client.Do(t.Context(), args...).Result()
	if err != nil {
		t.Fatal(fmt.Errorf("%v on %s: %w", args[:min(len(args), 3)], r.Addr, err))
	}
	return reply
}

// Eventually asks a server until what is awaited holds, and fails the test when it does not within half a minute.
func Eventually(t testing.TB, what string, holds func(context.Context, *redis.Client) (bool, error), r *Redis) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	client := r.Client()
	defer client.Close()
	for {
		ok, err := holds(ctx, client)
		if ok {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within half a minute (last error: %v)", what, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}
