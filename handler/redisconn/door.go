package redisconn

import (
	"context"
	"fmt"
)

// Class is a kind of calls to Redis that wait for their turn in one queue.
type Class int

const (
	// Single has the requests about one user, which share round trips: see Lane.
	Single Class = iota
	// Bulk has requests about many users, and what is written after an outage: a slice of one a turn.
	Bulk
	// Background has the sweep, the relay, foreign keys and health.
	Background
	classes
)

// Enter waits for a turn of a class; leave ends it. The one connection to a single server takes one round trip after the
// other, and one call of each class waits for it at a time. So a request about one user waits for one turn of each other
// class at most, however much there is of it. The queue of a class is in the order of arrival, and each waits for as long
// as its context allows. What one turn sends should keep Redis busy for a few milliseconds at most.
//
// On a cluster there is a connection to each node, and one that hangs must not hold up the others: only bulk calls, which
// go to all nodes, take turns there.
//
// Before the first connection it waits for that, with all others who do: only then it is known whether there are turns.
func (c *Client) Enter(ctx context.Context, class Class) (leave func(), err error) {
	if _, err := c.Connect(ctx); err != nil {
		return nil, err
	}
	if class != Bulk && !c.OneServer() {
		return func() {}, nil
	}
	turn := c.turns[class]
	select {
	case turn <- struct{}{}:
		return func() { <-turn }, nil
	case <-ctx.Done():
		return nil, Unavailable(fmt.Errorf("wait for a turn on the connection to Redis: %w", ctx.Err()))
	}
}

// Through does something in a turn of a class; see Enter.
func (c *Client) Through(ctx context.Context, class Class, do func() error) error {
	leave, err := c.Enter(ctx, class)
	if err != nil {
		return err
	}
	defer leave()
	return do()
}
