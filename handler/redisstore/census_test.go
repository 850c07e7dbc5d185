package redisstore

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/metrics"
	"userconnectivity/handler/presence"
)

// TestCensus counts the sessions of all partitions and the memory of each server.
func TestCensus(t *testing.T) {
	t.Parallel()
	alone := testkit.Start(t, "--maxmemory", "100mb")
	cluster := testkit.StartCluster(t, 3, 0)
	for name, b := range map[string]*bench{
		"alone":   setupOn(t, alone, "p:"),
		"cluster": newBench(t, clusterClient(cluster), endpointOf(cluster), "p:", 16),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for i := range 50 {
				b.beat(presence.Beat{User: fmt.Sprintf("u%d", i)})
			}
			b.beat(presence.Beat{User: "u0", Session: "laptop"})
			found, err := b.store.count(t.Context())
			if err != nil || found.sessions != 51 {
				t.Fatalf("%+v, %v", found, err)
			}
			servers := 1
			if name == "cluster" {
				servers = 3
			}
			if len(found.memory) != servers {
				t.Errorf("memory of %d servers: %v", len(found.memory), found.memory)
			}
			for node, m := range found.memory {
				if m.Used < 100_000 || name == "alone" && (node != "" || m.Limit != 100<<20) {
					t.Errorf("%s: %+v", node, m)
				}
			}
			c := &Census{store: b.store, last: found}
			text, err := metrics.NewRegistry(c).Text()
			if err != nil || !strings.Contains(string(text), "userconnectivity_sessions_live 51\n") || strings.Count(string(text), "\nuserconnectivity_redis_memory_used_bytes") != servers {
				t.Errorf("%v\n%s", err, text)
			}
			c.last.at = time.Now().Add(-2 * censusAge)
			if text, err = metrics.NewRegistry(c).Text(); err != nil || strings.Contains(string(text), "sessions_live") {
				t.Errorf("a count of long ago is told: %v\n%s", err, text)
			}
		})
	}
}

// TestCensusWithoutTheRightToAsk counts the sessions all the same.
func TestCensusWithoutTheRightToAsk(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t)
	b := setupOn(t, server, "p:")
	b.beat(presence.Beat{User: "ann"})
	if _, err := b.store.client.Memory(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.raw.Do(t.Context(), "acl", "setuser", "default", "-info").Err(); err != nil {
		t.Fatal(err)
	}
	found, err := b.store.count(t.Context())
	if err != nil || found.sessions != 1 || len(found.memory) > 0 {
		t.Errorf("%+v, %v", found, err)
	}
}

// TestOverdue is by how much the session is overdue that waits longest, in any partition.
func TestOverdue(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if overdue, err := b.store.Overdue(t.Context()); err != nil || overdue != 0 {
		t.Errorf("without sessions: %v, %v", overdue, err)
	}
	b.beat(presence.Beat{User: "ann"})
	if overdue, err := b.store.Overdue(t.Context()); err != nil || overdue != 0 {
		t.Errorf("with a live session: %v, %v", overdue, err)
	}
	now := b.raw.Time(t.Context()).Val()
	for p, since := range map[int]time.Duration{0: time.Minute, b.store.Partitions() - 1: time.Hour} {
		if err := b.raw.ZAdd(t.Context(), b.store.keys.in(p, "due"), redis.Z{Score: float64(now.Add(-since).UnixMilli()), Member: "bob/s"}).Err(); err != nil {
			t.Fatal(err)
		}
	}
	if overdue, err := b.store.Overdue(t.Context()); err != nil || overdue < time.Hour || overdue > time.Hour+time.Minute {
		t.Errorf("%v, %v", overdue, err)
	}
}
