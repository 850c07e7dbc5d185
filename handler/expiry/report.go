package expiry

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"userconnectivity/handler/redisconn"
)

// State is what the listener did and how it is.
type State struct {
	Running bool
	// Started is when the loop began, LastSweep when a sweep last succeeded; zero when none did.
	Started, LastSweep time.Time
	// Sweeps, Claimed, Lost and Quarantined count since the process began.
	Sweeps, Claimed, Lost, Quarantined int64
	// Lateness is that of the latest claim in the last sweep that had any.
	Lateness time.Duration
	// ExpiredEvents counts the expired events of our leases that came in, Foreign those of other keys.
	ExpiredEvents int64
	Foreign       Foreign
	// Outbox is how many events wait to be relayed, by the last sweep; Oldest how long the oldest has waited.
	Outbox int64
	Oldest time.Duration
	// Notifications says whether Redis publishes expired events; NotificationsDetail why it does not.
	Notifications       redisconn.Notifications
	NotificationsDetail string
	// SweepError and RelayError are the last faults, "" once it went well again.
	SweepError, RelayError string
	// Relayed counts the events that were sent, logged and acknowledged.
	Relayed int64
	// Relay is what else the relay did and how it is.
	Relay RelayState
}

// Lag is how long due sessions may have been waiting: the time since the last good sweep beyond its tick.
func (s State) Lag(now time.Time) time.Duration {
	since := s.LastSweep
	if since.IsZero() {
		since = s.Started
	}
	return max(now.Sub(since)-2*tick, 0)
}

// State returns what the listener did and how it is.
func (l *Listener) State() State {
	l.mu.Lock()
	s := l.state
	l.mu.Unlock()
	s.Relay = l.relay.State()
	s.Relayed, s.RelayError = s.Relay.Relayed, s.Relay.Fault
	return s
}

// tell logs what was claimed since the last call, and every reportEvery how the listener is: the alerts read
// that line (infra/modules/alerts.bicep).
func (l *Listener) tell(ctx context.Context, before State, report bool) State {
	s := l.State()
	if claimed, junk := s.Claimed-before.Claimed, s.Quarantined-before.Quarantined; claimed > 0 || junk > 0 {
		l.log.InfoContext(ctx, "claimed", "sessions", claimed, "latest_ms", s.Lateness.Milliseconds(), "lost", s.Lost-before.Lost, "quarantined", junk)
	}
	if claimed, dropped := s.Foreign.Claimed-before.Foreign.Claimed, s.Foreign.Dropped-before.Foreign.Dropped; claimed > 0 || dropped > 0 {
		l.log.InfoContext(ctx, "foreign keys expired", "claimed", claimed, "dropped", dropped, "error", s.Foreign.Error)
	}
	if report {
		l.log.InfoContext(ctx, "listener report", "lagMs", s.Lag(time.Now()).Milliseconds(), "outboxDepth", s.Outbox,
			"oldestOutboxMs", s.Oldest.Milliseconds(), "claimed", s.Claimed, "relayed", s.Relayed, "notifications", string(s.Notifications))
	}
	return s
}

func (l *Listener) measureOutbox(ctx context.Context) {
	l.mu.Lock()
	empty := l.state.Outbox == 0
	if empty {
		l.state.Oldest = 0
	}
	l.mu.Unlock()
	if empty {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	if oldest, err := l.relay.outbox.Lag(ctx, time.Now()); err == nil {
		l.mu.Lock()
		l.state.Oldest = oldest
		l.mu.Unlock()
	}
}

// RelayState is what the relay of this process did since it began, and how it is.
type RelayState struct {
	// Relayed counts the events that were sent, logged and acknowledged.
	Relayed int64
	// Fault is what fails, "" for nothing.
	Fault string
	// Sent is how many events were sent and are not yet logged and acknowledged: they are sent again after a restart, with
	// the same ids.
	Sent int
	// Newer is how many entries of a later version are pending, as far as this process knows. A process of that version
	// takes them over.
	Newer int
	// QueueRefused and LogRefused count the events that the queue or the log refused for good. The first are logged as
	// dead with the reason, the others were sent; a copy of each is in the quarantine stream. Refusal is the last reason.
	QueueRefused, LogRefused int64
	Refusal                  string
	// Quarantined counts what was put in the quarantine stream: these, and what could not be read.
	Quarantined int64
}

// State returns what the relay did and how it is.
func (r *Relay) State() RelayState {
	var s RelayState
	s.Relayed, s.Fault = r.progress()
	for _, l := range r.lanes {
		sent, newer := l.counts()
		s.Sent += sent
		s.Newer += newer
	}
	s.Quarantined = r.outbox.Quarantined()
	r.mu.Lock()
	defer r.mu.Unlock()
	s.QueueRefused, s.LogRefused, s.Refusal = r.refused.byQueue, r.refused.byLog, r.refused.last
	return s
}

// progress returns how many events were relayed, and what fails, "" for nothing.
func (r *Relay) progress() (relayed int64, fault string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if failed := slices.SortedFunc(maps.Keys(r.faults), place.compare); len(failed) > 0 {
		partitions := map[int]bool{}
		for _, at := range failed {
			partitions[at.partition] = true
		}
		fault = fmt.Sprintf("partition %d: %s", failed[0].partition, r.faults[failed[0]])
		if more := len(partitions) - 1; more > 0 {
			fault += fmt.Sprintf(" (and %d more of %d partitions)", more, len(r.lanes))
		}
		return r.relayed, fault
	}
	for _, to := range slices.Sorted(maps.Keys(r.failing)) {
		if f := r.failing[to]; time.Since(f.at) < routeMemory {
			return r.relayed, fmt.Sprintf("send to %s: %s", to, f.fault)
		}
	}
	return r.relayed, ""
}

// Warnings says what of the relay somebody has to know or mend.
func (l *Listener) Warnings() []string {
	var warnings []string
	s := l.relay.State()
	if s.Sent > 0 && s.Fault != "" {
		warnings = append(warnings, fmt.Sprintf("%d events were sent and wait to be logged; they stay in the outbox until then, and at most %d are sent so", s.Sent, l.relay.limits.processEvents))
	}
	if s.Newer > 0 {
		warnings = append(warnings, fmt.Sprintf("%d entries of the outbox have a form that this version does not know; they wait for a process of the version that wrote them: "+
			"finish the roll-out, or go forward to that version again", s.Newer))
	}
	if n := s.QueueRefused + s.LogRefused; n > 0 {
		warnings = append(warnings, fmt.Sprintf("%d events were refused for good since this process began, %d by the queue (logged as dead) and %d by the event log (sent all the same); "+
			"the last: %s. Copies are in the quarantine stream: redis-cli --scan --pattern '*quarantine'", n, s.QueueRefused, s.LogRefused, s.Refusal))
	}
	if n := s.Quarantined - s.QueueRefused - s.LogRefused; n > 0 {
		warnings = append(warnings, fmt.Sprintf("%d entries of the outbox could not be read, in whole or in part, since this process began: somebody else writes to this Redis. "+
			"Copies are in the quarantine stream: redis-cli --scan --pattern '*quarantine'", n))
	}
	return warnings
}
