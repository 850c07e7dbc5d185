// Package eventlog is what the log of events keeps: one record per event with the history of its status.
// The ladder of statuses and the rule that merges writes which arrive late, twice or out of order live here;
// the stores (SQLite, Cosmos DB) only keep what Merge returns.
package eventlog

import (
	"errors"
	"slices"
	"time"

	"userconnectivity/handler/presence"
)

// ErrNotFound is returned for an event that the log does not hold.
var ErrNotFound = errors.New("event not found")

// ErrContinuation is returned for a continuation token that this log did not issue.
var ErrContinuation = errors.New("continuation is not one that this API returned")

// Status is a step of an event on its way. It never goes back within an attempt.
type Status string

// The ladder: detected -> queued -> processing -> done | failed | dead (design, section 4).
const (
	Detected   Status = "detected"
	Queued     Status = "queued"
	Processing Status = "processing"
	Done       Status = "done"
	Failed     Status = "failed"
	Dead       Status = "dead"
)

// rank orders the statuses of one attempt; the three ends share the top.
func (s Status) rank() int {
	switch s {
	case Detected:
		return 0
	case Queued:
		return 1
	case Processing:
		return 2
	}
	return 3
}

// Attempt orders the tries of one event: first by replay (0 is the original), then by the delivery of the
// message (1 is the first; 0 is before any delivery, where detected and queued belong).
type Attempt struct {
	Replay   int `json:"replay"`
	Delivery int `json:"delivery"`
}

// Compare returns -1, 0 or 1 as a is before, the same as, or after b.
func (a Attempt) Compare(b Attempt) int {
	if a.Replay != b.Replay {
		if a.Replay < b.Replay {
			return -1
		}
		return 1
	}
	switch {
	case a.Delivery < b.Delivery:
		return -1
	case a.Delivery > b.Delivery:
		return 1
	}
	return 0
}

// Step is one entry of an event's history.
type Step struct {
	Status  Status    `json:"status"`
	At      time.Time `json:"at"`
	Detail  string    `json:"detail,omitempty"`
	Attempt Attempt   `json:"attempt"`
}

// compare is the order of a history: by attempt, then by rank.
func (s Step) compare(t Step) int {
	if c := s.Attempt.Compare(t.Attempt); c != 0 {
		return c
	}
	return s.Status.rank() - t.Status.rank()
}

// Record is one event with its history, oldest step first.
type Record struct {
	Event   presence.Event
	History []Step
}

// Status is that of the newest step of the newest attempt.
func (r Record) Status() Status {
	if len(r.History) == 0 {
		return Detected
	}
	return r.History[len(r.History)-1].Status
}

// LastReplay is the number of the newest replay, 0 when there was none.
func (r Record) LastReplay() int {
	if len(r.History) == 0 {
		return 0
	}
	return r.History[len(r.History)-1].Attempt.Replay
}

// Update adds steps to the history of one event. Every writer sends the whole prefix that it knows, so that
// writes may arrive in any order and any number of times.
type Update struct {
	// Event makes the record when there is none. With an empty Type only an existing record is updated.
	Event presence.Event
	Steps []Step
}

// MaxHistory bounds the steps of one record: the oldest attempts after the first are forgotten beyond it.
const MaxHistory = 100

// Merge returns history with steps added, and whether that changed anything. A step whose attempt and rank
// are there already is dropped: the first writer of a rank wins, so a history never goes back.
func Merge(history, steps []Step) ([]Step, bool) {
	merged := slices.Clone(history)
	for _, s := range steps {
		i, found := slices.BinarySearchFunc(merged, s, Step.compare)
		if !found {
			merged = slices.Insert(merged, i, s)
		}
	}
	if len(merged) == len(history) {
		return history, false
	}
	if over := len(merged) - MaxHistory; over > 0 {
		merged = slices.Delete(merged, 2, 2+over) // keeps detected and queued of the original
	}
	return merged, true
}

// Page is one page of a user's events, newest first.
type Page struct {
	Records []Record
	// Continuation fetches the next page, "" when there is none.
	Continuation string
}
