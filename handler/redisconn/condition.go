package redisconn

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// Memory is what a server tells of its memory.
type Memory struct {
	// Used and Limit (maxmemory) are in bytes; Limit is 0 where there is none, or the server does not tell.
	Used, Limit int64
	// Policy is maxmemory-policy, "" where the server does not tell.
	Policy string
	// Evicted is how many keys have been evicted since the server started.
	Evicted int64
	// Evicts is true where the server removes keys when it is full, or has done so since this process first looked:
	// users may vanish without an event.
	Evicts bool
}

// Memories are those of the servers: by the address of each primary of a cluster, or by "" for a single server.
type Memories map[string]Memory

// evictionCure is what to do about a server that evicts.
const evictionCure = "redis may remove keys when it is full, and users with them, without an event; " +
	"set maxmemory-policy to noeviction (Azure: evictionPolicy NoEviction), and have it alone or large enough"

// fullShare is the share of the limit, in percent, above which a warning is due: when it is full Redis refuses writes.
const fullShare = 90

// Warnings says, with the cure, that the server evicts or is nearly full.
func (m Memory) Warnings() []string {
	var warnings []string
	if m.Evicts {
		warnings = append(warnings, fmt.Sprintf("maxmemory-policy is %s, %d keys were evicted: %s", m.Policy, m.Evicted, evictionCure))
	}
	if share := 100 * m.usage(); share > fullShare {
		warnings = append(warnings, fmt.Sprintf("redis uses %.0f %% of the memory that it may have, and refuses writes or evicts keys when that is full: "+
			"raise maxmemory or choose a larger tier, or remove keys of others from it", share))
	}
	return warnings
}

// usage is the share of the limit that is in use.
func (m Memory) usage() float64 {
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

// Worst is the memory of the server that has the largest share of its limit in use, where any evicts of those that
// do; with the evicted keys of all.
func (m Memories) Worst() Memory {
	var worst Memory
	var evicted int64
	for i, node := range slices.Sorted(maps.Keys(m)) {
		one := m[node]
		evicted += one.Evicted
		if i == 0 || one.Evicts && !worst.Evicts || one.Evicts == worst.Evicts && one.usage() > worst.usage() {
			worst = one
		}
	}
	worst.Evicted = evicted
	return worst
}

// errNoMemory is what is known of a server that answers INFO without its memory.
var errNoMemory = errors.New("the server does not say how much memory it uses")

// Memory asks all servers at once how much memory they use, by INFO. Beside an error are those that answered.
func (c *Client) Memory(ctx context.Context) (Memories, error) {
	client, err := c.Connect(ctx)
	if err != nil {
		return nil, err
	}
	nodes := map[string]*redis.Client{}
	switch client := client.(*live); {
	case client.cluster != nil:
		nodes = client.cluster.all()
	default:
		nodes[""] = client.UniversalClient.(*redis.Client)
	}
	var (
		asked sync.WaitGroup
		mu    sync.Mutex
		found = make(Memories, len(nodes))
		errs  []error
	)
	for node, server := range nodes {
		asked.Go(func() {
			info, err := infoOf(ctx, server)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				errs = append(errs, Unavailable(fmt.Errorf("ask for the memory: %w", err)))
			case info["used_memory"] == "":
				errs = append(errs, errNoMemory)
			default:
				found[node] = c.readMemory(node, info)
			}
		})
	}
	asked.Wait()
	return found, errors.Join(errs...)
}

// readMemory reads what INFO tells, and has one line logged for a server that evicts.
func (c *Client) readMemory(node string, info map[string]string) Memory {
	number := func(name string) int64 {
		n, _ := strconv.ParseInt(info[name], 10, 64) // 0 where the server does not tell
		return n
	}
	m := Memory{Used: number("used_memory"), Limit: number("maxmemory"), Policy: info["maxmemory_policy"], Evicted: number("evicted_keys")}
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
		c.log().Warn("redis evicts keys", "node", node, "detail", m.Warnings()[0])
	}
	return m
}

// probeLife is how long a key of CheckWrites lives.
const probeLife = time.Minute

// CheckWrites writes small keys of a short life, and returns what is refused with the cure: a server that is full, cannot
// save, has too few replicas or may only be read answers reads as ever. keys are names of at least one key, which nothing
// else uses; on a cluster one is written to each primary that has any of them, but not where its circuit is open. all is
// false where some primaries of a cluster take what others refuse.
func (c *Client) CheckWrites(ctx context.Context, keys []string) (all bool, refused error) {
	client, err := c.Connect(ctx)
	if err != nil {
		return true, err
	}
	if cluster := client.(*live).cluster; cluster != nil {
		if keys, err = cluster.oneEach(ctx, keys); err != nil {
			return false, err
		}
	} else {
		keys = keys[:1]
	}
	pipe := client.Pipeline()
	written := make([]*redis.StatusCmd, len(keys))
	for i, key := range keys {
		written[i] = pipe.Set(ctx, key, "1", probeLife)
	}
	Exec(ctx, pipe)
	all = true
	for _, cmd := range written {
		switch err := cmd.Err(); {
		case err == nil:
			all = false
		case errors.Is(err, errCircuitOpen): // the circuit itself is told of
			all = false
		case refused == nil:
			refused = Unavailable(fmt.Errorf("write a key: %w", c.endpoint.diagnose(err)))
		}
	}
	return all && refused != nil, refused
}

// oneEach returns the first of the keys of each primary that has any.
func (p *primaries) oneEach(ctx context.Context, keys []string) (first []string, err error) {
	seen := map[string]bool{}
	for _, key := range keys {
		node, err := p.nodeOf(ctx, key)
		if err != nil {
			return nil, Unavailable(fmt.Errorf("find the primary of key %q: %w", key, err))
		}
		if !seen[node] {
			seen[node] = true
			first = append(first, key)
		}
	}
	return first, nil
}
