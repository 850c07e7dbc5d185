package maintenance

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"sync"
	"time"
)

const (
	// maxEvents is how many messages are kept.
	maxEvents = 20
	// maxUndelivered is how many messages wait for slow subscribers; further ones are dropped and counted.
	maxUndelivered = 256
	// maxLines bounds the log lines about messages in a minute.
	maxLines = 30
)

// journal keeps what was announced and tells it to subscribers.
type journal struct {
	log   *slog.Logger
	queue chan Event

	mu          sync.Mutex
	events      []Event // oldest first
	counts      map[Type]int64
	dropped     int64
	subscribers []*subscriber
	minute      time.Time
	lines       int
}

type subscriber struct{ call func(Event) }

func newJournal(log *slog.Logger) *journal {
	return &journal{log: log, queue: make(chan Event, maxUndelivered), counts: map[Type]int64{}}
}

// record keeps a message and queues it for the subscribers.
func (j *journal) record(e Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.events) == maxEvents {
		j.events = slices.Delete(j.events, 0, 1)
	}
	j.events = append(j.events, e)
	j.counts[e.Type]++
	if len(j.subscribers) > 0 {
		select {
		case j.queue <- e:
		default:
			j.dropped++
		}
	}
}

// copies is how far apart the copies of one message come in.
const copies = time.Second

// hasCopy reports whether the same text came in a moment ago.
func (j *journal) hasCopy(e Event) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.ContainsFunc(j.events, func(known Event) bool {
		return known.Raw == e.Raw && e.Received.Sub(known.Received).Abs() < copies
	})
}

// write logs a message, unless a storm of them has filled the minute.
func (j *journal) write(e Event) {
	j.mu.Lock()
	if minute := e.Received.Truncate(time.Minute); !minute.Equal(j.minute) {
		j.minute, j.lines = minute, 0
	}
	j.lines++
	lines := j.lines
	j.mu.Unlock()
	switch {
	case lines < maxLines:
		j.log.Info("maintenance message", "type", e.Type, "start", e.Start, "replica", e.IsReplica, "address", e.Address,
			"ssl_port", e.SSLPort, "port", e.NonSSLPort, "lag", e.Lag(), "raw", e.Raw)
	case lines == maxLines:
		j.log.Warn("more maintenance messages came in this minute; they are counted, not logged", "after", maxLines)
	}
}

// subscribe has call called with every message from now on, until cancel.
func (j *journal) subscribe(call func(Event)) (cancel func()) {
	s := &subscriber{call}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.subscribers = append(j.subscribers, s)
	return func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.subscribers = slices.DeleteFunc(slices.Clone(j.subscribers), func(other *subscriber) bool { return other == s })
	}
}

// deliver calls the subscribers until ctx ends.
func (j *journal) deliver(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-j.queue:
			j.mu.Lock()
			subscribers := j.subscribers // never changed in place before its length
			j.mu.Unlock()
			for _, s := range subscribers {
				j.tell(ctx, s, e)
			}
		}
	}
}

func (j *journal) tell(ctx context.Context, s *subscriber, e Event) {
	defer func() {
		if p := recover(); p != nil {
			j.log.ErrorContext(ctx, "a subscriber to maintenance messages panicked; it goes on", "type", e.Type,
				"panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
	}()
	s.call(e)
}

// last returns the kept messages, newest first, how many came of each type, and how many were dropped because
// subscribers were slow.
func (j *journal) last() (events []Event, counts map[Type]int64, dropped int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	events = slices.Clone(j.events)
	slices.Reverse(events)
	return events, maps.Clone(j.counts), j.dropped
}
