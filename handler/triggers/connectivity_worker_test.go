package triggers_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/presence"
)

const rejectedEvents = "connectivity-events-rejected"

// newEvent makes an offline event of a user and logs that it was queued.
func (b *bench) newEvent(user string, epoch int64) presence.Event {
	b.t.Helper()
	at := time.UnixMilli(1_767_225_600_000 + epoch).UTC()
	id := presence.EventID(user, "web", presence.UserOffline, epoch)
	e := presence.Event{
		ID: id, Type: presence.UserOffline, Subject: presence.Subject{User: user, Session: "web"},
		Body: presence.Body{
			Epoch: epoch, Reason: presence.ReasonExpired, Deadline: at, DetectedAt: time.Now().UTC(), LastSeen: at.Add(-45 * time.Second),
			Groups: []string{"north"}, Life: "life",
		},
		Traceparent: presence.TraceparentOf(id),
	}
	b.write(eventlog.Update{Event: e, Steps: []eventlog.Step{{Status: eventlog.Detected, At: e.DetectedAt}, {Status: eventlog.Queued, At: e.DetectedAt}}})
	return e
}

// TestPoisonAmongEvents: one message that can never be read does not hold up its batch.
func TestPoisonAmongEvents(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first, torn, second := b.newEvent("ann", 1), b.newEvent("bob", 2), b.newEvent("cid", 3)
	tornMessage := b.message(torn, 0)
	tornMessage.Body = strings.Replace(tornMessage.Body, `"epoch":2`, `"epoch":-2`, 1)
	forged := b.message(first, 0)
	forged.Body, forged.ID = strings.Replace(forged.Body, `"user":"ann"`, `"user":"eve"`, 1), "forged"
	b.succeeds("ConnectivityWorker",
		b.message(first, 0),
		delivered{ID: "junk-1", Body: "not an event"},
		tornMessage,
		delivered{ID: "junk-2", Body: ""},
		delivered{ID: "junk-3", Body: `{"MessageId":"` + first.ID + `"}`},
		forged,
		b.message(second, 0),
	)
	if got := b.event(second.ID); got.statuses() != "detected queued processing done" {
		t.Errorf("cid: %s (%s)", got.Status, got.statuses())
	}
	// The forged message names the event of ann: that it was refused is told there, and hides nothing.
	if got := b.event(first.ID); got.Status != "done" {
		t.Errorf("ann: %s (%s)", got.Status, got.statuses())
	}
	dead := b.event(torn.ID)
	if dead.Status != "dead" || !strings.Contains(dead.History[len(dead.History)-1].Detail, "data.epoch must be above 0") {
		t.Errorf("the torn event: %+v", dead)
	}
	rejected := map[string]string{}
	for _, m := range b.queues.in(rejectedEvents) {
		rejected[m.ID[:strings.Index(m.ID, "/0/")]] = fmt.Sprintf("%s: %v", m.Body, m.Properties["reason"])
	}
	for id, want := range map[string]string{"junk-1": "not an event: not a CloudEvent", "junk-2": ": not a CloudEvent", "junk-3": "not a", "forged": "id is not one of an event of data.user", torn.ID: "data.epoch must be above 0"} {
		if !strings.Contains(rejected[id], want) {
			t.Errorf("%s was rejected as %q, want %q", id, rejected[id], want)
		}
	}
	if len(rejected) != 5 {
		t.Errorf("rejected %v", rejected)
	}
	if u := b.user("eve"); u.LastSeen != nil {
		t.Errorf("a forged event was applied: %+v", u)
	}
}

// TestWorkerFaults: a fault that outlives a batch fails it, at its last delivery too; what was done stays done, and
// nothing is rejected.
func TestWorkerFaults(t *testing.T) {
	t.Parallel()
	b := setup(t, impatient)
	good, unlucky := b.newEvent("ann", 1), b.newEvent("bob", 2)
	b.records.set(func(r *records) {
		r.applyFault = func(e presence.Event) error {
			if e.User == "bob" {
				return fmt.Errorf("write user bob: %w", eventlog.ErrUnavailable)
			}
			return nil
		}
	})
	batch := func(delivery int) []delivered {
		messages := []delivered{b.message(good, 0), b.message(unlucky, 0)}
		for i := range messages {
			messages[i].Count = delivery
		}
		return messages
	}
	for delivery := maxDelivery - 1; delivery <= maxDelivery; delivery++ {
		if a := b.fails("ConnectivityWorker", batch(delivery)...); a.Status != 503 {
			t.Errorf("delivery %d: %d %s", delivery, a.Status, a.Body)
		}
		if got := b.event(unlucky.ID); got.Status != "failed" || got.History[len(got.History)-1].Detail == "" {
			t.Errorf("delivery %d: %+v", delivery, got)
		}
		if got := b.event(good.ID); got.Status != "done" {
			t.Errorf("delivery %d: the good one is %s", delivery, got.Status)
		}
	}
	// The broker gives it up: it is applied from the dead letters, once the fault has passed.
	b.fails("DeadLetters", batch(maxDelivery + 1)[1])
	b.records.set(func(r *records) { r.applyFault = nil })
	b.succeeds("DeadLetters", batch(maxDelivery + 2)[1])
	if got := b.event(unlucky.ID); got.Status != "done" {
		t.Errorf("afterwards: %+v", got)
	}
	if _, known, err := b.records.User(t.Context(), "bob"); err != nil || !known {
		t.Errorf("bob is known: %v, %v", known, err)
	}
	if got := b.queues.in(rejectedEvents); len(got) != 0 {
		t.Errorf("rejected %+v", got)
	}
}

// TestWorkerCannotLog: without the log of its outcome a batch has not succeeded.
func TestWorkerCannotLog(t *testing.T) {
	t.Parallel()
	b := setup(t, impatient)
	e := b.newEvent("ann", 1)
	b.records.set(func(r *records) { r.writeFault = eventlog.ErrUnavailable })
	b.fails("ConnectivityWorker", b.message(e, 0))
	b.fails("DeadLetters", b.message(e, 0))
	b.records.set(func(r *records) { r.writeFault = nil })
	b.queues.fail(errors.New("no broker"))
	b.fails("ConnectivityWorker", b.message(e, 0), delivered{ID: "junk", Body: "junk"})
	b.queues.fail(nil)
	b.succeeds("ConnectivityWorker", b.message(e, 0), delivered{ID: "junk", Body: "junk"})
	if got := b.event(e.ID); got.Status != "done" {
		t.Errorf("%+v", got)
	}
}

// TestEventsInAnyOrder: redelivered, repeated and reordered events end in the state of the highest epoch.
func TestEventsInAnyOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const n = 12
	var messages []delivered
	var newest presence.Event
	for epoch := int64(1); epoch <= n; epoch++ {
		newest = b.newEvent("ann", epoch)
		newest.Groups = []string{fmt.Sprint("group-", epoch)}
		m := b.message(newest, 0)
		messages = append(messages, m, m)
	}
	rand.Shuffle(len(messages), func(i, j int) { messages[i], messages[j] = messages[j], messages[i] })
	for len(messages) > 0 {
		size := 1 + rand.IntN(len(messages))
		b.succeeds("ConnectivityWorker", messages[:size]...)
		messages = messages[size:]
	}
	u, _, err := b.records.User(t.Context(), "ann")
	if err != nil || u.Epoch != n || u.Groups[0] != fmt.Sprint("group-", n) || !u.Since.Equal(newest.DetectedAt.Truncate(time.Millisecond)) {
		t.Errorf("%+v, %v", u, err)
	}
	for _, e := range b.events("/api/users/ann/events").Events {
		if e.Status != "done" || e.statuses() != "detected queued processing done" {
			t.Errorf("epoch %d: %s (%s)", e.Epoch, e.Status, e.statuses())
		}
	}
}

func TestDeadLetters(t *testing.T) {
	t.Parallel()
	b := setup(t)
	described, bare, torn := b.newEvent("ann", 1), b.newEvent("bob", 2), b.newEvent("cid", 3)
	first, second, third := b.message(described, 0), b.message(bare, 0), b.message(torn, 0)
	first.Properties = object{"DeadLetterReason": "MaxDeliveryCountExceeded", "DeadLetterErrorDescription": "10 times"}
	second.Properties = object{"DeadLetterReason": 7}
	third.Body, third.Properties = "torn", object{"DeadLetterReason": "TTLExpiredException"}
	for range 2 {
		b.succeeds("DeadLetters", first, delivered{ID: "junk", Body: "junk"}, second, third)
	}
	for id, want := range map[string]string{described.ID: "MaxDeliveryCountExceeded: 10 times", bare.ID: "the broker gave it up"} {
		e := b.event(id)
		if last := e.History[len(e.History)-1]; e.statuses() != "detected queued processing done" || !strings.Contains(last.Detail, want) {
			t.Errorf("%+v, want %s", e, want)
		}
	}
	e := b.event(torn.ID)
	if last := e.History[len(e.History)-1]; e.statuses() != "detected queued processing dead" || !strings.Contains(last.Detail, "not a CloudEvent") || !strings.Contains(last.Detail, "TTLExpiredException") {
		t.Errorf("%+v", e)
	}
	// What was done stays done, whatever the broker thought of it later.
	done := b.newEvent("dan", 4)
	m := b.message(done, 0)
	b.succeeds("ConnectivityWorker", m)
	b.succeeds("DeadLetters", m)
	if e := b.event(done.ID); e.Status != "done" {
		t.Errorf("history %s", e.statuses())
	}
	if got := b.queues.in(rejectedEvents); len(got) != 2 {
		t.Errorf("put aside %+v, want the junk and the torn one", got)
	}
}
