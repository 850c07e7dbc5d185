package redisconn

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"userconnectivity/handler/fault"
)

// Request is a part of each item of a Lane: who waits for it.
type Request struct {
	// Err is why the item was not done, nil when it was. The lane's function may set it, or return one error for all.
	Err error

	ctx  context.Context //nolint:containedctx // the lane drops items whose request has ended
	done chan struct{}
}

// NewRequest returns the part of an item for which somebody waits until ctx ends.
func NewRequest(ctx context.Context) Request { return Request{ctx: ctx, done: make(chan struct{}, 1)} }

// Again is NewRequest for an item that is used again: one whose Share reported that it was handled.
func (r *Request) Again(ctx context.Context) Request {
	if r.done == nil {
		return NewRequest(ctx)
	}
	return Request{ctx: ctx, done: r.done}
}

// Waiter implements Item.
func (r *Request) Waiter() *Request { return r }

// Item is what a Lane takes: a pointer to a struct that has a Request in it.
type Item interface{ Waiter() *Request }

// Lane lets concurrent requests share round trips: while one flush is under way, the next items gather. Its
// goroutine starts with the first item and ends with Stop. While no two requests come at the same time, each flushes its
// own item: to hand it to the goroutine, and the answer back, would take longer than all the rest.
type Lane[T Item] struct {
	client *Client
	// flush handles 1 to laneBatch items; it must tell each of them how it went.
	flush func([]T)
	queue chan T
	// turn is held during a flush. alone is true while the last flush was of one item and no other came meanwhile.
	turn  chan struct{}
	alone atomic.Bool
	once  sync.Once
	quit  chan struct{}
	// ended is closed when no item is flushed any more. Whoever waits for an item waits for this too.
	ended chan struct{}
}

const (
	// laneQueue bounds the items that wait for the next flush; one more is refused at once (503), so that an
	// overloaded app answers instead of dying slowly.
	laneQueue = 4096
	// laneBatch bounds the items of one flush, and with it how long Redis works on it: about 4 ms.
	laneBatch = 512
	// flushTimeout bounds a flush, which may take two round trips. It is longer than one, so that a round trip that
	// gets no answer is the server's fault and not that of the flush.
	flushTimeout = 2 * CommandTimeout
)

var errLaneEnded = &fault.Error{
	Kind: fault.Unavailable, RetryAfter: time.Second, Message: "the app is ending: try again",
	Err: errors.New("the store is closed"),
}

// errQueueFull is the answer to a request for which there is no more room.
var errQueueFull = &fault.Error{
	Kind: fault.Unavailable, RetryAfter: time.Second,
	Message: fmt.Sprintf("the app is busy: %d requests wait for the state store already; try again", laneQueue),
}

// NewLane returns a lane to a client. do handles 1 to 512 items in a turn of the class Single, within 6 s; a panic in it
// is the error of its items. It may give items errors of their own; one that it returns is that of all.
func NewLane[T Item](c *Client, do func(ctx context.Context, items []T) error) *Lane[T] {
	l := newLane[T](nil)
	l.client = c
	l.flush = func(items []T) { l.inTurn(items, do) }
	return l
}

func newLane[T Item](flush func([]T)) *Lane[T] {
	return &Lane[T]{flush: flush, queue: make(chan T, laneQueue), turn: make(chan struct{}, 1), quit: make(chan struct{}), ended: make(chan struct{})}
}

// Share gives an item to the lane and waits until it is handled, or its request ends. An item has one of NewRequest or
// Again. When it reports false the lane may still have the item, which must not be used again.
func (l *Lane[T]) Share(it T) (handled bool, err error) {
	if err := l.client.Ready(); err != nil {
		return false, err
	}
	r := it.Waiter()
	if until, ok := r.ctx.Deadline(); ok && time.Until(until) > flushTimeout && l.flushAlone(it) {
		<-r.done
		return true, r.Err
	}
	if !l.put(it) {
		return false, errQueueFull
	}
	select {
	case <-r.done:
		return true, r.Err
	case <-r.ctx.Done():
		return false, Unavailable(fmt.Errorf("wait for Redis: %w", r.ctx.Err()))
	case <-l.ended:
		return false, errLaneEnded
	}
}

// inTurn handles items in one turn, but for those for which nobody waits any more, and tells who waits.
func (l *Lane[T]) inTurn(items []T, do func(ctx context.Context, items []T) error) {
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	wanted := items
	err := guarded(func() error {
		return l.client.Through(ctx, Single, func() error {
			wanted = items[:0]
			for _, it := range items {
				r := it.Waiter()
				if r.Err = r.ctx.Err(); r.Err != nil {
					r.done <- struct{}{}
					continue
				}
				wanted = append(wanted, it)
			}
			if len(wanted) == 0 {
				return nil
			}
			return do(ctx, wanted)
		})
	})
	for _, it := range wanted {
		r := it.Waiter()
		if err != nil {
			r.Err = err
		}
		r.done <- struct{}{}
	}
}

// put queues an item, and reports false when the queue is full.
func (l *Lane[T]) put(item T) bool {
	l.once.Do(func() { go l.run() })
	select {
	case l.queue <- item:
		return true
	default:
		return false
	}
}

// flushAlone flushes an item at once, in the goroutine of its request, and reports false where others may come at the same
// time. A flush may take flushTimeout, so only a request that has longer may call it.
func (l *Lane[T]) flushAlone(item T) bool {
	if !l.alone.Load() {
		return false
	}
	select {
	case l.turn <- struct{}{}:
	default:
		return false
	}
	defer func() { <-l.turn }()
	if !l.alone.Load() { // it was stopped
		return false
	}
	l.flush([]T{item})
	l.alone.Store(len(l.queue) == 0)
	return true
}

func (l *Lane[T]) run() {
	defer close(l.ended)
	batch := make([]T, 0, laneBatch)
	for {
		select {
		case <-l.quit:
			return
		case item := <-l.queue:
			batch = append(batch[:0], item)
		}
		if len(l.queue) == 0 {
			runtime.Gosched() // whoever is about to queue an item does so first: one more round trip is dearer
		}
		l.turn <- struct{}{}
		select {
		case <-l.quit: // it was closed during the flush before
			<-l.turn
			return
		default:
		}
		for gathering := true; gathering && len(batch) < laneBatch; {
			select {
			case item := <-l.queue:
				batch = append(batch, item)
			default:
				gathering = false
			}
		}
		l.flush(batch)
		l.alone.Store(len(batch) == 1 && len(l.queue) == 0)
		<-l.turn
		clear(batch)
	}
}

// Stop ends the lane after the flush that is under way. It may be called again.
func (l *Lane[T]) Stop(ctx context.Context) {
	l.once.Do(func() { close(l.ended) }) // it never ran
	select {
	case <-l.quit:
	default:
		close(l.quit)
	}
	select {
	case <-l.ended:
	case <-ctx.Done():
	}
	select {
	case l.turn <- struct{}{}:
		l.alone.Store(false) // no request flushes by itself any more
		<-l.turn
	case <-ctx.Done():
	}
}

// guarded turns a panic into an error. Outside of a request nothing else would recover it, and it would end the process.
func guarded(do func() error) (err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("panicked: %v\n%s", cause, debug.Stack())
		}
	}()
	return do()
}
