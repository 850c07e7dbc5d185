package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"slices"
	"time"

	"userconnectivity/handler/config"
	"userconnectivity/handler/cosmosstore"
	"userconnectivity/handler/health"
	"userconnectivity/handler/maintenance"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/queue"
	"userconnectivity/handler/redisconn"
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
	// worryingOverdue is how long a session may be overdue before an app without the listener tells that none runs:
	// longer than the listener's app takes to start.
	worryingOverdue = 30 * time.Second
	// remembered is how long health tells of what went wrong for good, such as a message that was put aside, and
	// recent how long of what may go wrong now and then.
	remembered = time.Hour
	recent     = time.Minute
	// checkEvery is how often the properties of the queue are looked at, and recheckEvery while they are wrong.
	checkEvery   = 10 * time.Minute
	recheckEvery = time.Minute
)

// warner is a part that knows of something wrong, with its cure. Health tells it in addition to what it finds itself.
type warner interface{ Warnings() []string }

// warningsOf returns the warnings of those of the parts that have any.
func warningsOf(parts ...any) []string {
	var all []string
	for _, p := range parts {
		if w, ok := p.(warner); ok {
			all = append(all, w.Warnings()...)
		}
	}
	return all
}

// Health looks at every part at once.
func (a *app) Health(ctx context.Context) map[string]health.Part {
	checks := map[string]func(context.Context) health.Part{
		"redis":    a.redisPart,
		"queue":    a.queuePart,
		"eventLog": a.eventLogPart,
		"listener": a.listenerPart,
		"worker":   a.workerPart,
		"clock":    a.clockPart,
		"process":  a.processPart,
	}
	type named struct {
		name string
		part health.Part
	}
	looks := make(chan named, len(checks))
	for name, check := range checks {
		go func() { looks <- named{name, a.look(ctx, name, check)} }() // ends with its look
	}
	parts := make(map[string]health.Part, len(checks))
	for range checks {
		l := <-looks
		parts[l.name] = l.part
	}
	return parts
}

// look looks at one part. Callers at the same time share one look, and one that hangs is not waited for and not
// joined by another: there is at most one for each part. The age of the part is that of its look.
func (a *app) look(ctx context.Context, name string, check func(context.Context) health.Part) health.Part {
	asked := time.Now()
	look := a.looks.DoChan(name, func() (found any, _ error) {
		a.begun.Store(name, time.Now())
		defer func() {
			if p := recover(); p != nil { // here nobody else could, and it would end the process
				a.log.ErrorContext(ctx, "a check of health panicked", "part", name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				found = health.Part{Status: health.Degraded, Detail: "the check of this part panicked; the log says where"}
			}
		}()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), healthTimeout)
		defer cancel()
		return check(ctx), nil
	})
	age := func() time.Duration {
		if begun, ok := a.begun.Load(name); ok {
			return time.Since(begun.(time.Time))
		}
		return time.Since(asked)
	}
	patience := time.NewTimer(healthTimeout + healthGrace)
	defer patience.Stop()
	select {
	case l := <-look:
		part := l.Val.(health.Part)
		part.Age = age()
		return part
	case <-patience.C:
		part := health.Part{Age: age()}
		status := health.Degraded
		if name == "redis" {
			status = health.Down
		}
		part.Add(status, fmt.Sprintf("no answer within %v; the look at it hangs since %v", healthTimeout+healthGrace, part.Age.Round(100*time.Millisecond)))
		return part
	}
}

// rose returns by how much a counter rose in its last rise, if that was within a time.
func (a *app) rose(within time.Duration, counter string, value int64) int64 {
	return a.rises.Within(within, counter, value, time.Now())
}

// settings adds what is wrong with the settings of a part. It reports whether the part can run.
func (a *app) settings(part *health.Part, of config.Part, unusable health.Status) bool {
	wrong := a.wrong.Unusable(of)
	if wrong != nil {
		part.Add(unusable, wrong.Error())
	}
	part.Warn(a.wrong.Minor(of)...)
	return wrong == nil
}

// redisFigures are what the part of Redis shows. Of settings that cannot be used it has the first two alone.
type redisFigures struct {
	Breaker         maintenance.Status   `json:"breaker"`
	Partitions      int                  `json:"partitions"`
	LastMaintenance []maintenanceFigures `json:"lastMaintenance,omitzero"`
	*serverFigures                       // once it has answered
	Budget          *budgetFigures       `json:"budget,omitempty"`
	Memory          *memoryFigures       `json:"memory,omitempty"`
	Deferred        *deferredFigures     `json:"deferred,omitempty"`
	// Nodes are the primaries of a cluster by their addresses, which may be none; nil for a single server.
	Nodes map[string]nodeFigures `json:"nodes,omitzero"`
}

type serverFigures struct {
	Server      string `json:"server"`
	Version     string `json:"version"`
	Cluster     bool   `json:"cluster"`
	Connections int    `json:"connections"`
}

type budgetFigures struct {
	ConnectionsPerProcess int `json:"connectionsPerProcess"`
	Instances             int `json:"instances"`
	Used                  int `json:"used"`
	Limit                 int `json:"limit"`
}

type memoryFigures struct {
	UsedBytes  int64  `json:"usedBytes"`
	LimitBytes int64  `json:"limitBytes"`
	Policy     string `json:"policy"`
	Evicted    int64  `json:"evicted"`
}

type deferredFigures struct {
	Waiting int   `json:"waiting"`
	Written int64 `json:"written"`
	Expired int64 `json:"expired"`
	Refused int64 `json:"refused"`
}

type nodeFigures struct {
	Breaker maintenance.Status `json:"breaker"`
	Opened  int64              `json:"opened"`
	Detail  string             `json:"detail,omitempty"`
}

type maintenanceFigures struct {
	Type     maintenance.Type `json:"type"`
	Start    *string          `json:"start"`
	Received string           `json:"received"`
	LagMs    int64            `json:"lagMs"`
	Raw      string           `json:"raw"`
	Address  *string          `json:"address"`
}

// redisPart looks at Redis, and tells what this process knows of its way there.
func (a *app) redisPart(ctx context.Context) health.Part {
	var part health.Part
	breaker := a.breaker.State()
	shown := redisFigures{Breaker: breaker.Status, Partitions: a.cfg.Partitions}
	if !a.settings(&part, config.Redis, health.Down) {
		part.Figures = shown
		return part // nobody need be asked
	}
	a.askRedis(ctx, &part, &shown)
	a.tellWaiting(&part, &shown)
	part.Figures = shown
	part.Warn(warningsOf(a.redis, a.store, a.deferred, a.breaker, a.identity)...)
	return part
}

// askRedis adds what Redis answers, or why it does not.
func (a *app) askRedis(ctx context.Context, part *health.Part, shown *redisFigures) {
	err := a.store.Ping(ctx)
	breaker := a.breaker.State()
	_, allOpen := a.breaker.Open("")
	switch {
	case errors.Is(err, context.DeadlineExceeded) && breaker.Status == maintenance.Closed && a.redis.Fault() == nil:
		// Others are answered, or the breaker would open soon: it is only far away or busy.
		part.Warn("redis did not answer in time: " + redisconn.Cause(err).Error())
	case err != nil && (allOpen || breaker.Status == maintenance.Closed):
		// While the breaker is open no call finds out more than that.
		part.Add(health.Down, cmp.Or(a.redis.Fault(), redisconn.Cause(err)).Error())
	case breaker.Status == maintenance.Open:
		part.Warn(breaker.Reason)
	}
	if err == nil {
		switch all, refused := a.store.CheckWrites(ctx); {
		case errors.Is(refused, context.DeadlineExceeded): // it answered the call before, and is only far away or busy
			part.Note("whether heartbeats can be stored was not found out in time: " + redisconn.Cause(refused).Error())
		case all:
			part.Add(health.Down, "no heartbeat can be stored: "+redisconn.Cause(refused).Error())
		case refused != nil:
			part.Warn("heartbeats of some users cannot be stored: " + redisconn.Cause(refused).Error())
		default: // what no such look finds
			if refused := a.redis.Refused(recent); refused != nil {
				part.Warn("some commands are refused: " + refused.Error())
			}
		}
		if subscription := a.redis.Subscription(); subscription != nil && !a.cfg.Listener { // else the listener's part tells
			part.Warn("maintenance messages do not come in: " + subscription.Error())
		}
		if memories, _ := a.redis.Memory(ctx); len(memories) > 0 { // a right that is missing hides it
			m := memories.Worst()
			shown.Memory = &memoryFigures{m.Used, m.Limit, m.Policy, m.Evicted}
			part.Warn(m.Warnings()...)
		}
	}
	shown.Breaker, shown.LastMaintenance, shown.Nodes = breaker.Status, lastMaintenance(breaker.Events), nodeParts(breaker.Nodes)
	perProcess := 1
	if server, connections, connected := a.redis.Server(); connected {
		perProcess = max(connections, 1)
		shown.serverFigures = &serverFigures{server.Name, server.Version, server.Cluster, connections}
	}
	budget := a.budget(perProcess)
	shown.Budget = &budgetFigures{budget.PerProcess, budget.Instances, budget.Used(), budget.Limit}
	part.Warn(budget.Warnings()...)
}

// tellWaiting adds what became of the heartbeats and leaves that could not be written at once.
func (a *app) tellWaiting(part *health.Part, shown *redisFigures) {
	waiting := a.deferred.State()
	if waiting.Deferred > 0 {
		shown.Deferred = &deferredFigures{waiting.Items, waiting.Written, waiting.Expired, waiting.Refused}
	}
	if n := a.rose(recent, "refused", waiting.Refused); n > 0 {
		part.Warn(fmt.Sprintf("%d heartbeats and leaves were refused with 503 in the last minute, since the room for those that wait for Redis is full: "+
			"their clients send them again; what mends it is Redis", n))
	}
	if n := a.rose(remembered, "expired", waiting.Expired); n > 0 {
		part.Warn(fmt.Sprintf("%d heartbeats and leaves that waited for Redis came to nothing in the last hour: their deadline passed first; users of them may have been "+
			"reported offline", n))
	}
	later := a.store.Later()
	if n := a.rose(recent, "later", later.Refused+later.Unread); n > 0 {
		part.Warn(fmt.Sprintf("%d heartbeats, leaves and reads in the last minute were of users whose record only a later version knows; they wait for a process of the version that wrote it: "+
			"finish the roll-out, or go forward to that version again", n))
	}
	var failed int64
	for _, tracker := range a.trackers {
		tally := tracker.Tally()
		failed += tally.BeatsFailed + tally.LeavesFailed
	}
	if n := a.rose(recent, "failed", failed); n > 0 {
		part.Warn(fmt.Sprintf("%d heartbeats and leaves failed in the last minute; the log says why (\"state store\")", n))
	}
}

// nodeParts shows the breakers of a cluster's primaries.
func nodeParts(nodes map[string]maintenance.State) map[string]nodeFigures {
	if nodes == nil {
		return nil
	}
	shown := make(map[string]nodeFigures, len(nodes))
	for node, s := range nodes {
		one := nodeFigures{Breaker: s.Status, Opened: s.Opened}
		if s.Status == maintenance.Open {
			one.Detail = s.Reason
		}
		shown[node] = one
	}
	return shown
}

// lastMaintenance shows the last messages, newest first.
func lastMaintenance(events []maintenance.Event) []maintenanceFigures {
	shown := make([]maintenanceFigures, len(events))
	for i, e := range events {
		shown[i] = maintenanceFigures{
			Type: e.Type, Start: presence.FormatOptional(e.Start), Received: presence.FormatTime(e.Received), LagMs: e.Lag().Milliseconds(), Raw: e.Raw,
		}
		if e.Address.IsValid() {
			shown[i].Address = new(e.Address.String())
		}
	}
	return shown
}

// queueFigures are what the part of the queue shows.
type queueFigures struct {
	Name    string `json:"name"`
	Waiting *int64 `json:"waiting,omitempty"`
}

// queuePart asks whether the queue takes messages. That it does is all that can be proven: whether somebody takes them
// out is only seen from there.
func (a *app) queuePart(ctx context.Context) health.Part {
	shown := queueFigures{Name: a.cfg.EventsQueue}
	part := health.Part{}
	waiting := "events wait in the outbox (the listener's app tells how many): "
	if a.cfg.Listener {
		n := a.listener.State().Outbox
		shown.Waiting, waiting = &n, fmt.Sprintf("%d events wait in the outbox: ", n)
	}
	part.Figures = shown
	if !a.settings(&part, config.Queue, health.Degraded) {
		part.Detail = waiting + part.Detail
		return part
	}
	if err := a.sender.Ping(ctx, a.cfg.EventsQueue); err != nil {
		part.Warn(waiting + err.Error())
	}
	if warnings := a.queueWarnings.Load(); warnings != nil {
		part.Warn(*warnings...)
	}
	if n := a.rose(remembered, "rejected", a.sent.Rejected()); n > 0 {
		part.Warn(fmt.Sprintf("%d messages were put aside in the last hour, in the queues %s or %s, since they can never succeed: each has its reason with it (property reason); "+
			"mend that, then send events again with POST /api/events/{id}/replay", n, queue.ConnectivityEvents+queue.RejectedSuffix, queue.Heartbeats+queue.RejectedSuffix))
	}
	part.Warn(warningsOf(a.sender)...)
	return part
}

// queueChecker looks at the properties of a queue, where its rights allow that; a servicebus.Sender is one.
type queueChecker interface {
	// Check returns a warning, with the cure, for each property that would break a promise.
	Check(ctx context.Context, queue string) []string
	// CheckAside returns a warning for each of the queues whose messages were put aside.
	CheckAside(ctx context.Context, queues ...string) []string
}

// checkQueue looks at the properties of the queue at the start and now and then, until ctx ends. Health shows what
// it found, and a line in the log tells of each change.
func (a *app) checkQueue(ctx context.Context, checker queueChecker) {
	for ctx.Err() == nil {
		warnings := append(checker.Check(ctx, a.cfg.EventsQueue), checker.CheckAside(ctx, queue.ConnectivityEvents, queue.Heartbeats)...)
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

// eventLogFigures are what Cosmos DB charged; a file has none.
type eventLogFigures struct {
	RequestUnits float64 `json:"requestUnits"`
	Requests     int64   `json:"requests"`
	Throttled    int64   `json:"throttled"`
}

func (a *app) eventLogPart(ctx context.Context) health.Part {
	var part health.Part
	if !a.settings(&part, config.EventLog, health.Degraded) {
		return part
	}
	if err := a.records.Ping(ctx); err != nil {
		part.Warn(err.Error())
	}
	if charged, ok := a.records.(interface {
		Charges() map[string]cosmosstore.Charge
	}); ok {
		var sum eventLogFigures
		for _, c := range charged.Charges() {
			sum.RequestUnits += c.RequestUnits
			sum.Requests += c.Requests
			sum.Throttled += c.Throttled
		}
		sum.RequestUnits = math.Round(sum.RequestUnits*100) / 100
		part.Figures = sum
		if n := a.rose(recent, "throttled", sum.Throttled); n > 0 {
			part.Warn(fmt.Sprintf("the account throttled %d requests in the last minute (429), which are tried again: raise its maximum of request units (cosmosMaxRu)", n))
		}
	}
	if n := a.rose(recent, "users records later", a.logged.Later()); n > 0 {
		part.Warn(fmt.Sprintf("%d times in the last minute an event waited for a users record that only a later version may change: "+
			"finish the roll-out, or go forward to that version again", n))
	}
	if n := a.rose(remembered, "users records repaired", a.logged.Repaired()); n > 0 {
		part.Note(fmt.Sprintf("%d users records had members in the last hour that could not be read; they were written anew with the next event of their user: "+
			"find out what else writes them", n))
	}
	part.Warn(warningsOf(a.records)...)
	return part
}

// workerFigures count the events that this process worked on since it began.
type workerFigures struct {
	Done   int64 `json:"done"`
	Failed int64 `json:"failed"`
	Dead   int64 `json:"dead"`
}

// workerPart tells how the events fare that this process takes from the queue.
func (a *app) workerPart(context.Context) health.Part {
	var shown workerFigures
	shown.Done, shown.Failed, shown.Dead = a.logged.Progress()
	part := health.Part{Figures: shown}
	failed, done := a.rose(recent, "events failed", shown.Failed), a.rose(recent, "events done", shown.Done)
	switch {
	case failed > 0 && done == 0:
		part.Warn(fmt.Sprintf("no event succeeded in the last minute, and %d failed, which are delivered again: GET /api/events/{id} and the log say why", failed))
	case failed > 0:
		part.Note(fmt.Sprintf("%d events failed in the last minute and are delivered again", failed))
	}
	if n := a.rose(remembered, "events dead", shown.Dead); n > 0 {
		part.Warn(fmt.Sprintf("%d events were given up in the last hour (status dead): GET /api/events/{id} says why; mend that, then POST /api/events/{id}/replay", n))
	}
	part.Warn(warningsOf(a.worker)...)
	return part
}

// clockFigures are what the part of the clock shows.
type clockFigures struct {
	OffsetMs *int64 `json:"offsetMs"`
}

// clockPart compares the clock of this process with that of Redis. Deadlines are not touched by it: only the clock
// of Redis counts there.
func (a *app) clockPart(ctx context.Context) health.Part {
	part := health.Part{Figures: clockFigures{}}
	asked := time.Now()
	due, err := a.store.Due(ctx, []int{0})
	if err != nil || len(due) == 0 {
		part.Add(health.Unknown, "not compared: Redis did not answer")
		return part
	}
	trip := time.Since(asked)
	offset := asked.Add(trip / 2).Sub(due[0].Now)
	ms := offset.Milliseconds()
	part.Figures = clockFigures{&ms}
	if offset.Abs()-trip/2 > worryingOffset {
		ahead := "ahead of"
		if offset < 0 {
			ahead = "behind"
		}
		part.Warn(fmt.Sprintf("the clock of this machine is %s %s that of Redis. Deadlines keep to the clock of Redis, but if it is this one that is wrong, "+
			"Service Bus and Cosmos DB may refuse its tokens and signatures, and beats from the queue get a wrong age. Set it with: sudo timedatectl set-ntp true; "+
			"in Azure, have the app moved to another machine with: az functionapp restart --resource-group <resource-group> --name %s",
			offset.Abs().Round(time.Second), ahead, a.cfg.App))
	}
	return part
}

// processPart tells of settings that are for the process as a whole.
func (a *app) processPart(context.Context) health.Part {
	var part health.Part
	a.settings(&part, config.Process, health.Degraded)
	if fault := a.traces.Fault(); fault != "" {
		part.Note("traces cannot be sent and are dropped: " + fault)
	}
	return part
}

// listenerFigures are what the part of the listener shows in an app that has it.
type listenerFigures struct {
	Running        bool                    `json:"running"`
	LastSweepAt    *string                 `json:"lastSweepAt"`
	LagMs          int64                   `json:"lagMs"`
	LastLatenessMs int64                   `json:"lastLatenessMs"`
	OutboxDepth    int64                   `json:"outboxDepth"`
	OldestOutboxMs int64                   `json:"oldestOutboxMs"`
	HoldUntil      *string                 `json:"holdUntil"`
	Notifications  redisconn.Notifications `json:"notifications"`
	Claimed        int64                   `json:"claimed"`
	Relayed        int64                   `json:"relayed"`
	Quarantined    int64                   `json:"quarantined"`
	ForeignKeys    *foreignFigures         `json:"foreignKeys,omitempty"`
}

type foreignFigures struct {
	Claimed   int64 `json:"claimed"`
	NotHolder int64 `json:"notHolder"`
	Dropped   int64 `json:"dropped"`
}

// listenerElsewhere is what the part shows in an app without the listener.
type listenerElsewhere struct {
	Running bool `json:"running"`
}

func (a *app) listenerPart(ctx context.Context) health.Part {
	var part health.Part
	a.settings(&part, config.Listener, health.Degraded)
	if !a.cfg.Listener {
		part.Figures = listenerElsewhere{}
		part.Note("the listener runs in another app: AzureWebJobs_ExpirationListener_Disabled is true here")
		a.lookForListener(ctx, &part)
		return part
	}
	s, now := a.listener.State(), time.Now()
	shown := listenerFigures{
		Running: s.Running, LastSweepAt: presence.FormatOptional(s.LastSweep), LagMs: s.Lag(now).Milliseconds(),
		LastLatenessMs: s.Lateness.Milliseconds(), OutboxDepth: s.Outbox, OldestOutboxMs: s.Oldest.Milliseconds(),
		Notifications: s.Notifications, Claimed: s.Claimed, Relayed: s.Relayed, Quarantined: s.Quarantined,
	}
	if a.cfg.ExpirationRoutes != "" {
		shown.ForeignKeys = &foreignFigures{s.Foreign.Claimed, s.Foreign.NotHolder, s.Foreign.Dropped}
	}
	part.Figures = shown
	claimed := a.rose(recent, "claimed", s.Claimed)
	switch {
	case !s.Running || s.Lag(now) > worryingLag:
		part.Warn("no sweep has succeeded for " + s.Lag(now).Round(time.Millisecond).String() + ": offline events are late. " + s.SweepError)
	case claimed > 0 && s.Lateness > worryingLag:
		part.Warn("sessions were claimed " + s.Lateness.Round(time.Millisecond).String() + " after their deadline: more are due at once than Redis takes")
	}
	if s.Foreign.Error != "" {
		part.Warn("expired keys of EXPIRATION_ROUTES are lost: " + s.Foreign.Error)
	}
	switch {
	case s.RelayError != "":
		part.Warn("events wait in the outbox: " + s.RelayError)
	case s.Oldest > worryingWait:
		part.Warn("the oldest event has waited " + s.Oldest.Round(time.Second).String() + " in the outbox")
	}
	if subscription := a.redis.Subscription(); subscription != nil {
		part.Warn("expired events and maintenance messages do not come in; offline events come from the deadlines alone: " + subscription.Error())
	}
	if n := a.rose(remembered, "quarantined", s.Quarantined); n > 0 {
		part.Warn(fmt.Sprintf("%d deadlines of sessions that no record knows were put aside in the last hour: somebody else writes to or deletes from this Redis; "+
			"look at them with: redis-cli --scan --pattern '*quarantine'", n))
	}
	if n := a.rose(remembered, "foreign dropped", s.Foreign.Dropped); n > 0 {
		part.Warn(fmt.Sprintf("%d expired keys of EXPIRATION_ROUTES became no event in the last hour: more expired at once than are kept in memory, or Redis was away", n))
	}
	switch {
	case a.cfg.ExpirationRoutes != "" && s.Notifications == redisconn.NotificationsOff:
		part.Warn(s.NotificationsDetail)
	case part.Status == "" || part.Status == health.OK:
		part.Note(s.NotificationsDetail)
	}
	part.Warn(warningsOf(a.listener)...)
	return part
}

// lookForListener looks, in an app without the listener, whether there is one anywhere: without it sessions stay
// overdue, and nobody is told to be offline.
func (a *app) lookForListener(ctx context.Context, part *health.Part) {
	overdue, err := a.store.Overdue(ctx)
	switch {
	case err != nil:
		part.Add(health.Unknown, "whether it runs cannot be told: Redis did not answer")
	case overdue > worryingOverdue:
		part.Warn("no listener runs anywhere: a session is overdue by " + overdue.Round(time.Second).String() +
			", and users are not reported offline; look at GET /api/health of the listener's app, and start it with: az functionapp start --resource-group <resource-group> --name <listener>")
	}
}
