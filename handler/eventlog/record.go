// Package eventlog is what the log of events keeps: one record per event with the history of its status.
// The ladder of statuses and the rule that merges writes which arrive late, twice or out of order live here;
// the stores (SQLite, Cosmos DB) only keep what Merge returns.
package eventlog

import (
	"cmp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"userconnectivity/handler/presence"
)

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

// rank orders the statuses of one attempt. One attempt may end more than once: a worker that finished the
// event and then lost its lock leaves done and dead, a last failed delivery failed and dead. The stronger end
// tells what became of the event: done means that it was applied, whatever the broker thought of it later.
func (s Status) rank() int {
	switch s {
	case Detected:
		return 0
	case Queued:
		return 1
	case Processing:
		return 2
	case Dead:
		return 4
	case Done:
		return 5
	}
	return 3 // failed, and any end that a later version adds
}

// Attempt orders the tries of one event: first by replay (0 is the original), then by the delivery of the
// message (1 is the first; 0 is before any delivery, where detected and queued belong).
type Attempt struct {
	Replay   int `json:"replay"`
	Delivery int `json:"delivery"`
}

// Compare returns -1, 0 or 1 as a is before, the same as, or after b.
func (a Attempt) Compare(b Attempt) int {
	return cmp.Or(cmp.Compare(a.Replay, b.Replay), cmp.Compare(a.Delivery, b.Delivery))
}

// Step is one entry of an event's history.
type Step struct {
	Status  Status    `json:"status"`
	At      time.Time `json:"at"`
	Detail  string    `json:"detail,omitempty"`
	Attempt Attempt   `json:"attempt"`
	// More are the members of a stored step that this version does not know, nil for none. They are kept.
	More jsontext.Value `json:",embed"`
}

// compare is the order of a history: by attempt, then by rank.
func (s Step) compare(t Step) int {
	return cmp.Or(
		s.Attempt.Compare(t.Attempt),
		cmp.Compare(s.Status.rank(), t.Status.rank()),
		strings.Compare(string(s.Status), string(t.Status)),
	)
}

// before says which of two reports of the same step is kept: the earlier one.
func (s Step) before(t Step) bool {
	return cmp.Or(s.At.Compare(t.At), strings.Compare(s.Detail, t.Detail)) < 0
}

func (s Step) equal(t Step) bool {
	return s.Status == t.Status && s.Attempt == t.Attempt && s.Detail == t.Detail && s.At.Equal(t.At)
}

// normal returns s as the stores keep it: milliseconds in UTC, the detail at most MaxDetail bytes of UTF-8.
func (s Step) normal() Step {
	s.At = s.At.UTC().Truncate(time.Millisecond)
	s.Detail = strings.ToValidUTF8(s.Detail, "\uFFFD")
	if len(s.Detail) > MaxDetail {
		end := MaxDetail
		for !utf8.RuneStart(s.Detail[end]) {
			end--
		}
		s.Detail = s.Detail[:end]
	}
	return s
}

// Record is one event with its history, in the order of attempt and rank: the last step is its status.
type Record struct {
	Event   presence.Event
	History []Step
}

// Chronological returns the history oldest first. Steps of one millisecond keep the order of attempt and rank. It
// differs from History where a step is reported by another process than the one before: a worker may have a message
// before the relay is told that it was queued, and clocks differ.
func (r Record) Chronological() []Step {
	return slices.SortedStableFunc(slices.Values(r.History), func(a, b Step) int { return a.At.Compare(b.At) })
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

// Combine returns updates with one entry for each event, in the order in which the events first appear: what
// one write knows of an event is written at once. Updates with an id of another form than that of an event are
// left out; those that bring an event are refused with ErrID.
func Combine(updates []Update) ([]Update, []Refusal) {
	var refused []Refusal
	combined := make([]Update, 0, len(updates))
	index := make(map[string]int, len(updates))
	for _, u := range updates {
		id := u.Event.ID
		if _, ok := presence.PartitionKeyOf(id); !ok {
			if u.Event.Type != "" {
				refused = append(refused, Refusal{id, ErrID})
			}
			continue
		}
		i, seen := index[id]
		if !seen {
			index[id] = len(combined)
			combined = append(combined, u)
			continue
		}
		c := &combined[i]
		c.Steps = slices.Concat(c.Steps, u.Steps)
		if u.Event.Type != "" && (c.Event.Type == "" || u.Event.Epoch > c.Event.Epoch) {
			c.Event = u.Event
		}
	}
	return combined, refused
}

// MaxHistory bounds the steps of one record: beyond it the oldest ones after the first two are forgotten.
const MaxHistory = 100

// MaxDetail bounds the detail of a step, in bytes.
const MaxDetail = 500

// Merge returns history with steps added, and whether that changed anything; history itself is not changed.
// A history holds each status of each attempt once, with the earliest time that was reported for it, in the
// order of attempt and rank. So the result depends neither on the order of the writes nor on how often one
// of them is repeated, and the status of a record never goes back.
func Merge(history, steps []Step) ([]Step, bool) {
	merged := slices.Clone(history)
	for _, s := range steps {
		s = s.normal()
		i, found := slices.BinarySearchFunc(merged, s, Step.compare)
		switch {
		case !found:
			merged = slices.Insert(merged, i, s)
		case s.before(merged[i]):
			if s.More == nil {
				s.More = merged[i].More
			}
			merged[i] = s
		}
	}
	if over := len(merged) - MaxHistory; over > 0 {
		merged = slices.Delete(merged, 2, 2+over) // keeps detected and queued of the original
	}
	if slices.EqualFunc(merged, history, Step.equal) {
		return history, false
	}
	return merged, true
}

// Merge returns the record with u added, and whether that changed anything. Of two copies of the event the
// one with the higher epoch is kept: an event that is made again after a rollback of Redis has the same id
// and a newer epoch.
func (r Record) Merge(u Update) (Record, bool) {
	history, changed := Merge(r.History, u.Steps)
	r.History = history
	if u.Event.Type != "" && u.Event.Epoch > r.Event.Epoch {
		r.Event, changed = u.Event, true
	}
	return r, changed
}

// Page is one page of a user's events, newest first.
type Page struct {
	Records []Record
	// Continuation fetches the next page, "" when there is none.
	Continuation string
}
