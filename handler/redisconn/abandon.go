package redisconn

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/redis/go-redis/v9"
)

// patience is what the round trips to a server have in common: they wait for it until it is given up.
type patience struct {
	now atomic.Pointer[term]
}

// term lasts until the server is given up, and then the next begins.
type term struct {
	context.Context //nolint:containedctx // it is one
	end             context.CancelFunc
}

func newTerm() *term {
	ctx, end := context.WithCancel(context.Background())
	return &term{ctx, end}
}

// join returns a context that ends with ctx and with the term, and what ends it.
func (p *patience) join(ctx context.Context) (joined context.Context, t *term, done func()) {
	t = p.now.Load()
	joined, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(t, cancel)
	return joined, t, func() {
		stop()
		cancel()
	}
}

// over ends the term.
func (p *patience) over() { p.now.Swap(newTerm()).end() }

// patienceWith returns what the round trips to a node have in common.
func (c *Client) patienceWith(node string) *patience {
	p := &patience{}
	p.now.Store(newTerm())
	known, _ := c.patience.LoadOrStore(node, p)
	return known.(*patience)
}

// Abandon gives a node up, "" for the single server: what waits for its answer, or for a connection to it, fails now
// and not at its time-out. Call it when it is known that no answer will come, and the circuit is open.
func (c *Client) Abandon(node string) {
	c.patienceWith(node).over()
	// A read does not look at its context. A connection that is being opened is left alone: by it we find out that the
	// server is back.
	c.sockets.closeThose(func(s *socket) bool {
		return s.commands && (node == "" || s.addr == node) && c.sockets.awaited[s.addr] == 0
	})
}

var errAbandoned = errors.New("redis did not answer, and was given up")

// giveUp marks commands that have no answer because their server was given up.
func giveUp(cmds ...redis.Cmder) error {
	for _, cmd := range cmds {
		if err := cmd.Err(); err != nil && !isReply(err) {
			cmd.SetErr(errAbandoned)
		}
	}
	return errAbandoned
}
