package azuretest

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/servicebus/amqpstub"
)

// idle is how long BenchmarkFirstEventAfterIdle waits in truth, besides the links that it has the broker detach.
var idle = flag.Duration("idle", 0, "wait so long for a first event after an idle time, such as 10m")

const (
	acceptBar  = 150 * time.Millisecond // deadline to accept, p99
	rateBar    = 5000                   // events a second through the relay
	healthBar  = 2 * time.Second
	expiryRate = 500 // sessions that expire a second
)

// line prints a result and its bar, and fails the benchmark when it is not met.
func line(b *testing.B, met bool, bar, format string, args ...any) {
	b.Helper()
	verdict := "met"
	if !met {
		verdict = "NOT met"
		b.Fail()
	}
	fmt.Printf("\n%-116s bar %-16s %s\n", fmt.Sprintf(format, args...), bar, verdict) // the name of the benchmark stands in the line
}

// lateness of the messages of sessions that expired, sorted: from the deadline to the claim, and from the deadline to
// the broker's accept.
func lateness(tb testing.TB, messages []amqpstub.Message) (claimed, accepted []time.Duration) {
	tb.Helper()
	for _, m := range messages {
		if e := decode(tb, m); e.Data.Deadline != nil {
			claimed = append(claimed, e.Time.Sub(*e.Data.Deadline))
			accepted = append(accepted, m.EnqueuedAt.Sub(*e.Data.Deadline))
		}
	}
	slices.Sort(claimed)
	slices.Sort(accepted)
	return claimed, accepted
}

// percentile returns the p-th percentile of sorted values by nearest rank.
func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[(len(sorted)*p+99)/100-1]
}

func (r *rig) lateLine(b *testing.B, what string) {
	b.Helper()
	claimed, late := lateness(b, r.broker.Queue(eventsQueue).Messages)
	p99 := percentile(late, 99)
	line(b, p99 <= acceptBar, "p99 <= "+acceptBar.String(), "%s: %d events, p50 %v, p99 %v, max %v (claimed: p99 %v)",
		what, len(late), percentile(late, 50), p99, late[len(late)-1], percentile(claimed, 99))
}

// waitReceived waits until the broker has taken n messages.
func (r *rig) waitReceived(n int) {
	r.tb.Helper()
	wait(r.tb, fmt.Sprintf("%d messages", n), func() (bool, any) {
		s := r.broker.Stats()
		return s.Received >= n, s.Received
	})
}

// BenchmarkDeadlineToAccept has 500 sessions expire a second, for 20 seconds.
func BenchmarkDeadlineToAccept(b *testing.B) {
	for range b.N {
		r := newRig(b)
		h := r.start()
		const n, step, ttl = 20 * expiryRate, 10 * time.Millisecond, 30
		const perStep = expiryRate / int(time.Second/step)
		people := users("u", n)
		tick := time.NewTicker(step)
		for at := range slices.Chunk(people, perStep) {
			<-tick.C
			h.beat(at, map[string]any{"ttlSeconds": ttl})
		}
		tick.Stop()
		r.waitReceived(n)
		r.waitReceived(2 * n)
		r.lateLine(b, fmt.Sprintf("deadline to accept at %d expiries/s", expiryRate))
	}
}

// BenchmarkFirstEventAfterIdle has the broker detach the link before each event, as Service Bus does after ten idle
// minutes: each event is the first after an idle time.
func BenchmarkFirstEventAfterIdle(b *testing.B) {
	for range b.N {
		r := newRig(b)
		h := r.start()
		const n, first = 30, 5
		r.broker.IdleDetach(300 * time.Millisecond)
		for i, user := range users("u", n) {
			h.beat([]string{user}, map[string]any{"ttlSeconds": first + i}) // a second apart
		}
		r.waitReceived(2 * n)
		detached := r.broker.Stats().IdleDetached
		r.lateLine(b, fmt.Sprintf("deadline to accept, first event after the link was detached (%d times)", detached))
		if detached < n {
			b.Errorf("%d links detached, want one for each of %d events", detached, n)
		}
		if *idle > 0 {
			firstAfterWaiting(b)
		}
	}
}

// firstAfterWaiting waits for the idle time in truth, with a broker that detaches links after it.
func firstAfterWaiting(b *testing.B) {
	r := newRig(b)
	h := r.start()
	r.broker.IdleDetach(10 * time.Minute)
	h.beat([]string{"ada"}, map[string]any{"ttlSeconds": int((*idle + 5*time.Second).Seconds())})
	r.waitReceived(1)
	time.Sleep(*idle)
	r.waitReceived(2)
	r.lateLine(b, fmt.Sprintf("deadline to accept after %v without an event", *idle))
}

// BenchmarkRelay fills the outbox with no listener, and then starts one.
func BenchmarkRelay(b *testing.B) {
	for _, log := range []string{"Cosmos DB", "SQLite"} {
		b.Run(log, func(b *testing.B) {
			for range b.N {
				benchRelay(b, log)
			}
		})
	}
}

func benchRelay(b *testing.B, log string) {
	const n, bulk = 50_000, 1000
	r := newRig(b)
	if log == "SQLite" {
		r.env["COSMOS_ENDPOINT"], r.env["COSMOS_KEY"] = "", ""
	}
	h := r.start("AzureWebJobs_ExpirationListener_Disabled=true")
	for some := range slices.Chunk(users("u", n), bulk) {
		h.beat(some, map[string]any{"ttlSeconds": 3600})
	}
	h.kill()
	if waiting := r.outbox(); waiting != n {
		b.Fatalf("%d events in the outbox", waiting)
	}

	h = r.start()
	var first, sent time.Time
	wait(b, "the outbox is empty", func() (bool, any) {
		now := time.Now()
		received := r.broker.Stats().Received
		if received == 0 {
			first = now
		}
		if sent.IsZero() && received >= n {
			sent = now
		}
		waiting := r.outbox()
		return waiting == 0, waiting
	})
	took := time.Since(first)
	if sent.IsZero() {
		b.Fatal("the outbox is empty before everything was sent")
	}
	rate := n / took.Seconds()
	line(b, rate >= rateBar, ">= "+strconv.Itoa(rateBar)+"/s", "relay, log in %s: %d events sent, logged and acknowledged in %v: %.0f/s (sent: %.0f/s)",
		log, n, took.Round(10*time.Millisecond), rate, n/sent.Sub(first).Seconds())
	if s := r.broker.Stats(); s.Received != n {
		b.Errorf("%d messages for %d events", s.Received, n)
	}
}

// outbox counts the events that wait in Redis.
func (r *rig) outbox() (n int) {
	r.tb.Helper()
	for _, waiting := range r.outboxes() {
		n += waiting
	}
	return n
}

// outboxes counts the events that wait in each partition.
func (r *rig) outboxes() (waiting [16]int) {
	r.tb.Helper()
	client := redis.NewClient(&redis.Options{Addr: r.redis.Addr})
	defer client.Close()
	pipe := client.Pipeline()
	for p := range waiting {
		pipe.XLen(context.Background(), fmt.Sprintf("uc{p%d}/outbox", p))
	}
	lengths, err := pipe.Exec(context.Background())
	if err != nil {
		r.tb.Fatal(err)
	}
	for p, l := range lengths {
		waiting[p] = int(l.(*redis.IntCmd).Val())
	}
	return waiting
}

// BenchmarkRequestUnits counts what Cosmos DB charges for an event on its whole way.
func BenchmarkRequestUnits(b *testing.B) {
	for range b.N {
		const n = 500
		r := newRig(b)
		h := r.start()
		w := r.newTrigger(h, "ConnectivityWorker", eventsQueue, 0)
		people := users("u", n)
		for _, round := range []string{"of new users", "of known users"} {
			before := h.health()
			h.beat(people, map[string]any{"ttlSeconds": 600})
			for _, user := range people {
				h.leave([]string{user})
			}
			h.waitHealth("nothing waits", func(p health) bool { return p.number("listener", "outboxDepth") == 0 })
			w.work(2 * n)
			after := h.health()
			per := func(name string) float64 {
				return (after.number("eventLog", name) - before.number("eventLog", name)) / (2 * n)
			}
			line(b, per("requestUnits") <= 30, "<= 30 RU (docs)", "Cosmos DB for each of %d events %s, relay, worker and users record: %.1f RU, %.2f requests",
				2*n, round, per("requestUnits"), per("requests"))
		}
	}
}

// BenchmarkHealthWhileEverythingHangs stops Redis and the broker, and has the account keep its answers.
func BenchmarkHealthWhileEverythingHangs(b *testing.B) {
	for range b.N {
		r := newRig(b)
		h := r.start()
		h.beat([]string{"ada"}, nil)
		h.waitHealth("all is well", func(p health) bool { return p.Status == "ok" })
		defer r.hang()()
		var worst time.Duration
		const calls = 5
		for range calls {
			began := time.Now()
			if p := h.health(); p.Status != "down" {
				b.Errorf("health %+v", p)
			}
			worst = max(worst, time.Since(began))
		}
		line(b, worst <= healthBar, "<= "+healthBar.String(), "health while Redis, the broker and the account hang: slowest of %d answers %v", calls, worst.Round(time.Millisecond))
	}
}
