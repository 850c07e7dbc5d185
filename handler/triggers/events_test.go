package triggers_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/presence"
)

// eventBody is an event as the API answers it.
type eventBody struct {
	ID, Type, User, Session, Key, Reason string
	Epoch                                int64
	Deadline                             *string
	DetectedAt                           string
	Groups                               []string
	Sessions                             []presence.EventSession
	Meta                                 object
	Traceparent, Status                  string
	History                              []struct{ Status, At, Detail string }
}

func (e eventBody) statuses() string {
	var all []string
	for _, s := range e.History {
		all = append(all, s.Status)
	}
	return strings.Join(all, " ")
}

func (b *bench) event(id string) eventBody {
	b.t.Helper()
	var e eventBody
	b.get("/api/events/"+id).into(200, &e)
	return e
}

type page struct {
	Events       []eventBody
	Continuation *string
}

func (b *bench) events(path string) page {
	b.t.Helper()
	var p page
	b.get(path).into(200, &p)
	return p
}

// TestEventFromBeatToDone follows one offline event: claim, outbox, queue, worker, log.
func TestEventFromBeatToDone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.pass(-time.Minute) // what follows is over before the worker begins, by its clock, too
	beat := b.beat(object{"user": "ann", "session": "phone", "ttlSeconds": 30, "graceSeconds": 5, "groups": []string{"north"}, "meta": object{"app": "2"}})
	b.pass(36 * time.Second)
	b.sweep()
	messages := b.relay()
	got := b.events("/api/users/ann/events")
	if len(got.Events) != 2 || got.Continuation != nil {
		t.Fatalf("%+v", got)
	}
	off, on := got.Events[0], got.Events[1]
	if on.Type != "user.online" || on.Reason != "beat" || on.Deadline != nil || on.Epoch != *beat.Epoch || len(on.Sessions) != 1 ||
		on.Sessions[0] != (presence.EventSession{Session: "phone", StartEpoch: *beat.Epoch, TTLSeconds: 30, GraceSeconds: 5}) {
		t.Errorf("online: %+v", on)
	}
	if off.Type != "user.offline" || off.Reason != "expired" || off.Epoch <= on.Epoch || *off.Deadline != *beat.ExpiresAt ||
		len(off.Sessions) != 0 || off.Groups[0] != "north" || off.Meta["app"] != "2" || off.User != "ann" || off.Session != "phone" ||
		off.ID != presence.EventID("ann", "phone", presence.UserOffline, on.Epoch) || off.Traceparent != presence.TraceparentOf(off.ID) {
		t.Errorf("offline: %+v", off)
	}
	if off.Status != "queued" || off.statuses() != "detected queued" {
		t.Errorf("before the worker: %s (%s)", off.Status, off.statuses())
	}
	b.succeeds("ConnectivityWorker", messages...)
	// The history is in the order of its times, and this test has set Redis's clock, by which it was detected, ahead.
	done := b.event(off.ID)
	if done.Status != "done" || done.statuses() != "processing done detected queued" {
		t.Errorf("after the worker: %s (%s)", done.Status, done.statuses())
	}
}

func TestUserEventsInPages(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if p := b.events("/api/users/ann/events"); p.Events == nil || len(p.Events) != 0 || p.Continuation != nil {
		t.Errorf("no events: %+v", p)
	}
	b.beat(object{"user": "other"})
	for i := range 25 {
		b.beat(object{"user": "ann", "session": fmt.Sprint("s", i)})
	}
	b.relay()
	if p := b.events("/api/users/ann/events"); len(p.Events) != 20 || p.Continuation == nil {
		t.Errorf("the default limit gave %d events", len(p.Events))
	}
	if p := b.events("/api/users/ann/events?limit=100&code=key&colour=blue"); len(p.Events) != 25 || p.Continuation != nil {
		t.Errorf("limit 100 gave %d events", len(p.Events))
	}
	last, total := int64(1<<62), 0
	path := "/api/users/ann/events?limit=10"
	for range 4 {
		p := b.events(path)
		for _, e := range p.Events {
			if e.Epoch >= last || e.User != "ann" {
				t.Errorf("event %+v after epoch %d", e, last)
			}
			last = e.Epoch
			total++
		}
		if p.Continuation == nil {
			break
		}
		path = "/api/users/ann/events?limit=10&continuation=" + *p.Continuation
	}
	if total != 25 {
		t.Errorf("%d events in pages, want 25", total)
	}
}

func TestReplay(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.beat(object{"user": "ann"})
	b.succeeds("ConnectivityWorker", b.relay()...)
	id := b.events("/api/users/ann/events").Events[0].ID
	for n := 1; n <= 2; n++ {
		var answer struct{ ID string }
		b.post("/api/events/"+id+"/replay", nil).into(202, &answer)
		if answer.ID != id {
			t.Errorf("answered %s", answer.ID)
		}
		replayed := b.queues.in("events-topic")
		if len(replayed) != n || replayed[n-1].ID != fmt.Sprintf("%s:r%d", id, n) {
			t.Fatalf("on the queue: %+v", replayed)
		}
		if e := b.event(id); e.Status != "queued" {
			t.Errorf("before the worker: %s (%s)", e.Status, e.statuses())
		}
		b.succeeds("ConnectivityWorker", delivered{Body: string(replayed[n-1].Body), ID: replayed[n-1].ID})
		if e := b.event(id); e.Status != "done" {
			t.Errorf("after the worker: %s (%s)", e.Status, e.statuses())
		}
	}
	if got := b.event(id).statuses(); got != "detected queued processing done queued processing done queued processing done" {
		t.Errorf("history %s", got)
	}
	if u := b.user("ann"); u.Status != "online" {
		t.Errorf("a replay changed the user: %+v", u)
	}
}

// expireKey makes the event of a foreign key that expired, and relays it; the queue of its route is carts.
func (b *bench) expireKey(key string) (id string) {
	b.t.Helper()
	if n, err := b.store.KeysExpired(b.t.Context(), []string{key}); n != 1 || err != nil {
		b.t.Fatal(n, err)
	}
	for _, m := range b.relay() {
		if strings.Contains(m.Body, "redis.key.expired") {
			return m.ID
		}
	}
	b.t.Fatal("it is not in the outbox")
	return ""
}

// TestEventOfAnExpiredKey has the key instead of user and session.
func TestEventOfAnExpiredKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := b.expireKey("cart:7")
	e := b.event(id)
	if e.Type != "redis.key.expired" || e.Key != "cart:7" || e.Reason != "expired" || e.Deadline != nil || e.Epoch == 0 || len(e.Groups)+len(e.Sessions) != 0 {
		t.Errorf("%+v", e)
	}
	var raw object
	b.get("/api/events/"+id).into(200, &raw)
	for _, name := range []string{"user", "session", "meta"} {
		if _, has := raw[name]; has {
			t.Errorf("it has %s: %v", name, raw)
		}
	}
	b.post("/api/events/"+id+"/replay", nil).is(202)
	if got := b.queues.in("carts"); len(got) != 1 || got[0].ID != id+":r1" {
		t.Errorf("on the queue: %+v", got)
	}
	// A route to the worker's own queue is a mistake: the message is put aside, and the log says so.
	b.succeeds("ConnectivityWorker", delivered{Body: string(b.queues.in("carts")[0].Body), ID: id + ":r1"})
	if e := b.event(id); !strings.Contains(e.statuses(), "dead") || len(b.queues.in("connectivity-events-rejected")) != 1 {
		t.Errorf("%s (%s)", e.Status, e.statuses())
	}
}

// TestReplayFails: nothing is logged that did not happen.
func TestReplayFails(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.beat(object{"user": "ann"})
	b.relay()
	id := b.events("/api/users/ann/events").Events[0].ID
	b.queues.fail(errors.New("no broker"))
	b.post("/api/events/"+id+"/replay", nil).is(503)
	if e := b.event(id); e.statuses() != "detected queued" {
		t.Errorf("history %s", e.statuses())
	}
	b.queues.fail(nil)
	b.records.set(func(r *records) { r.writeFault = eventlog.ErrUnavailable })
	b.post("/api/events/"+id+"/replay", nil).is(503)
	b.records.set(func(r *records) { r.writeFault = nil })
	b.post("/api/events/"+id+"/replay", nil).is(202)
	// The second replay had the number of the first, which was sent and not logged: the broker has it once.
	if got := b.queues.in("events-topic"); len(got) != 1 {
		t.Errorf("%d messages", len(got))
	}
}

func TestEventsWhileTheLogIsDown(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := presence.EventID("ann", "s", presence.UserOnline, 1)
	b.records.set(func(r *records) { r.readFault = fmt.Errorf("read: %w", eventlog.ErrUnavailable) })
	b.get("/api/users/ann/events").is(503)
	b.get("/api/events/" + id).is(503)
	b.post("/api/events/"+id+"/replay", nil).is(503)
}
