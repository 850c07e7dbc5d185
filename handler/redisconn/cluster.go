package redisconn

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// once is a hook of a cluster's client: no command is sent again after its connection broke. It may have been run, and
// an answer to its second run would not be true of the first. MOVED and ASK are followed: a command that is refused
// with them was not run.
type once struct{}

// onceCmd is a command that is not sent again.
type onceCmd struct{ redis.Cmder }

func (onceCmd) NoRetry() bool { return true }

func (once) DialHook(next redis.DialHook) redis.DialHook { return next }

func (once) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { return next(ctx, onceCmd{cmd}) }
}

func (once) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		wrapped := make([]redis.Cmder, len(cmds))
		for i, cmd := range cmds {
			wrapped[i] = onceCmd{cmd}
		}
		asked, _ := within(cmds)
		unanswered(asked)
		return complete(asked, next(ctx, wrapped))
	}
}

// lookAgain is the least time between two looks at which primaries there are.
const lookAgain = 500 * time.Millisecond

// primaries are those of a cluster, as they were when last looked at.
type primaries struct {
	cluster *redis.ClusterClient
	known   atomic.Pointer[map[string]*redis.Client] // by address
	changed chan struct{}                            // has one when it is worth to look again
	// replaced ends when the cluster's client is closed.
	replaced context.Context //nolint:containedctx // it lives as long as the client
	end      context.CancelFunc
}

// newPrimaries looks at a cluster for the first time.
func (c *Client) newPrimaries(ctx context.Context, cluster *redis.ClusterClient) (*primaries, error) {
	p := &primaries{cluster: cluster, changed: make(chan struct{}, 1)}
	p.replaced, p.end = context.WithCancel(c.open)
	if err := p.look(ctx); err != nil {
		p.end()
		return nil, err
	}
	return p, nil
}

func (p *primaries) look(ctx context.Context) error {
	var mu sync.Mutex
	found := map[string]*redis.Client{}
	err := p.cluster.ForEachMaster(ctx, func(_ context.Context, n *redis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		found[n.Options().Addr] = n
		return nil
	})
	if err == nil {
		p.known.Store(&found)
	}
	return err
}

// all returns the primaries by address.
func (p *primaries) all() map[string]*redis.Client { return *p.known.Load() }

func (p *primaries) addrs() []string { return slices.Sorted(maps.Keys(p.all())) }

// mayHaveChanged has follow look again soon.
func (p *primaries) mayHaveChanged() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// follow keeps up with a cluster's primaries as they come and go, until its client is closed. A fault of any of them
// may be due to such a change.
func (c *Client) follow(l *live) {
	p := l.cluster
	ticker := time.NewTicker(c.rescan)
	defer ticker.Stop()
	for {
		select {
		case <-p.replaced.Done():
			return
		case <-ticker.C:
		case <-p.changed:
		}
		ctx, cancel := context.WithTimeout(p.replaced, CommandTimeout)
		err := p.look(ctx)
		cancel()
		c.mu.Lock()
		if err == nil && c.live.Load() == l {
			c.circuit.SetNodes(p.addrs())
		}
		c.mu.Unlock()
		pause := time.NewTimer(lookAgain)
		select {
		case <-p.replaced.Done():
		case <-pause.C:
		}
		pause.Stop()
	}
}

// nodeOf returns the address of the primary that has a key.
func (p *primaries) nodeOf(ctx context.Context, key string) (string, error) {
	node, err := p.cluster.MasterForKey(ctx, key)
	if err != nil {
		return "", err
	}
	return node.Options().Addr, nil
}

// hashTag returns the part of a key that decides about its slot.
func hashTag(key string) string {
	if _, rest, ok := strings.Cut(key, "{"); ok {
		if tag, _, ok := strings.Cut(rest, "}"); ok && tag != "" {
			return tag
		}
	}
	return key
}

// Away returns nil while every server may be asked. Otherwise it returns what tells whether the one that has a key must
// be left alone, and for how long at most.
func (c *Client) Away() func(key string) (retryAfter time.Duration, away bool) {
	if !c.circuit.AnyOpen() {
		return nil
	}
	if wait, open := c.circuit.Open(""); open {
		return func(string) (time.Duration, bool) { return wait, true }
	}
	l := c.live.Load()
	if l == nil || l.cluster == nil {
		return nil // it has closed, or will be known with the next client
	}
	return func(key string) (time.Duration, bool) {
		node, err := l.cluster.nodeOf(c.open, key)
		if err != nil {
			return 0, false
		}
		return c.circuit.Open(node)
	}
}
