package azuretest

import (
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"userconnectivity/handler/cosmosstore/cosmosfake"
	"userconnectivity/handler/presence"
)

// TestBrokerIsDown has events wait in the outbox, shown by health with the cure, and arrive once the broker is back.
func TestBrokerIsDown(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := r.start()
	h.beat(users("before", 5), map[string]any{"ttlSeconds": 600})
	r.waitMessages(5)
	h.waitHealth("all is well", func(p health) bool { return p.Status == "ok" && p.number("listener", "outboxDepth") == 0 })

	r.gate.shut()
	during := users("during", 20)
	h.beat(during, map[string]any{"ttlSeconds": 600})
	h.leave(during)
	p := h.waitHealth("health tells how many wait", func(p health) bool {
		return p.number("queue", "waiting") == 40 && p.number("listener", "outboxDepth") == 40 && p.detail("queue") != "" && p.detail("listener") != ""
	})
	if p.Status != "degraded" {
		t.Errorf("status %s", p.Status)
	}
	says(t, p.detail("queue"), "40 events wait in the outbox", "queue "+eventsQueue+" of "+r.gate.addr, "it cannot be reached",
		"az servicebus namespace network-rule-set show")
	says(t, p.detail("listener"), "events wait in the outbox", "it cannot be reached")
	api := r.start("AzureWebJobs_ExpirationListener_Disabled=true", "WEBSITE_INSTANCE_ID=api")
	p = api.waitHealth("an app without the listener tells too", func(p health) bool { return p.detail("queue") != "" })
	says(t, p.detail("queue"), "events wait in the outbox (the listener's app tells how many)", "it cannot be reached")

	r.gate.open()
	messages := r.waitMessages(45)
	r.waitPath("detected queued", messages...)
	h.waitHealth("all is well again", func(p health) bool { return p.Status == "ok" && p.number("listener", "outboxDepth") == 0 })
	if q := r.broker.Queue(eventsQueue); len(q.Messages) != 45 {
		t.Errorf("%d messages afterwards", len(q.Messages))
	}
}

// TestAcknowledgementsAreLost drops connections after messages were stored: they are sent again with the same
// MessageId, which duplicate detection drops.
func TestAcknowledgementsAreLost(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := r.start()
	h.beat([]string{"warm"}, nil)
	r.waitMessages(1)
	r.broker.Plan(loseAck, busy, loseAck)
	people := users("u", 50)
	h.beat(people, map[string]any{"ttlSeconds": 600})
	h.leave(people)
	messages := r.waitMessages(101)
	r.waitPath("detected queued", messages...)
	h.waitHealth("nothing waits", func(p health) bool { return p.number("listener", "outboxDepth") == 0 })
	q := r.broker.Queue(eventsQueue)
	if len(q.Messages) != 101 || q.Duplicates == 0 {
		t.Errorf("%d messages, %d duplicates", len(q.Messages), q.Duplicates)
	}
}

// TestAccountIsThrottledAndFlaky has every kind of passing fault of Cosmos DB between the relay, the workers and the
// log.
func TestAccountIsThrottledAndFlaky(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := r.start()
	var mu sync.Mutex
	seen := map[string]int{}
	r.account.Faults(func(o cosmosfake.Operation) *cosmosfake.Fault {
		if o.Kind == "account" || o.Kind == "container" {
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		seen[o.Kind+o.ID]++
		switch seen[o.Kind+o.ID] {
		case 1:
			return &cosmosfake.Fault{Status: http.StatusTooManyRequests, RetryAfter: 5 * time.Millisecond}
		case 2:
			return &cosmosfake.Fault{Status: http.StatusServiceUnavailable}
		case 3:
			return &cosmosfake.Fault{Status: http.StatusServiceUnavailable, Applied: true}
		}
		return nil
	})
	people := users("u", 20)
	h.beat(people, map[string]any{"ttlSeconds": 600})
	h.leave(people)
	messages := r.waitMessages(40)
	w := r.newTrigger(h, "ConnectivityWorker", eventsQueue, 0)
	w.work(40)
	r.waitPath(whole, messages...)
	p := h.health()
	if p.number("eventLog", "throttled") == 0 {
		t.Errorf("event log of health: %v", p.Parts["eventLog"])
	}
}

// TestThrottledForLong has the account refuse everything for a while: what was sent waits to be logged, and health
// says how many events, and what mends it.
func TestThrottledForLong(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := r.start()
	r.account.Faults(func(cosmosfake.Operation) *cosmosfake.Fault {
		return &cosmosfake.Fault{Status: http.StatusTooManyRequests, RetryAfter: 10 * time.Second}
	})
	h.beat(users("u", 7), nil)
	p := h.waitHealth("health tells", func(p health) bool {
		return p.number("listener", "outboxDepth") == 7 && p.detail("eventLog") != "" && p.number("eventLog", "throttled") > 0
	})
	says(t, p.detail("eventLog"), "throttled (429)", "az cosmosdb sql container throughput update --account-name 127 ")
	messages := r.waitMessages(7)
	r.account.Faults(nil)
	r.waitPath("detected queued", messages...)
}

// TestSlowUsersHoldUpNoOthers has the log keep its answers about some users, in more partitions than the relay has
// slots: all events of the other partitions go on.
func TestSlowUsersHoldUpNoOthers(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := r.start()
	slow, others := users("slow", 16), users("u", 64)
	ofSlow := map[string]bool{}
	for _, user := range slow {
		ofSlow[presence.PartitionKey(user)] = true
	}
	held := make(chan struct{})
	var tries atomic.Int64
	r.account.Faults(func(o cosmosfake.Operation) *cosmosfake.Fault {
		if pk, _ := presence.PartitionKeyOf(o.ID); o.Kind == "create" && ofSlow[pk] {
			tries.Add(1)
			return &cosmosfake.Fault{Hold: held}
		}
		return nil
	})
	h.beat(slow, map[string]any{"ttlSeconds": 600})
	r.waitMessages(len(slow))
	before, hanging := r.outboxes(), 0
	for _, waiting := range before {
		if waiting > 0 {
			hanging++
		}
	}
	if hanging < 9 || hanging > 12 {
		t.Fatalf("%d of 16 partitions hang: %v", hanging, before)
	}
	h.beat(others, map[string]any{"ttlSeconds": 600})
	wait(t, "the other partitions are relayed", func() (bool, any) {
		now := r.outboxes()
		for p, waiting := range before {
			if waiting == 0 && now[p] > 0 {
				return false, now
			}
		}
		return true, now
	})
	if n := tries.Load(); n != int64(len(slow)) {
		t.Errorf("the others waited until %d slow users were tried %d times", len(slow), n)
	}
	close(held)
	r.account.Faults(nil)
	r.waitPath("detected queued", r.waitMessages(len(slow)+len(others))...)
}

// TestKilledBetweenSendAndLog kills the handler when the broker has events that the log has not. The next process
// sends them again: duplicates have the same MessageId, and the queue keeps one of each.
func TestKilledBetweenSendAndLog(t *testing.T) {
	t.Parallel()
	for name, successor := range map[string]string{"the same instance": instance, "another instance": "instance-2"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.env["REDIS_PARTITIONS"] = "1" // one batch has all events
			h := r.start()
			held := make(chan struct{})
			r.account.Faults(func(o cosmosfake.Operation) *cosmosfake.Fault {
				if o.Kind == "create" {
					return &cosmosfake.Fault{Hold: held, Status: http.StatusServiceUnavailable}
				}
				return nil
			})
			h.beat(users("u", 50), map[string]any{"ttlSeconds": 600})
			messages := r.waitMessages(50)
			h.kill()
			close(held)
			r.account.Faults(nil)
			for _, m := range messages {
				if _, logged := r.document(m.ID); logged {
					t.Fatalf("event %s was logged before the handler was killed", m.ID)
				}
			}

			h = r.start("WEBSITE_INSTANCE_ID=" + successor)
			r.waitPath("detected queued", messages...)
			h.waitHealth("nothing waits", func(p health) bool { return p.number("listener", "outboxDepth") == 0 })
			q := r.broker.Queue(eventsQueue)
			if len(q.Messages) != 50 || q.Duplicates != 50 {
				t.Errorf("%d messages and %d duplicates, want 50 of each", len(q.Messages), q.Duplicates)
			}
			w := r.newTrigger(h, "ConnectivityWorker", eventsQueue, 0)
			w.work(50)
			r.waitPath(whole, messages...)
		})
	}
}

// TestHealthAnswersWhileEverythingHangs stops Redis and the broker, and has the account keep its answers.
func TestHealthAnswersWhileEverythingHangs(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := r.start()
	h.beat([]string{"ada"}, nil)
	r.waitPath("detected queued", r.waitMessages(1)...)
	h.waitHealth("all is well", func(p health) bool { return p.Status == "ok" })

	defer r.hang()()
	for range 3 {
		began := time.Now()
		p := h.health()
		t.Logf("health answered %s after %v", p.Status, time.Since(began))
		// A Redis that is only late is degraded, and down once the breaker finds that it does not answer at all.
		if p.Status == "ok" || len(p.Parts) != 7 || p.Parts["redis"]["status"] == "ok" || p.Parts["eventLog"]["status"] != "degraded" {
			t.Errorf("health %+v", p)
		}
		says(t, p.detail("eventLog"), "no answer in time", "az cosmosdb show --name 127")
	}
	h.waitHealth("Redis is down", func(p health) bool { return p.Status == "down" && p.Parts["redis"]["status"] == "down" })
}

// hang stops Redis and the broker without closing anything, and has the account keep its answers, until the result is
// called.
func (r *rig) hang() (end func()) {
	r.tb.Helper()
	redis := r.redis.PID()
	if err := syscall.Kill(redis, syscall.SIGSTOP); err != nil {
		r.tb.Fatal(err)
	}
	r.broker.Freeze()
	held := make(chan struct{})
	r.account.Faults(func(cosmosfake.Operation) *cosmosfake.Fault { return &cosmosfake.Fault{Hold: held} })
	return func() {
		_ = syscall.Kill(redis, syscall.SIGCONT)
		r.broker.Thaw()
		r.account.Faults(nil)
		close(held)
	}
}
