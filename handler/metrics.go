package main

import (
	"fmt"
	"maps"
	"runtime"
	runtimemetrics "runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"time"

	"userconnectivity/handler/expiry"
	"userconnectivity/handler/maintenance"
	"userconnectivity/handler/redisstore"
)

// Metrics returns the numbers of this process for Prometheus. All of them are in memory: nothing is asked of Redis,
// the queue or the event log. No label has a value that clients choose.
func (a *app) Metrics() []byte {
	var e exposition
	e.metric("build_info", "gauge", "The version of this process, always 1.", sample{1, labels{"version", version, "goversion", runtime.Version()}})
	a.presenceMetrics(&e)
	a.redisMetrics(&e, time.Now())
	if a.cfg.Listener {
		listenerMetrics(&e, a.listener.State(), time.Now())
	}
	processMetrics(&e)
	return e.text
}

// The ways in of heartbeats, as the metrics name them.
const (
	overHTTP  = "http"
	overQueue = "queue"
)

// presenceMetrics tell what the beats and leaves of this process did.
func (a *app) presenceMetrics(e *exposition) {
	var beats, failed, leaves []sample
	for _, source := range slices.Sorted(maps.Keys(a.trackers)) {
		tally := a.trackers[source].Tally()
		for _, change := range slices.Sorted(maps.Keys(tally.Beats)) {
			beats = append(beats, sample{float64(tally.Beats[change]), labels{"source", source, "change", string(change)}})
		}
		failed = append(failed, sample{float64(tally.BeatsFailed), labels{"source", source}})
	}
	tally := a.trackers[overHTTP].Tally() // no leave comes over a queue
	for _, outcome := range slices.Sorted(maps.Keys(tally.Leaves)) {
		leaves = append(leaves, sample{float64(tally.Leaves[outcome]), labels{"change", string(outcome)}})
	}
	e.metric("heartbeats_total", "counter", "Heartbeats by where they came from and what they did.", beats...)
	e.metric("heartbeats_failed_total", "counter", "Heartbeats that were refused because Redis could not be reached or failed.", failed...)
	e.metric("leaves_total", "counter", "Leaves by what they did.", leaves...)
	e.counter("leaves_failed_total", "Leaves that were refused because Redis could not be reached or failed.", float64(tally.LeavesFailed))
}

// maintenanceTypes are counted from 0 on, so that the first message of a type shows as a rise.
var maintenanceTypes = []maintenance.Type{
	maintenance.Scheduled, maintenance.Starting, maintenance.Start, maintenance.FailoverComplete, maintenance.Ended, maintenance.ScaleComplete,
	maintenance.Moving, maintenance.Migrating, maintenance.Migrated, maintenance.FailingOver, maintenance.FailedOver,
	maintenance.SMigrating, maintenance.SMigrated, maintenance.Unknown,
}

// redisMetrics tell of the breaker, the connections, and what waits while Redis is away.
func (a *app) redisMetrics(e *exposition, now time.Time) {
	breaker := a.breaker.State()
	var open, failures []sample
	for _, node := range slices.Sorted(maps.Keys(breaker.Nodes)) {
		open = append(open, sample{oneIf(breaker.Nodes[node].Status == maintenance.Open), labels{"node", node}})
		failures = append(failures, sample{float64(breaker.Nodes[node].Failures), labels{"node", node}})
	}
	if breaker.Nodes == nil { // a single server
		open = []sample{{value: oneIf(breaker.Status == maintenance.Open)}}
		failures = []sample{{value: float64(breaker.Failures)}}
	}
	e.metric("redis_breaker_open", "gauge", "1 while the circuit breaker is open, so that no command is sent; of each primary of a cluster.", open...)
	e.counter("redis_breaker_openings_total", "How often a circuit breaker opened.", float64(breaker.Opened))
	e.metric("redis_failures_in_a_row", "gauge", "Commands that failed since the last one that was answered; of each primary of a cluster.", failures...)

	counts := map[maintenance.Type]int64{}
	for _, t := range maintenanceTypes {
		counts[t] = 0
	}
	maps.Copy(counts, breaker.Counts)
	var messages []sample
	for _, t := range slices.Sorted(maps.Keys(counts)) {
		messages = append(messages, sample{float64(counts[t]), labels{"type", string(t)}})
	}
	e.metric("redis_maintenance_messages_total", "counter", "Maintenance messages of Redis by type.", messages...)
	if len(breaker.Events) > 0 {
		age := max(now.Sub(breaker.Events[0].Received), 0)
		e.gauge("redis_maintenance_last_message_age_seconds", "Time since the last maintenance message; absent when none came.", age.Seconds())
	}

	_, connections, _ := a.redis.Server()
	e.gauge("redis_connections", "Open connections of this process; of a cluster those to the primary that has most.", float64(connections))
	budget := a.budget(max(connections, 1))
	e.gauge("redis_budget_used_connections", "Connections that MAX_INSTANCES processes like this one have together.", float64(budget.Used()))
	if budget.Limit > 0 {
		e.gauge("redis_budget_limit_connections", "Connections that Redis allows; absent while that is not known.", float64(budget.Limit))
	}

	waiting := a.deferred.State()
	age := time.Duration(0)
	if !waiting.Oldest.IsZero() {
		age = max(now.Sub(waiting.Oldest), 0)
	}
	later := a.store.Later()
	e.gauge("later_version_waiting", "Entries of the deadline index that wait for a process of a later version.", float64(later.Waiting))
	e.counter("later_version_refused_total", "Heartbeats and leaves that were refused because a later version wrote the user's record.", float64(later.Refused))
	e.gauge("deferral_waiting_items", "Heartbeats and leaves that are kept in memory until Redis is back.", float64(waiting.Items))
	e.gauge("deferral_waiting_bytes", "Memory that they take, estimated.", float64(waiting.Bytes))
	e.gauge("deferral_oldest_age_seconds", "How long the oldest of them has waited.", age.Seconds())
	e.counter("deferral_deferred_total", "Heartbeats and leaves that were kept in memory.", float64(waiting.Deferred))
	e.counter("deferral_superseded_total", "Those of them that a later one replaced.", float64(waiting.Superseded))
	e.counter("deferral_written_total", "Those of them that were written.", float64(waiting.Written))
	e.counter("deferral_expired_total", "Those of them whose deadline passed while they waited.", float64(waiting.Expired))
	e.counter("deferral_refused_total", "Heartbeats and leaves for which there was no room.", float64(waiting.Refused))
}

// listenerMetrics tell of the sweep and the relay.
func listenerMetrics(e *exposition, s expiry.State, now time.Time) {
	e.gauge("listener_running", "1 while the listener's loops run.", oneIf(s.Running))
	e.counter("listener_sweeps_total", "Sweeps that succeeded.", float64(s.Sweeps))
	e.gauge("listener_lag_seconds", "How long due sessions may have waited because no sweep succeeded.", s.Lag(now).Seconds())
	e.counter("listener_claimed_total", "Sessions whose deadline passed and that were ended.", float64(s.Claimed))
	e.counter("listener_lost_total", "Due sessions that were renewed, or ended by another listener, before the claim.", float64(s.Lost))
	e.counter("listener_quarantined_total", "Deadlines of sessions that no record knows, put aside.", float64(s.Quarantined))
	e.gauge("listener_claim_lateness_seconds", "From the deadline to the claim: the latest of the last sweep that claimed any.", s.Lateness.Seconds())
	e.gauge("listener_notifications_on", "1 when Redis publishes expired events, 0 when it does not or does not say.", oneIf(s.Notifications == redisstore.NotificationsOn))
	e.counter("listener_rings_total", "Expired events of Redis that woke the sweep.", float64(s.Rings))
	e.gauge("listener_outbox_events", "Events that wait to be sent, by the last sweep.", float64(s.Outbox))
	e.gauge("listener_outbox_oldest_age_seconds", "How long the oldest of them has waited.", s.Oldest.Seconds())
	e.counter("listener_relayed_total", "Events that were sent and logged.", float64(s.Relayed))
	e.counter("listener_foreign_claimed_total", "Expired keys of other applications that became events.", float64(s.Foreign.Claimed))
	e.counter("listener_foreign_not_holder_total", "Expired keys of other applications that were left to another listener.", float64(s.Foreign.NotHolder))
	e.counter("listener_foreign_dropped_total", "Expired keys of other applications that no event tells of.", float64(s.Foreign.Dropped))
}

// processMetrics tell what the Go runtime knows without stopping the process.
func processMetrics(e *exposition) {
	samples := []runtimemetrics.Sample{
		{Name: "/sched/goroutines:goroutines"},
		{Name: "/memory/classes/total:bytes"},
		{Name: "/memory/classes/heap/released:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/gc/cycles/total:gc-cycles"},
	}
	runtimemetrics.Read(samples)
	value := func(i int) float64 { return float64(samples[i].Value.Uint64()) }
	e.gauge("process_goroutines", "Goroutines.", value(0))
	e.gauge("process_memory_bytes", "Memory that the Go runtime holds.", value(1)-value(2))
	e.gauge("process_heap_objects_bytes", "Memory of objects on the heap.", value(3))
	e.counter("process_gc_cycles_total", "Garbage collections.", value(4))
}

// exposition is text in Prometheus' format, version 0.0.4. See
// https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format.
type exposition struct{ text []byte }

// sample is one value of a metric.
type sample struct {
	value  float64
	labels labels
}

// labels are names and values in turn.
type labels []string

func oneIf(holds bool) float64 {
	if holds {
		return 1
	}
	return 0
}

// metricPrefix begins the name of every metric.
const metricPrefix = "userconnectivity_"

// escapeLabel makes a text fit between the quotes of a label.
var escapeLabel = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func (e *exposition) gauge(name, help string, value float64) {
	e.metric(name, "gauge", help, sample{value: value})
}

func (e *exposition) counter(name, help string, value float64) {
	e.metric(name, "counter", help, sample{value: value})
}

// metric writes one metric with its samples, which differ in their labels.
func (e *exposition) metric(name, kind, help string, samples ...sample) {
	e.text = fmt.Appendf(e.text, "# HELP %[1]s%[2]s %[3]s\n# TYPE %[1]s%[2]s %[4]s\n", metricPrefix, name, help, kind)
	for _, s := range samples {
		e.text = append(append(e.text, metricPrefix...), name...)
		for i := 0; i+1 < len(s.labels); i += 2 {
			separator := ","
			if i == 0 {
				separator = "{"
			}
			e.text = fmt.Appendf(e.text, `%s%s="%s"`, separator, s.labels[i], escapeLabel.Replace(s.labels[i+1]))
		}
		if len(s.labels) > 0 {
			e.text = append(e.text, '}')
		}
		e.text = append(strconv.AppendFloat(append(e.text, ' '), s.value, 'f', -1, 64), '\n')
	}
}
