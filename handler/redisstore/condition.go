package redisstore

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// MemoryState is what a server tells of its memory, of a cluster the primary that has the largest share of its limit in use.
type MemoryState struct {
	// Used and Limit (maxmemory) are in bytes; Limit is 0 where there is none, or the server does not tell.
	Used, Limit int64
	// Policy is maxmemory-policy, "" where the server does not tell.
	Policy string
	// Evicted is how many keys have been evicted since the server started, on a cluster by all primaries.
	Evicted int64
	// Evicts is true where the server removes keys when it is full, or has done so since this process first looked:
	// users may vanish without an event.
	Evicts bool
}

// evictionCure is what to do about a server that evicts.
const evictionCure = "redis may remove keys when it is full, and users with them, without an event; " +
	"set maxmemory-policy to noeviction (Azure: evictionPolicy NoEviction), and have it alone or large enough"

// Eviction says why, and what to do, where the server evicts; else it is empty.
func (m MemoryState) Eviction() string {
	if !m.Evicts {
		return ""
	}
	return fmt.Sprintf("maxmemory-policy is %s, %d keys were evicted: %s", m.Policy, m.Evicted, evictionCure)
}

// usage is the share of the limit that is in use.
func (m MemoryState) usage() float64 {
	if m.Limit <= 0 {
		return 0
	}
	return float64(m.Used) / float64(m.Limit)
}

// evictions is what is known of them by node.
type evictions struct {
	mu    sync.Mutex
	first map[string]int64 // evicted_keys at the first look
	told  bool
}

// MemoryState asks how much memory is used, by INFO; an error where that is refused.
func (c *Client) MemoryState(ctx context.Context) (MemoryState, error) {
	client, err := c.connect(ctx)
	if err != nil {
		return MemoryState{}, err
	}
	nodes := map[string]*redis.Client{}
	switch client := client.(*live); {
	case client.cluster != nil:
		nodes = client.cluster.all()
	default:
		nodes[""] = client.UniversalClient.(*redis.Client)
	}
	var all MemoryState
	for node, server := range nodes {
		info, err := infoOf(ctx, server)
		if err != nil {
			return MemoryState{}, unavailable(fmt.Errorf("ask for the memory: %w", err))
		}
		m := c.readMemory(node, info)
		evicted, evicts := all.Evicted+m.Evicted, all.Evicts || m.Evicts
		if m.usage() > all.usage() || all.Used == 0 || m.Evicts && !all.Evicts {
			all = m
		}
		all.Evicted, all.Evicts = evicted, evicts
	}
	return all, nil
}

// readMemory reads what INFO tells, and has one line logged for a server that evicts.
func (c *Client) readMemory(node string, info map[string]string) MemoryState {
	number := func(name string) int64 {
		n, _ := strconv.ParseInt(info[name], 10, 64) // 0 where the server does not tell
		return n
	}
	m := MemoryState{Used: number("used_memory"), Limit: number("maxmemory"), Policy: info["maxmemory_policy"], Evicted: number("evicted_keys")}
	e := &c.evictions
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.first == nil {
		e.first = map[string]int64{}
	}
	first, known := e.first[node]
	if !known || m.Evicted < first { // it was restarted
		e.first[node], first = m.Evicted, m.Evicted
	}
	m.Evicts = m.Policy != "" && m.Policy != "noeviction" || m.Evicted > first
	if m.Evicts && !e.told {
		e.told = true
		c.log().Warn("redis evicts keys", "node", node, "detail", m.Eviction())
	}
	return m
}

// probeLife is how long the key of CheckWrites lives.
const probeLife = time.Minute

// CheckWrites writes a small key of a short life, on a cluster one to each primary, and returns what is refused with
// the cure: a server that is full, cannot save, has too few replicas or may only be read answers reads as ever.
func (s *Store) CheckWrites(ctx context.Context) error {
	client, err := s.connect(ctx)
	if err != nil {
		return err
	}
	keys := []string{s.keys.in(0, "probe")}
	if cluster, ok := client.(*live).UniversalClient.(*redis.ClusterClient); ok {
		keys = nil
		seen := map[string]bool{}
		for p := range s.keys.partitions {
			node, err := cluster.MasterForKey(ctx, s.keys.in(p, "probe"))
			if err != nil {
				return unavailable(fmt.Errorf("find the primary of partition %d: %w", p, err))
			}
			if addr := node.Options().Addr; !seen[addr] {
				seen[addr] = true
				keys = append(keys, s.keys.in(p, "probe"))
			}
		}
	}
	pipe := client.Pipeline()
	for _, key := range keys {
		pipe.Set(ctx, key, "1", probeLife)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return unavailable(fmt.Errorf("write a key: %w", s.client.endpoint.diagnose(err)))
	}
	return nil
}
