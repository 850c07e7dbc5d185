package redisstore

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"userconnectivity/handler/presence"
)

// lane lets concurrent requests share round trips: while one flush is under way, the next items gather. Its
// goroutine starts with the first item and ends with stop.
type lane[T any] struct {
	// flush handles 1 to laneBatch items; it must tell each of them how it went.
	flush func([]T)
	queue chan T
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
	flushTimeout = 2 * commandTimeout
)

var errLaneEnded = &presence.Error{
	Kind: presence.Unavailable, RetryAfter: time.Second, Message: "the app is ending: try again",
	Err: errors.New("the store is closed"),
}

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
		if len(l.queue) == 0 {
			runtime.Gosched() // whoever is about to queue an item does so first: one more round trip is dearer
		}
		select {
		case <-l.quit: // it was closed during the flush before
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
		clear(batch)
	}
}

// stop ends the lane after the flush that is under way. It may be called again.
func (l *lane[T]) stop(ctx context.Context) {
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
