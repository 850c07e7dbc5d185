package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// event is one of the API's events.
type event struct {
	ID         string     `json:"id"`
	Type       string     `json:"type"`
	Deadline   *time.Time `json:"deadline"`
	DetectedAt time.Time  `json:"detectedAt"`
	Status     string     `json:"status"`
	History    []struct {
		Status string    `json:"status"`
		At     time.Time `json:"at"`
	} `json:"history"`
}

// at returns when the event first reached a status.
func (e event) at(status string) (time.Time, bool) {
	for _, s := range e.History {
		if s.Status == status {
			return s.At, true
		}
	}
	return time.Time{}, false
}

// complete reports whether the event went the whole way in order.
func (e event) complete() bool {
	last := time.Time{}
	for _, status := range []string{"detected", "queued", "processing", "done"} {
		at, ok := e.at(status)
		if !ok {
			return false
		}
		if status == "detected" || status == "done" {
			if at.Before(last) {
				return false
			}
			last = at
		}
	}
	return e.Status == "done"
}

// result is what a run found.
type result struct {
	options options
	users   []string
	silent  map[string]bool
	events  map[string][]event

	offline, lost, duplicated, falseOffline, incomplete, total, wrongStates int

	retried               int64
	claim, queued, done   []time.Duration
	restarted, firstSweep time.Duration
	took                  time.Duration
}

// judge counts from the events.
func (r *result) judge() {
	r.offline, r.lost, r.duplicated, r.falseOffline, r.incomplete, r.total = 0, 0, 0, 0, 0, 0
	r.claim, r.queued, r.done = nil, nil, nil
	for _, user := range r.users {
		offline, online := 0, 0
		for _, e := range r.events[user] {
			r.total++
			if !e.complete() {
				r.incomplete++
			}
			switch e.Type {
			case "user.online":
				online++
			case "user.offline":
				offline++
				if e.Deadline == nil {
					continue
				}
				r.claim = append(r.claim, e.DetectedAt.Sub(*e.Deadline))
				if at, ok := e.at("queued"); ok {
					r.queued = append(r.queued, at.Sub(*e.Deadline))
				}
				if at, ok := e.at("done"); ok {
					r.done = append(r.done, at.Sub(*e.Deadline))
				}
			}
		}
		if online != 1 {
			r.lost++ // each user came online exactly once
		}
		switch {
		case !r.silent[user]:
			r.falseOffline += offline
		case offline == 0:
			r.lost++
		default:
			r.offline++
			r.duplicated += offline - 1
		}
	}
}

// The bars of the demo, from deadline to claim and to queue.
const (
	claimBar = 50 * time.Millisecond
	queueBar = 150 * time.Millisecond
)

// broken returns the promises that were not kept.
func (r *result) broken() (broken []error) {
	expect := func(ok bool, format string, args ...any) {
		if !ok {
			broken = append(broken, fmt.Errorf(format, args...))
		}
	}
	expect(r.offline == r.options.silent, "%d of %d silent users went offline", r.offline, r.options.silent)
	expect(r.lost == 0, "%d events lost", r.lost)
	expect(r.duplicated == 0, "%d events duplicated", r.duplicated)
	expect(r.falseOffline == 0, "%d users falsely offline", r.falseOffline)
	expect(r.incomplete == 0, "%d of %d status chains are not complete", r.incomplete, r.total)
	expect(r.wrongStates == 0, "%d users have a wrong final state", r.wrongStates)
	if !r.options.kill { // while the handler is dead nobody claims; the bars are for a living one
		claim, queued := percentile(r.claim, 99), percentile(r.queued, 99)
		expect(claim <= claimBar, "deadline to claim p99 is %s, the bar is %s", claim, claimBar)
		expect(queued <= queueBar, "deadline to queue p99 is %s, the bar is %s", queued, queueBar)
	}
	return broken
}

func (r *result) print(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name string, format string, args ...any) { fmt.Fprintf(w, "  "+name+"\t"+format+"\n", args...) }
	row("offline events", "%d of %d", r.offline, r.options.silent)
	row("lost", "%d", r.lost)
	row("duplicated", "%d (after de-duplication)", r.duplicated)
	row("false offlines", "%d of %d live users", r.falseOffline, len(r.users)-r.options.silent)
	row("wrong final states", "%d of %d users", r.wrongStates, len(r.users))
	row("status chains complete", "%d of %d events", r.total-r.incomplete, r.total)
	for _, l := range []struct {
		name string
		late []time.Duration
	}{{"deadline to claim", r.claim}, {"deadline to queue", r.queued}, {"deadline to done", r.done}} {
		row(l.name, "p50 %s  p99 %s  max %s", percentile(l.late, 50), percentile(l.late, 99), percentile(l.late, 100))
	}
	if r.options.kill {
		row("handler killed", "ready again after %s, first sweep after %s, %d calls repeated",
			r.restarted.Round(time.Millisecond), r.firstSweep.Round(time.Millisecond), r.retried)
	}
	row("took", "%s", r.took.Round(100*time.Millisecond))
	_ = w.Flush() // the terminal has gone: nobody is left to tell
}

// percentile returns the p-th percentile by nearest rank, 0 of nothing.
func percentile(of []time.Duration, p int) time.Duration {
	if len(of) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(of))
	return sorted[max((len(sorted)*p+99)/100, 1)-1]
}
