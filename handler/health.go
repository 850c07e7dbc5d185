package main

import (
	"context"
	"strings"
	"sync"
	"time"

	"userconnectivity/handler/maintenance"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/triggers"
)

const (
	// healthTimeout bounds the look at each part.
	healthTimeout = 2 * time.Second
	// worryingLag is how late the sweep may be before health tells.
	worryingLag = time.Second
	// worryingWait is how long an event may wait in the outbox before health tells.
	worryingWait = 10 * time.Second
)

// Health looks at every part at once.
func (a *app) Health(ctx context.Context) map[string]triggers.Part {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	checks := map[string]func(context.Context) triggers.Part{
		"redis":    a.redisPart,
		"queue":    a.queuePart,
		"eventLog": a.eventLogPart,
		"listener": a.listenerPart,
	}
	parts := make(map[string]triggers.Part, len(checks))
	var mu sync.Mutex
	var wg sync.WaitGroup
	for name, check := range checks {
		wg.Go(func() {
			part := check(ctx)
			mu.Lock()
			defer mu.Unlock()
			parts[name] = part
		})
	}
	wg.Wait()
	return parts
}

func (a *app) redisPart(ctx context.Context) triggers.Part {
	breaker := a.breaker.State()
	part := triggers.Part{"status": "ok", "breaker": breaker.Status, "partitions": a.cfg.Partitions, "lastMaintenance": lastMaintenance(breaker.Events)}
	err := a.store.Ping(ctx)
	server, connections, connected := a.redis.Server()
	perProcess := 1
	if connected {
		perProcess = max(connections, 1)
		part["version"], part["cluster"], part["connections"] = server.Version, server.Cluster, connections
	}
	budget := a.budget(perProcess)
	part["budget"] = map[string]any{"connectionsPerProcess": budget.PerProcess, "instances": budget.Instances,
		"used": budget.Used(), "limit": budget.Limit}
	warnings := budget.Warnings()
	switch {
	case err != nil:
		part["status"], part["detail"] = "down", err.Error()
	case breaker.Status == maintenance.Open:
		part["status"], part["detail"] = "degraded", breaker.Reason
	case len(warnings) > 0:
		part["status"], part["detail"] = "degraded", strings.Join(warnings, "; ")
	}
	return part
}

// lastMaintenance shows the last messages, newest first.
func lastMaintenance(events []maintenance.Event) []map[string]any {
	shown := make([]map[string]any, len(events))
	for i, e := range events {
		shown[i] = map[string]any{"type": e.Type, "start": presence.FormatOptional(e.Start), "received": presence.FormatTime(e.Received),
			"lagMs": e.Lag().Milliseconds(), "raw": e.Raw, "address": nil}
		if e.Address.IsValid() {
			shown[i]["address"] = e.Address.String()
		}
	}
	return shown
}

func (a *app) queuePart(ctx context.Context) triggers.Part {
	if err := a.sender.Ping(ctx, a.cfg.EventsQueue); err != nil {
		return triggers.Part{"status": "degraded", "name": a.cfg.EventsQueue, "detail": "events wait in the outbox: " + err.Error()}
	}
	return triggers.Part{"status": "ok", "name": a.cfg.EventsQueue}
}

func (a *app) eventLogPart(ctx context.Context) triggers.Part {
	if err := a.records.Ping(ctx); err != nil {
		return triggers.Part{"status": "degraded", "detail": err.Error()}
	}
	return triggers.Part{"status": "ok"}
}

func (a *app) listenerPart(context.Context) triggers.Part {
	if !a.cfg.Listener {
		return triggers.Part{"status": "ok", "running": false, "detail": "the listener runs in another app: AzureWebJobs_ExpirationListener_Disabled is true here"}
	}
	s, now := a.listener.State(), time.Now()
	part := triggers.Part{
		"status": "ok", "running": s.Running, "lastSweepAt": presence.FormatOptional(s.LastSweep), "lagMs": s.Lag(now).Milliseconds(),
		"lastLatenessMs": s.Lateness.Milliseconds(), "outboxDepth": s.Outbox, "oldestOutboxMs": s.Oldest.Milliseconds(), "holdUntil": nil,
		"notifications": s.Notifications, "claimed": s.Claimed, "relayed": s.Relayed, "quarantined": s.Quarantined,
	}
	switch {
	case !s.Running || s.Lag(now) > worryingLag:
		part["status"], part["detail"] = "degraded", "no sweep has succeeded for "+s.Lag(now).Round(time.Millisecond).String()+": offline events are late. "+s.SweepError
	case s.RelayError != "":
		part["status"], part["detail"] = "degraded", "events wait in the outbox: "+s.RelayError
	case s.Oldest > worryingWait:
		part["status"], part["detail"] = "degraded", "the oldest event has waited "+s.Oldest.Round(time.Second).String()+" in the outbox"
	case s.NotificationsDetail != "":
		part["detail"] = s.NotificationsDetail
	}
	return part
}
