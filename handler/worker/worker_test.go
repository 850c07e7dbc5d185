package worker_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/eventlog/eventlogtest"
	"userconnectivity/handler/fault"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/queue"
	"userconnectivity/handler/sqlitestore"
	"userconnectivity/handler/worker"
)

const maxDelivery = 3

var codec = queue.Codec{Source: "/test", TypePrefix: "userconnectivity."}

// bench is a worker on a real event log, with faults that tests switch on.
type bench struct {
	t     *testing.T
	work  *worker.Worker
	store *sqlitestore.Store
	log   bytes.Buffer

	mu                    sync.Mutex
	apply                 func(presence.Event) error
	write                 func([]eventlog.Update) error
	send                  func([]queue.Message) error
	writeFault, sendFault error
	onSend                func(queue.Message)
	sent                  map[string][]queue.Message
}

func setup(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, store: sqlitestore.New(filepath.Join(t.TempDir(), "events.db")), sent: map[string][]queue.Message{}}
	t.Cleanup(func() {
		if err := b.store.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := b.store.Ping(t.Context()); err != nil { // it is open before the time of a batch begins
		t.Fatal(err)
	}
	b.work = worker.New(b, b, b, codec, queue.Destinations{Events: "events-topic", Routes: "cart:*=carts"}, maxDelivery, slog.New(slog.NewTextHandler(&b.log, nil)))
	return b
}

func (b *bench) Apply(ctx context.Context, e presence.Event) (bool, error) {
	b.mu.Lock()
	fault := b.apply
	b.mu.Unlock()
	if fault != nil {
		if err := fault(e); err != nil {
			return false, err
		}
	}
	return b.store.Apply(ctx, e)
}

func (b *bench) Write(ctx context.Context, updates []eventlog.Update) error {
	if b.writeFault != nil {
		return b.writeFault
	}
	if b.write != nil {
		if err := b.write(updates); err != nil {
			return err
		}
	}
	return b.store.Write(ctx, updates)
}

func (b *bench) Event(ctx context.Context, id string) (eventlog.Record, error) {
	return b.store.Event(ctx, id)
}

func (b *bench) Send(_ context.Context, name string, messages []queue.Message) error {
	if b.send != nil {
		if err := b.send(messages); err != nil {
			return err
		}
	}
	if b.sendFault == nil {
		b.sent[name] = append(b.sent[name], messages...)
	}
	if b.onSend != nil {
		b.onSend(messages[0])
	}
	return b.sendFault
}

func (b *bench) process(deliveries ...worker.Delivery) error {
	return b.work.Process(b.t.Context(), deliveries)
}

// short is a batch's own time, for what does not pass in it.
func (b *bench) short() context.Context {
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Second)
	b.t.Cleanup(cancel)
	return ctx
}

func (b *bench) mustProcess(deliveries ...worker.Delivery) {
	b.t.Helper()
	if err := b.process(deliveries...); err != nil {
		b.t.Fatal(err)
	}
}

// history is the statuses of an event, with replay and delivery where they are not 0.
func (b *bench) history(id string) string {
	b.t.Helper()
	r, err := b.store.Event(b.t.Context(), id)
	if err != nil {
		b.t.Fatal(err)
	}
	var steps []string
	for _, s := range r.History {
		steps = append(steps, fmt.Sprintf("%s/%d.%d", s.Status, s.Attempt.Replay, s.Attempt.Delivery))
	}
	return strings.Join(steps, " ")
}

func (b *bench) lastDetail(id string) string {
	b.t.Helper()
	r, err := b.store.Event(b.t.Context(), id)
	if err != nil {
		b.t.Fatal(err)
	}
	return r.History[len(r.History)-1].Detail
}

// TestReplayOfAnExpiredKey goes to the queue of its route, and is refused when there is none any more.
func TestReplayOfAnExpiredKey(t *testing.T) {
	t.Parallel()
	b := setup(t)
	logged := func(key string) string {
		at := time.Now().UTC().Truncate(time.Millisecond)
		id := presence.KeyEventID(key, at.UnixMilli(), 1)
		e := presence.Event{
			ID: id, Type: presence.KeyExpired, Subject: presence.Subject{Key: key},
			Body:        presence.Body{Epoch: at.UnixMilli(), Reason: presence.ReasonExpired, DetectedAt: at},
			Traceparent: presence.TraceparentOf(id),
		}
		if err := b.store.Write(t.Context(), []eventlog.Update{eventlogtest.Sent(e)}); err != nil {
			t.Fatal(err)
		}
		return id
	}
	id := logged("cart:7")
	for n := 1; n <= 2; n++ {
		if err := b.work.Replay(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if got := b.sent["carts"]; len(b.sent) != 1 || len(got) != n || got[n-1].ID != fmt.Sprint(id, ":r", n) || !strings.Contains(string(got[n-1].Body), `"key":"cart:7"`) {
			t.Fatalf("sent %+v", b.sent)
		}
	}
	if got := b.history(id); got != "detected/0.0 queued/0.0 queued/1.0 queued/2.0" {
		t.Error(got)
	}
	id = logged("lock:7")
	if err := b.work.Replay(t.Context(), id); fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "EXPIRATION_ROUTES") {
		t.Errorf("without a route: %v", err)
	}
	if got := b.history(id); len(b.sent) != 1 || got != "detected/0.0 queued/0.0" {
		t.Errorf("%s, sent %+v", got, b.sent)
	}
}

func delivery(t *testing.T, e presence.Event, replay, count int) worker.Delivery {
	t.Helper()
	m, err := codec.Encode(e, replay)
	if err != nil {
		t.Fatal(err)
	}
	return worker.Delivery{Body: string(m.Body), MessageID: m.ID, Count: count}
}

func TestEventIsAppliedAndLogged(t *testing.T) {
	t.Parallel()
	b := setup(t)
	on := eventlogtest.Online("ann", 1)
	b.mustProcess(delivery(t, on, 0, 1))
	if got := b.history(on.ID); got != "detected/0.0 processing/0.1 done/0.1" {
		t.Errorf("history %s", got)
	}
	u, known, err := b.store.User(t.Context(), "ann")
	if err != nil || !known || u.Status != presence.Online || u.Epoch != on.Epoch || u.Groups[1] != "facility:7" || len(u.Sessions) != 1 {
		t.Errorf("%+v, %v, %v", u, known, err)
	}
	// The relay's own report may come later, and hides nothing.
	if err := b.store.Write(t.Context(), []eventlog.Update{eventlogtest.Sent(on)}); err != nil {
		t.Fatal(err)
	}
	if got := b.history(on.ID); got != "detected/0.0 queued/0.0 processing/0.1 done/0.1" {
		t.Errorf("history %s", got)
	}
	if b.log.Len() > 0 {
		t.Errorf("an event that went well was logged: %s", &b.log)
	}
}

func TestRedeliveryAndOvertaking(t *testing.T) {
	t.Parallel()
	b := setup(t)
	older, newer := eventlogtest.Online("ann", 1), eventlogtest.Offline("ann", 2)
	b.mustProcess(delivery(t, newer, 0, 1))
	b.mustProcess(delivery(t, older, 0, 1), delivery(t, older, 0, 1)) // overtaken, and twice in one batch
	b.mustProcess(delivery(t, newer, 0, 2))                           // again
	if got := b.history(older.ID); got != "detected/0.0 processing/0.1 done/0.1" {
		t.Errorf("overtaken: %s", got)
	}
	if !strings.Contains(b.lastDetail(older.ID), "changed nothing") {
		t.Errorf("overtaken: %q", b.lastDetail(older.ID))
	}
	if got := b.history(newer.ID); got != "detected/0.0 processing/0.1 done/0.1 processing/0.2 done/0.2" {
		t.Errorf("again: %s", got)
	}
	if u, _, err := b.store.User(t.Context(), "ann"); err != nil || u.Status != presence.Offline || u.Epoch != newer.Epoch {
		t.Errorf("%+v, %v", u, err)
	}
}

func TestPoison(t *testing.T) {
	t.Parallel()
	b := setup(t)
	known, good := eventlogtest.Offline("bob", 1), eventlogtest.Offline("cid", 2)
	if err := b.store.Write(t.Context(), []eventlog.Update{eventlogtest.Sent(known)}); err != nil {
		t.Fatal(err)
	}
	replayOfKnown := worker.Delivery{Body: "torn", MessageID: known.ID + ":r1", Count: 1}
	unknown := eventlogtest.Offline("dan", 3)
	b.mustProcess(
		worker.Delivery{Body: "junk", MessageID: "m-1", Count: 1},
		replayOfKnown,
		worker.Delivery{Body: `{"id":"` + unknown.ID + `"}`, MessageID: "m-3", Count: 7},
		delivery(t, good, 0, 0),
	)
	rejected := b.sent["connectivity-events-rejected"]
	if len(rejected) != 3 || string(rejected[0].Body) != "junk" {
		t.Fatalf("rejected %+v", rejected)
	}
	for i, id := range []string{"m-1", known.ID + ":r1", "m-3"} {
		if !strings.HasPrefix(rejected[i].ID, id+"/0/") {
			t.Errorf("rejected as %s, want it to begin with %s", rejected[i].ID, id)
		}
	}
	for _, m := range rejected {
		if reason, _ := m.Properties["reason"].(string); !strings.Contains(reason, "CloudEvent") {
			t.Errorf("%s: reason %q", m.ID, reason)
		}
	}
	if got := b.history(known.ID); got != "detected/0.0 queued/0.0 processing/1.1 dead/1.1" || !strings.Contains(b.lastDetail(known.ID), "not a CloudEvent") {
		t.Errorf("the event behind the torn message: %s (%s)", got, b.lastDetail(known.ID))
	}
	if _, err := b.store.Event(t.Context(), unknown.ID); !errors.Is(err, eventlog.ErrNotFound) {
		t.Errorf("a record was made of what could not be read: %v", err)
	}
	if got := b.history(good.ID); got != "detected/0.0 processing/0.1 done/0.1" {
		t.Errorf("the good one: %s", got)
	}
	if got := strings.Count(b.log.String(), "msg=rejected"); got != 3 || !strings.Contains(b.log.String(), "message_id=m-1") {
		t.Errorf("%d lines: %s", got, &b.log)
	}
}

// TestPassingFault: a batch waits for it inside its own time, and nothing is rejected.
func TestPassingFault(t *testing.T) {
	t.Parallel()
	b := setup(t)
	good, unlucky := eventlogtest.Online("ann", 1), eventlogtest.Online("bob", 2)
	fault := &fault.Error{Kind: fault.Unavailable, Message: "the users store is throttled", Err: errors.New("connection string")}
	tries := map[string]int{}
	b.apply = func(e presence.Event) error {
		b.mu.Lock()
		defer b.mu.Unlock()
		if tries[e.User]++; e.User == "bob" && tries["bob"] <= 3 {
			return fault
		}
		return nil
	}
	logFaults := 2
	b.write = func([]eventlog.Update) error {
		if logFaults--; logFaults >= 0 {
			return fmt.Errorf("write: %w", eventlog.ErrUnavailable)
		}
		return nil
	}
	// It is the last delivery, which changes nothing.
	b.mustProcess(delivery(t, good, 0, maxDelivery), delivery(t, unlucky, 0, maxDelivery))
	for _, e := range []presence.Event{good, unlucky} {
		if got := b.history(e.ID); got != "detected/0.0 processing/0.3 done/0.3" {
			t.Errorf("%s: %s", e.User, got)
		}
	}
	if tries["ann"] != 1 || tries["bob"] != 4 {
		t.Errorf("applied %v", tries)
	}
	if len(b.sent) != 0 {
		t.Errorf("sent %v", b.sent)
	}
	if !strings.Contains(b.log.String(), "events wait") {
		t.Errorf("nobody is told: %s", &b.log)
	}
}

// TestFaultThatOutlivesTheBatch: the batch fails, whatever delivery it is; the next one brings all to an end.
func TestFaultThatOutlivesTheBatch(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]error{
		"known to pass": &fault.Error{Kind: fault.Unavailable, Message: "the users store is throttled", Err: errors.New("connection string")},
		"foreign":       errors.New("403: the identity of this app has no role in the account"),
	} {
		for _, count := range []int{1, maxDelivery, maxDelivery + 7} {
			t.Run(fmt.Sprint(name, count), func(t *testing.T) {
				t.Parallel()
				b := setup(t)
				good, unlucky := eventlogtest.Online("ann", 1), eventlogtest.Online("bob", 2)
				b.apply = func(e presence.Event) error {
					if e.User == "bob" {
						return fault
					}
					return nil
				}
				batch := []worker.Delivery{{Body: "junk", MessageID: "m-1", Count: count}, delivery(t, good, 0, count), delivery(t, unlucky, 0, count)}
				err := b.work.Process(b.short(), batch)
				if !errors.Is(err, fault) || !strings.Contains(err.Error(), "1 of 3") {
					t.Fatalf("%v", err)
				}
				if got, want := b.history(good.ID), fmt.Sprintf("detected/0.0 processing/0.%d done/0.%d", count, count); got != want {
					t.Errorf("the good one: %s, want %s", got, want)
				}
				if got, want := b.history(unlucky.ID), fmt.Sprintf("detected/0.0 processing/0.%d failed/0.%d", count, count); got != want || strings.Contains(b.lastDetail(unlucky.ID), "connection string") {
					t.Errorf("the unlucky one: %s (%s)", got, b.lastDetail(unlucky.ID))
				}
				if len(b.sent) != 0 {
					t.Errorf("rejected by a batch that failed: %v", b.sent)
				}
				b.apply = nil
				for i := range batch {
					batch[i].Count++
				}
				b.mustProcess(batch...)
				if got, want := b.history(unlucky.ID), fmt.Sprintf("detected/0.0 processing/0.%d failed/0.%d processing/0.%d done/0.%d", count, count, count+1, count+1); got != want {
					t.Errorf("afterwards: %s, want %s", got, want)
				}
				if got := b.sent["connectivity-events-rejected"]; len(b.sent) != 1 || len(got) != 1 || string(got[0].Body) != "junk" {
					t.Errorf("sent %v", b.sent)
				}
			})
		}
	}
}

// refusal is a sink's answer to what it will never take.
type refusal struct{}

func (refusal) Error() string         { return "nested too deep (400)" }
func (refusal) ErrorKind() fault.Kind { return fault.Invalid }

// TestSinkRefusesOneEvent: an event that the log or the users record refuses for good is set aside with its reason, the
// others of its batch are done.
func TestSinkRefusesOneEvent(t *testing.T) {
	t.Parallel()
	for _, sink := range []string{"log", "users"} {
		t.Run(sink, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			good, refused, last := eventlogtest.Online("ann", 1), eventlogtest.Online("bob", 2), eventlogtest.Online("cid", 3)
			switch sink {
			case "log":
				b.write = func(updates []eventlog.Update) error {
					for _, u := range updates {
						if u.Event.User == "bob" {
							return fmt.Errorf("write event %s: %w", u.Event.ID, refusal{})
						}
					}
					return nil
				}
			case "users":
				b.apply = func(e presence.Event) error {
					if e.User == "bob" {
						return fmt.Errorf("apply: %w", refusal{})
					}
					return nil
				}
			}
			b.mustProcess(delivery(t, good, 0, 1), delivery(t, refused, 0, 1), delivery(t, last, 0, 1))
			for _, e := range []presence.Event{good, last} {
				if got := b.history(e.ID); got != "detected/0.0 processing/0.1 done/0.1" {
					t.Errorf("%s: %s", e.User, got)
				}
			}
			got := b.sent["connectivity-events-rejected"]
			if len(got) != 1 || !strings.Contains(fmt.Sprint(got[0].Properties["reason"]), "nested too deep") {
				t.Errorf("rejected %+v", got)
			}
			_, known, err := b.store.User(t.Context(), "bob")
			if err != nil || known != (sink == "log") {
				t.Errorf("the users record of bob is there: %v, %v", known, err)
			}
			if sink == "users" && b.history(refused.ID) != "detected/0.0 processing/0.1 dead/0.1" {
				t.Errorf("refused by the users record: %s", b.history(refused.ID))
			}
		})
	}
}

// TestEventOfALaterVersion is logged and passed: nothing is rejected, and the rest of the batch is done.
func TestEventOfALaterVersion(t *testing.T) {
	t.Parallel()
	b := setup(t)
	newer, reason, good := eventlogtest.Online("ann", 1), eventlogtest.Online("bob", 2), eventlogtest.Online("cid", 3)
	newer.Type, reason.Reason = "user.hibernated", "evicted"
	withMore := delivery(t, good, 0, 1)
	withMore.Body = strings.Replace(withMore.Body, `"groups":`, `"zone":{"n":1e309},"groups":`, 1)
	b.mustProcess(delivery(t, newer, 0, 1), delivery(t, reason, 0, 1), withMore,
		worker.Delivery{Body: `{"specversion":"1.0","id":"other-form","source":"/app","type":"userconnectivity.fleet.moved","data":[1]}`, MessageID: "m-1", Count: 1})
	if len(b.sent) != 0 {
		t.Errorf("rejected %v", b.sent)
	}
	for _, e := range []presence.Event{newer, reason, good} {
		if got := b.history(e.ID); got != "detected/0.0 processing/0.1 done/0.1" {
			t.Errorf("%s: %s", e.Type, got)
		}
		_, known, err := b.store.User(t.Context(), e.User)
		if err != nil || known != e.Type.Valid() {
			t.Errorf("%s: the users record is there: %v, %v", e.Type, known, err)
		}
	}
	if got := b.lastDetail(newer.ID); !strings.Contains(got, "nothing to do for an event of type user.hibernated") {
		t.Errorf("detail %q", got)
	}
}

// TestNumbersThatNoFloatHolds: an event that a client's meta made odd moves the users record as any other.
func TestNumbersThatNoFloatHolds(t *testing.T) {
	t.Parallel()
	b := setup(t)
	e := eventlogtest.Offline("ann", 1)
	e.Meta = []byte(`{"n":1e309,"m":123456789012345678901234567890}`)
	b.mustProcess(delivery(t, e, 0, 1))
	r, err := b.store.Event(t.Context(), e.ID)
	if err != nil || r.Status() != eventlog.Done || string(r.Event.Meta) != string(e.Meta) {
		t.Errorf("%+v, %v", r, err)
	}
	if u, _, err := b.store.User(t.Context(), "ann"); err != nil || u.Status != presence.Offline || u.Epoch != e.Epoch {
		t.Errorf("%+v, %v", u, err)
	}
	if err := b.work.Replay(t.Context(), e.ID); err != nil {
		t.Fatal(err)
	}
	if m := b.sent["events-topic"][0]; !strings.Contains(string(m.Body), string(e.Meta)) {
		t.Errorf("replayed as %s", m.Body)
	}
}

// TestPanicIsTheFaultOfOneEvent: the others of its batch are done, and the process goes on.
func TestPanicIsTheFaultOfOneEvent(t *testing.T) {
	t.Parallel()
	b := setup(t)
	bad, good := eventlogtest.Online("ann", 1), eventlogtest.Online("bob", 1)
	b.apply = func(e presence.Event) error {
		if e.User == "ann" {
			panic("driver fault")
		}
		return nil
	}
	b.mustProcess(delivery(t, bad, 0, 1), delivery(t, good, 0, 1))
	if got := b.history(good.ID); got != "detected/0.0 processing/0.1 done/0.1" {
		t.Errorf("the good one: %s", got)
	}
	// It was tried more than once, and is kept with what is wrong.
	if got := b.history(bad.ID); got != "detected/0.0 processing/0.1 dead/0.1" || !strings.Contains(b.lastDetail(bad.ID), "driver fault") {
		t.Errorf("the bad one: %s", got)
	}
	if got := b.sent["connectivity-events-rejected"]; len(got) != 1 || strings.Count(b.log.String(), "applying an event panicked") != 3 {
		t.Errorf("rejected %+v", got)
	}
	if !strings.Contains(b.log.String(), "applying an event panicked") || !strings.Contains(b.log.String(), "goroutine") {
		t.Errorf("logged %s", &b.log)
	}
}

// TestNothingIsLostWhenPuttingAsideFails: the batch waits, fails and comes again.
func TestNothingIsLostWhenPuttingAsideFails(t *testing.T) {
	t.Parallel()
	b := setup(t)
	e := eventlogtest.Online("ann", 1)
	batch := []worker.Delivery{{Body: "junk", MessageID: "m-1", Count: 1}, delivery(t, e, 0, 1)}
	b.sendFault = errors.New("no broker")
	if err := b.work.Process(b.short(), batch); !errors.Is(err, b.sendFault) || !strings.Contains(err.Error(), "connectivity-events-rejected") {
		t.Errorf("%v", err)
	}
	b.sendFault, b.writeFault = nil, eventlog.ErrUnavailable
	if err := b.work.Process(b.short(), batch); !errors.Is(err, eventlog.ErrUnavailable) {
		t.Errorf("%v", err)
	}
	b.writeFault = nil
	faults := 2
	b.send = func([]queue.Message) error {
		if faults--; faults >= 0 {
			return errors.New("no broker yet")
		}
		return nil
	}
	b.mustProcess(batch...)
	if got := b.history(e.ID); got != "detected/0.0 processing/0.1 done/0.1" {
		t.Errorf("history %s", got)
	}
	if got := b.sent["connectivity-events-rejected"]; len(got) != 1 {
		t.Errorf("rejected %+v", got)
	}
}

func TestEmptyBatch(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.mustProcess()
	if err := b.work.DeadLetters(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

// TestDeadLetters: what the broker gave up is applied where it can be read, else put aside.
func TestDeadLetters(t *testing.T) {
	t.Parallel()
	b := setup(t)
	failed, done, unknown := eventlogtest.Online("ann", 1), eventlogtest.Online("bob", 2), eventlogtest.Online("cid", 3)
	fault := true
	b.apply = func(e presence.Event) error {
		b.mu.Lock()
		defer b.mu.Unlock()
		if fault && e.User == "ann" {
			return eventlog.ErrUnavailable
		}
		return nil
	}
	if err := b.work.Process(b.short(), []worker.Delivery{delivery(t, failed, 0, 1), delivery(t, done, 0, 2)}); err == nil {
		t.Fatal("the batch succeeded")
	}
	letters := []worker.Delivery{
		delivery(t, failed, 0, 1), delivery(t, done, 0, 1), delivery(t, unknown, 0, 1),
		{Body: "junk", MessageID: "m-1"},
		{Body: "torn", MessageID: unknown.ID + ":r2"},
	}
	for i := range letters {
		letters[i].Reason = "MaxDeliveryCountExceeded"
	}
	if err := b.work.DeadLetters(b.short(), letters); !errors.Is(err, eventlog.ErrUnavailable) || len(b.sent) != 0 {
		t.Errorf("while the fault lasts: %v, sent %v", err, b.sent)
	}
	b.mu.Lock()
	fault = false
	b.mu.Unlock()
	for range 2 { // delivered again, nothing more happens
		if err := b.work.DeadLetters(t.Context(), letters); err != nil {
			t.Fatal(err)
		}
	}
	for id, want := range map[string]string{
		failed.ID:  "detected/0.0 processing/0.1 failed/0.1 processing/0.4 failed/0.4 done/0.4",
		done.ID:    "detected/0.0 processing/0.2 done/0.2 processing/0.4 done/0.4",
		unknown.ID: "detected/0.0 processing/0.4 done/0.4 processing/2.4 dead/2.4",
	} {
		if got := b.history(id); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if got := b.lastDetail(failed.ID); got != "the broker gave it up: MaxDeliveryCountExceeded" {
		t.Errorf("detail %q", got)
	}
	for _, user := range []string{"ann", "bob", "cid"} {
		if u, known, err := b.store.User(t.Context(), user); err != nil || !known || u.Status != presence.Online {
			t.Errorf("users record of %s: %+v, %v", user, u, err)
		}
	}
	ids := map[string]string{}
	for _, m := range b.sent["connectivity-events-rejected"] {
		ids[m.ID] = fmt.Sprintf("%s: %s", m.Body, m.Properties["reason"])
	}
	if len(b.sent) != 1 || len(ids) != 2 {
		t.Errorf("put aside: %v", ids)
	}
	for id, text := range ids {
		if !strings.Contains(text, "not a CloudEvent") || !strings.Contains(text, "the broker gave it up: MaxDeliveryCountExceeded") {
			t.Errorf("%s: %s", id, text)
		}
	}
	if !strings.Contains(b.log.String(), "message_id=m-1") {
		t.Errorf("junk is not told of: %s", &b.log)
	}
}

// TestReplayThatIsRejectedAgain ends as dead with its reason, and not as queued.
func TestReplayThatIsRejectedAgain(t *testing.T) {
	t.Parallel()
	for name, tear := range map[string]func(string) string{
		"no JSON":         func(string) string { return "torn" },
		"unreadable data": func(body string) string { return strings.Replace(body, `"epoch":`, `"epoch":-`, 1) },
		"no replay in it": func(body string) string {
			return strings.Replace(strings.Replace(body, `"replay":1,`, "", 1), `"epoch":`, `"epoch":-`, 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			e := eventlogtest.Online("ann", 1)
			b.mustProcess(delivery(t, e, 0, 1))
			if err := b.work.Replay(t.Context(), e.ID); err != nil {
				t.Fatal(err)
			}
			m := b.sent["events-topic"][0]
			b.mustProcess(worker.Delivery{Body: tear(string(m.Body)), MessageID: m.ID, Count: 1})
			if got := b.history(e.ID); got != "detected/0.0 processing/0.1 done/0.1 queued/1.0 processing/1.1 dead/1.1" || b.lastDetail(e.ID) == "" {
				t.Errorf("history %s (%s)", got, b.lastDetail(e.ID))
			}
		})
	}
}

func TestReplays(t *testing.T) {
	t.Parallel()
	b := setup(t)
	e := eventlogtest.Online("ann", 1)
	if err := b.work.Replay(t.Context(), e.ID); !errors.Is(err, eventlog.ErrNotFound) {
		t.Errorf("unknown event: %v", err)
	}
	b.mustProcess(delivery(t, e, 0, 1))
	for n := 1; n <= 2; n++ {
		if err := b.work.Replay(t.Context(), e.ID); err != nil {
			t.Fatal(err)
		}
		m := b.sent["events-topic"][n-1]
		if m.ID != fmt.Sprintf("%s:r%d", e.ID, n) || m.Properties["replay"] != int64(n) {
			t.Errorf("sent %s %v", m.ID, m.Properties)
		}
		b.mustProcess(worker.Delivery{Body: string(m.Body), MessageID: m.ID, Count: 1})
	}
	want := "detected/0.0 processing/0.1 done/0.1 queued/1.0 processing/1.1 done/1.1 queued/2.0 processing/2.1 done/2.1"
	if got := b.history(e.ID); got != want {
		t.Errorf("history %s, want %s", got, want)
	}
	b.sendFault = errors.New("no broker: password")
	err := b.work.Replay(t.Context(), e.ID)
	if fault.KindOf(err) != fault.Unavailable || !errors.Is(err, b.sendFault) {
		t.Errorf("without a queue: %v", err)
	}
	if got := b.history(e.ID); got != want {
		t.Errorf("a replay that was not sent is in the history: %s", got)
	}
	b.sendFault, b.writeFault = nil, eventlog.ErrUnavailable
	if err := b.work.Replay(t.Context(), e.ID); !errors.Is(err, eventlog.ErrUnavailable) {
		t.Errorf("without a log: %v", err)
	}
}

// TestReplayThatIsProcessedAtOnce has a worker process the message before the send returns: the history is in order
// all the same.
func TestReplayThatIsProcessedAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	e := eventlogtest.Online("ann", 1)
	b.mustProcess(delivery(t, e, 0, 1))
	b.onSend = func(m queue.Message) {
		b.mustProcess(worker.Delivery{Body: string(m.Body), MessageID: m.ID, Count: 1})
		for done := time.Now(); time.Since(done) < 2*time.Millisecond; { // times are kept in milliseconds
			runtime.Gosched()
		}
	}
	if err := b.work.Replay(t.Context(), e.ID); err != nil {
		t.Fatal(err)
	}
	if got, want := b.history(e.ID), "detected/0.0 processing/0.1 done/0.1 queued/1.0 processing/1.1 done/1.1"; got != want {
		t.Errorf("history %s, want %s", got, want)
	}
	r, err := b.store.Event(t.Context(), e.ID)
	if err != nil {
		t.Fatal(err)
	}
	for i, step := range r.History[1:] {
		if before := r.History[i]; step.At.Before(before.At) {
			t.Errorf("%s at %v is before %s at %v", step.Status, step.At, before.Status, before.At)
		}
	}
}

// TestConcurrentBatches: several workers may hold copies of the same events.
func TestConcurrentBatches(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const events = 40
	var batch []worker.Delivery
	var last presence.Event
	for n := range events {
		last = eventlogtest.Online("ann", n)
		batch = append(batch, delivery(t, last, 0, 1))
	}
	var inside, most int
	b.apply = func(presence.Event) error {
		b.mu.Lock()
		inside++
		most = max(most, inside)
		b.mu.Unlock()
		defer func() {
			b.mu.Lock()
			inside--
			b.mu.Unlock()
		}()
		return nil
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := b.process(batch...); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if most > 3*16 {
		t.Errorf("%d writes at once, want at most 16 a batch", most)
	}
	if u, _, err := b.store.User(t.Context(), "ann"); err != nil || u.Epoch != last.Epoch {
		t.Errorf("%+v, %v", u, err)
	}
	page, err := b.store.UserEvents(t.Context(), "ann", 100, "")
	if err != nil || len(page.Records) != events {
		t.Fatalf("%d events, %v", len(page.Records), err)
	}
	for _, r := range page.Records {
		if r.Status() != eventlog.Done || len(r.History) != 3 {
			t.Errorf("%+v", r.History)
		}
	}
}

// TestUsersRecordThatCannotBeRead: an event is never dead because of what is stored of its user. Junk there is written
// anew; what a later version wrote keeps the event waiting, at its last delivery and among the dead letters too, while
// the others are done, and it is done when a process can change the record.
func TestUsersRecordThatCannotBeRead(t *testing.T) {
	t.Parallel()
	b := setup(t)
	path, _ := b.store.Path()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	put := func(user, text string) {
		t.Helper()
		if _, err := db.Exec("INSERT INTO users (id, document) VALUES (?, ?) ON CONFLICT DO UPDATE SET document = excluded.document", user, text); err != nil {
			t.Fatal(err)
		}
	}
	later, junk, good := eventlogtest.Online("ann", 1), eventlogtest.Online("bob", 2), eventlogtest.Online("cid", 3)
	put("ann", `{"id":"ann","format":2,"epoch":"1","sessions":{}}`)
	put("bob", `{"id":"bob","epoch":{},"sessions":7}`)
	batch := []worker.Delivery{delivery(t, later, 0, maxDelivery), delivery(t, junk, 0, maxDelivery), delivery(t, good, 0, maxDelivery)}
	for name, work := range map[string]func(context.Context, []worker.Delivery) error{"last delivery": b.work.Process, "dead letters": b.work.DeadLetters} {
		if err := work(b.short(), batch); !errors.Is(err, eventlog.ErrLater) || !strings.Contains(err.Error(), "1 of 3") {
			t.Errorf("%s: %v, want the one event to wait", name, err)
		}
	}
	for _, e := range []presence.Event{junk, good} {
		if u, _, err := b.store.User(t.Context(), e.User); err != nil || u.Epoch != e.Epoch || len(u.Sessions) != 1 {
			t.Errorf("%s: %+v, %v", e.User, u, err)
		}
	}
	if strings.Contains(b.history(later.ID), "dead") || !strings.Contains(b.lastDetail(later.ID), "finish the roll-out") {
		t.Errorf("the event that waits: %s (%s)", b.history(later.ID), b.lastDetail(later.ID))
	}
	put("ann", `{"id":"ann","epoch":1}`)
	b.mustProcess(delivery(t, later, 0, maxDelivery))
	if u, _, err := b.store.User(t.Context(), "ann"); err != nil || u.Epoch != later.Epoch || len(b.sent) != 0 {
		t.Errorf("when its record can be changed: %+v, %v; rejected %v", u, err, b.sent)
	}
}
