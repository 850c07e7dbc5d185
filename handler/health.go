package main

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"userconnectivity/handler/cosmosstore"
	"userconnectivity/handler/maintenance"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/redisstore"
	"userconnectivity/handler/triggers"
)

const (
	// healthTimeout bounds the look at each part, and healthGrace what a look may take to notice its end: with
	// both, health answers within 2 s even when every part hangs.
	healthTimeout = 1500 * time.Millisecond
	healthGrace   = 300 * time.Millisecond
	// worryingLag is how late the sweep may be before health tells.
	worryingLag = time.Second
	// worryingWait is how long an event may wait in the outbox before health tells.
	worryingWait = 10 * time.Second
	// worryingOffset is how far the clock of this process may be from that of Redis before health tells.
	worryingOffset = 30 * time.Second
	// checkEvery is how often the properties of the queue are looked at, and recheckEvery while they are wrong.
	checkEvery   = 10 * time.Minute
	recheckEvery = time.Minute
)

// Health looks at every part at once.
func (a *app) Health(ctx context.Context) map[string]triggers.Part {
	checks := map[string]func(context.Context) triggers.Part{
		"redis":    a.redisPart,
		"queue":    a.queuePart,
		"eventLog": a.eventLogPart,
		"listener": a.listenerPart,
		"clock":    a.clockPart,
	}
	type named struct {
		name string
		part triggers.Part
	}
	looks := make(chan named, len(checks))
	for name, check := range checks {
		go func() { looks <- named{name, a.look(ctx, name, check)} }() // ends with its look
	}
	parts := make(map[string]triggers.Part, len(checks))
	for range checks {
		l := <-looks
		parts[l.name] = l.part
	}
	return parts
}

// look looks at one part. Callers at the same time share one look, and one that hangs is not waited for and not
// joined by another: there is at most one for each part.
func (a *app) look(ctx context.Context, name string, check func(context.Context) triggers.Part) triggers.Part {
	look := a.looks.DoChan(name, func() (found any, _ error) {
		defer func() {
			if p := recover(); p != nil { // here nobody else could, and it would end the process
				a.log.ErrorContext(ctx, "a check of health panicked", "part", name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				found = triggers.Part{"status": "degraded", "detail": fmt.Sprintf("the check panicked: %v", p)}
			}
		}()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), healthTimeout)
		defer cancel()
		return check(ctx), nil
	})
	patience := time.NewTimer(healthTimeout + healthGrace)
	defer patience.Stop()
	select {
	case l := <-look:
		return l.Val.(triggers.Part)
	case <-patience.C:
		status := "degraded"
		if name == "redis" {
			status = "down"
		}
		return triggers.Part{"status": status, "detail": fmt.Sprintf("no answer within %v", healthTimeout+healthGrace)}
	}
}

func (a *app) redisPart(ctx context.Context) triggers.Part {
	err := a.store.Ping(ctx)
	var writes error
	memory, memoryErr := redisstore.MemoryState{}, err
	if err == nil {
		writes = a.store.CheckWrites(ctx)
		memory, memoryErr = a.redis.MemoryState(ctx)
	}
	breaker := a.breaker.State()
	part := triggers.Part{"status": "ok", "breaker": breaker.Status, "partitions": a.cfg.Partitions, "lastMaintenance": lastMaintenance(breaker.Events)}
	server, connections, connected := a.redis.Server()
	perProcess := 1
	if connected {
		perProcess = max(connections, 1)
		part["server"], part["version"], part["cluster"], part["connections"] = server.Name, server.Version, server.Cluster, connections
	}
	budget := a.budget(perProcess)
	if waiting := a.deferred.State(); waiting.Deferred > 0 {
		part["deferred"] = map[string]any{"waiting": waiting.Items, "written": waiting.Written, "expired": waiting.Expired, "refused": waiting.Refused}
	}
	part["budget"] = map[string]any{
		"connectionsPerProcess": budget.PerProcess, "instances": budget.Instances,
		"used": budget.Used(), "limit": budget.Limit,
	}
	if memoryErr == nil {
		part["memory"] = map[string]any{"usedBytes": memory.Used, "limitBytes": memory.Limit, "policy": memory.Policy, "evicted": memory.Evicted}
	}
	if breaker.Nodes != nil {
		part["nodes"] = nodeParts(breaker.Nodes)
	}
	warnings := budget.Warnings()
	subscription := a.redis.Subscription()
	_, allOpen := a.breaker.Open("")
	switch {
	case err != nil && (allOpen || breaker.Status == maintenance.Closed):
		// While the breaker is open no call finds out more than that.
		part["status"], part["detail"] = "down", cmp.Or(a.redis.Fault(), err).Error()
	case breaker.Status == maintenance.Open:
		part["status"], part["detail"] = "degraded", breaker.Reason
	case writes != nil:
		part["status"], part["detail"] = "down", "no heartbeat can be stored: "+writes.Error()
	case memory.Evicts:
		part["status"], part["detail"] = "degraded", memory.Eviction()
	case subscription != nil && !a.cfg.Listener: // else the listener's part tells
		part["status"], part["detail"] = "degraded", "maintenance messages do not come in: "+subscription.Error()
	case len(warnings) > 0:
		part["status"], part["detail"] = "degraded", strings.Join(warnings, "; ")
	}
	return part
}

// nodeParts shows the breakers of a cluster's primaries.
func nodeParts(nodes map[string]maintenance.State) map[string]any {
	shown := make(map[string]any, len(nodes))
	for node, s := range nodes {
		part := map[string]any{"breaker": s.Status, "opened": s.Opened}
		if s.Status == maintenance.Open {
			part["detail"] = s.Reason
		}
		shown[node] = part
	}
	return shown
}

// lastMaintenance shows the last messages, newest first.
func lastMaintenance(events []maintenance.Event) []map[string]any {
	shown := make([]map[string]any, len(events))
	for i, e := range events {
		shown[i] = map[string]any{
			"type": e.Type, "start": presence.FormatOptional(e.Start), "received": presence.FormatTime(e.Received),
			"lagMs": e.Lag().Milliseconds(), "raw": e.Raw, "address": nil,
		}
		if e.Address.IsValid() {
			shown[i]["address"] = e.Address.String()
		}
	}
	return shown
}

func (a *app) queuePart(ctx context.Context) triggers.Part {
	part := triggers.Part{"status": "ok", "name": a.cfg.EventsQueue}
	waiting := "events wait in the outbox (the listener's app tells how many): "
	if a.cfg.Listener {
		n := a.listener.State().Outbox
		part["waiting"], waiting = n, fmt.Sprintf("%d events wait in the outbox: ", n)
	}
	err := a.sender.Ping(ctx, a.cfg.EventsQueue)
	warnings := a.queueWarnings.Load()
	switch {
	case err != nil:
		part["status"], part["detail"] = "degraded", waiting+err.Error()
	case warnings != nil && len(*warnings) > 0:
		part["status"], part["detail"] = "degraded", strings.Join(*warnings, "; ")
	}
	return part
}

// queueChecker looks at the properties of a queue, where its rights allow that; a servicebus.Sender is one.
type queueChecker interface {
	// Check returns a warning, with the cure, for each property that would break a promise.
	Check(ctx context.Context, queue string) []string
}

// checkQueue looks at the properties of the queue at the start and now and then, until ctx ends. Health shows what
// it found, and a line in the log tells of each change.
func (a *app) checkQueue(ctx context.Context, checker queueChecker) {
	for ctx.Err() == nil {
		warnings := checker.Check(ctx, a.cfg.EventsQueue)
		before := a.queueWarnings.Swap(&warnings)
		if len(warnings) > 0 && (before == nil || !slices.Equal(*before, warnings)) {
			a.log.WarnContext(ctx, "the queue is not as it should be", "queue", a.cfg.EventsQueue, "warnings", warnings)
		}
		wait := time.NewTimer(checkEvery)
		if len(warnings) > 0 {
			wait.Reset(recheckEvery)
		}
		select {
		case <-ctx.Done():
		case <-wait.C:
		}
		wait.Stop()
	}
}

func (a *app) eventLogPart(ctx context.Context) triggers.Part {
	part := triggers.Part{"status": "ok"}
	if err := a.records.Ping(ctx); err != nil {
		part["status"], part["detail"] = "degraded", err.Error()
	} else if log := a.embeddedLog(); log != nil && len(log.Warnings()) > 0 {
		part["status"], part["detail"] = "degraded", strings.Join(log.Warnings(), "; ")
	}
	if charged, ok := a.records.(interface {
		Charges() map[string]cosmosstore.Charge
	}); ok {
		var sum cosmosstore.Charge
		for _, c := range charged.Charges() {
			sum.RequestUnits += c.RequestUnits
			sum.Requests += c.Requests
			sum.Throttled += c.Throttled
		}
		part["requestUnits"], part["requests"], part["throttled"] = math.Round(sum.RequestUnits*100)/100, sum.Requests, sum.Throttled
	}
	return part
}

// clockPart compares the clock of this process with that of Redis. Deadlines are not touched by it: only the clock
// of Redis counts there.
func (a *app) clockPart(ctx context.Context) triggers.Part {
	part := triggers.Part{"status": "ok", "offsetMs": nil}
	asked := time.Now()
	due, err := a.store.Due(ctx, []int{0})
	if err != nil || len(due) == 0 {
		part["detail"] = "not compared: Redis did not answer"
		return part
	}
	trip := time.Since(asked)
	offset := asked.Add(trip / 2).Sub(due[0].Now)
	part["offsetMs"] = offset.Milliseconds()
	if offset.Abs()-trip/2 > worryingOffset {
		ahead := "ahead of"
		if offset < 0 {
			ahead = "behind"
		}
		part["status"] = "degraded"
		part["detail"] = fmt.Sprintf("the clock of this machine is %s %s that of Redis. Deadlines keep to the clock of Redis, but if it is this one that is wrong, "+
			"Service Bus and Cosmos DB may refuse its tokens and signatures, and beats from the queue get a wrong age. Set it with: sudo timedatectl set-ntp true; "+
			"in Azure, have the app moved to another machine with: az functionapp restart --resource-group <resource-group> --name %s",
			offset.Abs().Round(time.Second), ahead, a.cfg.App)
	}
	return part
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
	if a.cfg.ExpirationRoutes != "" {
		part["foreignKeys"] = map[string]any{"claimed": s.Foreign.Claimed, "notHolder": s.Foreign.NotHolder, "dropped": s.Foreign.Dropped}
	}
	subscription := a.redis.Subscription()
	switch {
	case !s.Running || s.Lag(now) > worryingLag:
		part["status"], part["detail"] = "degraded", "no sweep has succeeded for "+s.Lag(now).Round(time.Millisecond).String()+": offline events are late. "+s.SweepError
	case s.Foreign.Error != "":
		part["status"], part["detail"] = "degraded", "expired keys of EXPIRATION_ROUTES are lost: "+s.Foreign.Error
	case s.RelayError != "":
		part["status"], part["detail"] = "degraded", "events wait in the outbox: "+s.RelayError
	case len(a.listener.Warnings()) > 0:
		part["status"], part["detail"] = "degraded", strings.Join(a.listener.Warnings(), "; ")
	case s.Oldest > worryingWait:
		part["status"], part["detail"] = "degraded", "the oldest event has waited "+s.Oldest.Round(time.Second).String()+" in the outbox"
	case subscription != nil:
		part["status"] = "degraded"
		part["detail"] = "expired events and maintenance messages do not come in; offline events come from the deadlines alone: " + subscription.Error()
	case a.cfg.ExpirationRoutes != "" && s.Notifications == redisstore.NotificationsOff:
		part["status"], part["detail"] = "degraded", s.NotificationsDetail
	case s.NotificationsDetail != "":
		part["detail"] = s.NotificationsDetail
	}
	return part
}
