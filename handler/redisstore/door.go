package redisstore

import (
	"context"
	"fmt"
	"time"

	"userconnectivity/handler/presence"
)

// class is a kind of calls to Redis that wait for their turn in one queue.
type class int

const (
	// single has the requests about one user, which share round trips: see lane.
	single class = iota
	// bulk has requests about many users, and what is written after an outage: a slice of one a turn.
	bulk
	// background has the sweep, the relay, foreign keys and health.
	background
	classes
)

// What one turn may have, so that Redis works on it for a few milliseconds: beats in bulk, leaves in bulk, users to read,
// partitions to look at, partitions with up to maxItems sessions to claim each, and foreign keys.
const (
	beatsATurn      = 400
	leavesATurn     = 200
	readsATurn      = 500
	partitionsATurn = 64
	claimsATurn     = 2
	foreignATurn    = 200
)

// door is the way of all of a store's calls to Redis. The one connection to a single server takes one round trip after
// the other; the door lets one call of each class wait for it at a time. So a request about one user waits for one turn
// of each other class at most, however much there is of it. The queue of a class is in the order of arrival, and each
// waits for as long as its context allows.
//
// On a cluster there is a connection to each node, and one that hangs must not hold up the others: only bulk calls, which
// go to all nodes, take turns there.
type door struct {
	client *Client
	turns  [classes]chan struct{}
}

func newDoor(c *Client) *door {
	d := &door{client: c}
	for i := range d.turns {
		d.turns[i] = make(chan struct{}, 1)
	}
	return d
}

// enter waits for a turn; leave ends it. Before the first connection it waits for that, with all others who do: only then
// it is known whether there are turns.
func (d *door) enter(ctx context.Context, c class) (leave func(), err error) {
	if _, err := d.client.connect(ctx); err != nil {
		return nil, err
	}
	if c != bulk && !d.client.oneServer() {
		return func() {}, nil
	}
	turn := d.turns[c]
	select {
	case turn <- struct{}{}:
		return func() { <-turn }, nil
	case <-ctx.Done():
		return nil, unavailable(fmt.Errorf("wait for a turn on the connection to Redis: %w", ctx.Err()))
	}
}

// through does something in a turn.
func (d *door) through(ctx context.Context, c class, do func() error) error {
	leave, err := d.enter(ctx, c)
	if err != nil {
		return err
	}
	defer leave()
	return do()
}

// request is a part of an item of a lane: who waits for it.
type request struct {
	ctx  context.Context //nolint:containedctx // the lane drops items whose request has ended
	err  error
	done chan struct{}
}

func newRequest(ctx context.Context) request { return request{ctx: ctx, done: make(chan struct{}, 1)} }

func (r *request) waiter() *request { return r }

// item is what a lane takes.
type item interface{ waiter() *request }

// share gives an item to a lane and waits until it is handled. When it reports false the lane may still have the item.
func share[T item](s *Store, l *lane[T], it T) (handled bool, err error) {
	if err := s.client.ready(); err != nil {
		return false, err
	}
	if !l.put(it) {
		return false, errQueueFull
	}
	r := it.waiter()
	select {
	case <-r.done:
		return true, r.err
	case <-r.ctx.Done():
		return false, unavailable(fmt.Errorf("wait for Redis: %w", r.ctx.Err()))
	case <-l.ended:
		return false, errLaneEnded
	}
}

// flush handles the items of a lane in one turn, but for those for which nobody waits any more, and tells who waits. do
// may give items errors of their own; one that it returns is that of all.
func flush[T item](s *Store, items []T, do func(ctx context.Context, items []T) error) {
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	live := items
	err := guarded(func() error {
		return s.door.through(ctx, single, func() error {
			live = items[:0]
			for _, it := range items {
				r := it.waiter()
				if r.err = r.ctx.Err(); r.err != nil {
					r.done <- struct{}{}
					continue
				}
				live = append(live, it)
			}
			if len(live) == 0 {
				return nil
			}
			return do(ctx, live)
		})
	})
	for _, it := range live {
		r := it.waiter()
		if err != nil {
			r.err = err
		}
		r.done <- struct{}{}
	}
}

// errQueueFull is the answer to a request for which there is no more room.
var errQueueFull = &presence.Error{
	Kind: presence.Unavailable, RetryAfter: time.Second,
	Message: fmt.Sprintf("the app is busy: %d requests wait for the state store already; try again", laneQueue),
}
