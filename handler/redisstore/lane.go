package redisstore

import (
	"context"
	"sync"
)

// lane lets concurrent requests share round trips: while one flush is under way, the next items gather. Its
// goroutine starts with the first item and ends with stop.
type lane[T any] struct {
	// flush handles 1 to laneBatch items; it must tell each of them how it went.
	flush func([]T)
	queue chan T
	once  sync.Once
	quit  chan struct{}
	ended chan struct{}
}

const (
	// laneQueue bounds the items that wait for the next flush; one more is refused at once (503), so that an
	// overloaded app answers instead of dying slowly.
	laneQueue = 4096
	// laneBatch bounds the items of one flush, and with it how long Redis works on it: about 4 ms.
	laneBatch = 512
)

func newLane[T any](flush func([]T)) *lane[T] {
	return &lane[T]{flush: flush, queue: make(chan T, laneQueue), quit: make(chan struct{}), ended: make(chan struct{})}
}

// put queues an item, and reports false when the queue is full.
func (l *lane[T]) put(item T) bool {
	l.once.Do(func() { go l.run() })
	select {
	case l.queue <- item:
		return true
	default:
		return false
	}
}

func (l *lane[T]) run() {
	defer close(l.ended)
	batch := make([]T, 0, laneBatch)
	for {
		select {
		case <-l.quit:
			return
		case item := <-l.queue:
			batch = append(batch[:0], item)
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
		clear(batch)
	}
}

// stop ends the lane. Items still queued are never flushed: their requests end by their own deadlines.
func (l *lane[T]) stop(ctx context.Context) {
	started := true
	l.once.Do(func() { started = false })
	close(l.quit)
	if !started {
		return
	}
	select {
	case <-l.ended:
	case <-ctx.Done():
	}
}
