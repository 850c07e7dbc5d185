package localhost

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/adhocore/gronx"
)

// schedule says when a timer is due.
type schedule interface {
	// next returns the first time after t, or an error when there is none.
	next(t time.Time) (time.Time, error)
	adjustForDST() bool
}

// cron is an NCRONTAB expression of 5 or, with seconds first, 6 fields, in the local time zone.
type cron string

func (c cron) next(t time.Time) (time.Time, error) { return gronx.NextTickAfter(string(c), t, false) }
func (cron) adjustForDST() bool                    { return true }

// interval is a schedule of hh:mm:ss.
type interval time.Duration

func (i interval) next(t time.Time) (time.Time, error) { return t.Add(time.Duration(i)), nil }
func (interval) adjustForDST() bool                    { return false }

func parseSchedule(s string) (schedule, error) {
	if d, err := parseTimeSpan(s); err == nil {
		return interval(d), nil
	}
	if n := len(strings.Fields(s)); n != 5 && n != 6 || !gronx.IsValid(s) {
		return nil, fmt.Errorf("%q is neither a cron expression of 5 or 6 fields nor hh:mm:ss", s)
	}
	if _, err := cron(s).next(time.Now()); err != nil {
		return nil, fmt.Errorf("%q is never due: %w", s, err)
	}
	return cron(s), nil
}

// monitored reports whether the Functions host would keep a status: not when told so, and not when two calls
// are less than a minute apart.
func monitored(f *function, now time.Time) bool {
	if f.trigger.UseMonitor != nil && !*f.trigger.UseMonitor {
		return false
	}
	for range 5 {
		next, err := f.schedule.next(now)
		if err != nil {
			return true
		}
		if after, err := f.schedule.next(next); err == nil && after.Sub(next) < time.Minute {
			return false
		}
		now = next
	}
	return true
}

// runTimer calls a timer function when it is due, one call at a time, until ctx is done. The status of its
// calls lives as long as the host.
func (h *Host) runTimer(ctx context.Context, f *function) {
	var last time.Time
	withStatus := monitored(f, time.Now())
	call := func(next time.Time) {
		var status *scheduleStatus
		if withStatus {
			status = newScheduleStatus(last, next)
		}
		last = time.Now()
		if err := h.invoke(f.name, timerEnvelope(f, status, last)); err != nil && !errors.Is(err, errStopping) {
			h.log.Error("timer failed", "function", f.name, "error", err)
		}
	}
	after := time.Now()
	if f.trigger.RunOnStartup {
		if next, err := f.schedule.next(after); err == nil {
			call(next)
		}
	}
	for ctx.Err() == nil {
		if now := time.Now(); now.After(after) {
			after = now // calls that were missed are not made up for
		}
		next, err := f.schedule.next(after)
		if err != nil {
			h.log.Error("timer ends", "function", f.name, "error", err)
			return
		}
		if !wait(ctx, time.Until(next)) {
			return
		}
		call(next)
		after = next
	}
}
