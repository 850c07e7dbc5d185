package main

import (
	"errors"
	"fmt"
	"time"

	"userconnectivity/handler/presence"
	"userconnectivity/handler/triggers"
)

// silentAfter is how long no sweep may have succeeded before the listener says that it does not work.
const silentAfter = 10 * time.Second

// Live returns an error when a loop of this process hangs or was never begun. An app that runs no listener has none.
func (a *app) Live() error {
	if !a.cfg.Listener {
		return nil
	}
	return a.listener.Live()
}

// Listener returns the figures of this process's listener, or why it does not run or does not sweep.
func (a *app) Listener() (triggers.ListenerFigures, error) {
	if !a.cfg.Listener {
		return triggers.ListenerFigures{}, errors.New("no listener runs in this app: AzureWebJobs_ExpirationListener_Disabled is true here")
	}
	if err := a.listener.Live(); err != nil {
		return triggers.ListenerFigures{}, err
	}
	s, now := a.listener.State(), time.Now()
	switch lag := s.Lag(now); {
	case !s.Running:
		return triggers.ListenerFigures{}, errors.New("the listener has not begun yet")
	case s.LastSweep.IsZero() || lag > silentAfter:
		reason := fmt.Sprintf("no sweep has succeeded for %s, so offline events are late", lag.Round(time.Millisecond))
		if s.SweepError != "" {
			reason += ": " + s.SweepError
		}
		return triggers.ListenerFigures{}, errors.New(reason)
	default:
		return triggers.ListenerFigures{
			Instance: a.cfg.App + "/" + a.cfg.Instance, StartedAt: presence.FormatTime(s.Started), LastSweepAt: presence.FormatTime(s.LastSweep),
			LagMs: lag.Milliseconds(), LastLatenessMs: s.Lateness.Milliseconds(), Sweeps: s.Sweeps, Claimed: s.Claimed, Quarantined: s.Quarantined,
			Relayed: s.Relayed, OutboxDepth: s.Outbox, OldestOutboxMs: s.Oldest.Milliseconds(), Notifications: string(s.Notifications),
		}, nil
	}
}
