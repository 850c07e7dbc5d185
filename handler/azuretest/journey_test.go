package azuretest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"github.com/google/go-cmp/cmp"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/queue"
	"userconnectivity/handler/servicebus/amqpstub"
)

// trigger is the part of the Functions host that receives batches from a queue and passes them on to a function: it
// completes a batch that succeeded, and abandons one that did not.
type trigger struct {
	tb       testing.TB
	receiver *azservicebus.Receiver
	to       *handler
	function string
}

// batchSize is that of host.json.
const batchSize = 200

// newTrigger receives with the official client, from a queue or from its dead letters.
func (r *rig) newTrigger(to *handler, function, name string, from azservicebus.SubQueue) *trigger {
	r.tb.Helper()
	client, err := azservicebus.NewClientFromConnectionString(r.broker.ConnectionString(), nil)
	if err != nil {
		r.tb.Fatal(err)
	}
	receiver, err := client.NewReceiverForQueue(name, &azservicebus.ReceiverOptions{SubQueue: from})
	if err != nil {
		r.tb.Fatal(err)
	}
	r.tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = receiver.Close(ctx)
		_ = client.Close(ctx)
	})
	return &trigger{r.tb, receiver, to, function}
}

// pass receives one batch, calls the function and settles. It returns how many messages it passed, and the status.
func (t *trigger) pass() (n, status int) {
	t.tb.Helper()
	ctx, cancel := context.WithTimeout(t.tb.Context(), patience)
	defer cancel()
	batch, err := t.receiver.ReceiveMessages(ctx, batchSize, nil)
	if err != nil {
		t.tb.Fatalf("receive: %v", err)
	}
	if status = t.to.call("POST", "/"+t.function, envelope(batch), nil); status != http.StatusOK {
		for _, m := range batch {
			if err := t.receiver.AbandonMessage(ctx, m, nil); err != nil {
				t.tb.Fatalf("abandon: %v", err)
			}
		}
		return len(batch), status
	}
	for _, m := range batch {
		if err := t.receiver.CompleteMessage(ctx, m, nil); err != nil {
			t.tb.Fatalf("complete: %v", err)
		}
	}
	return len(batch), status
}

// work passes n messages, and fails the test when a batch fails.
func (t *trigger) work(n int) {
	t.tb.Helper()
	for n > 0 {
		passed, status := t.pass()
		if status != http.StatusOK {
			t.tb.Fatalf("%s: status %d\n%s", t.function, status, t.to.output)
		}
		n -= passed
	}
	if n < 0 {
		t.tb.Fatalf("%d messages more than expected", -n)
	}
}

// envelope is how the host hands over a batch: every value that is no object is a string that holds its JSON.
func envelope(batch []*azservicebus.ReceivedMessage) map[string]any {
	text := func(of func(*azservicebus.ReceivedMessage) any) string {
		values := make([]any, len(batch))
		for i, m := range batch {
			values[i] = of(m)
		}
		encoded, err := json.Marshal(values)
		if err != nil {
			panic(err) // values of messages are always JSON
		}
		return string(encoded)
	}
	return map[string]any{
		"Data": map[string]any{"messages": text(func(m *azservicebus.ReceivedMessage) any { return string(m.Body) })},
		"Metadata": map[string]any{
			"MessageIdArray":             text(func(m *azservicebus.ReceivedMessage) any { return m.MessageID }),
			"DeliveryCountArray":         text(func(m *azservicebus.ReceivedMessage) any { return m.DeliveryCount }),
			"EnqueuedTimeUtcArray":       text(func(m *azservicebus.ReceivedMessage) any { return m.EnqueuedTime }),
			"ApplicationPropertiesArray": text(func(m *azservicebus.ReceivedMessage) any { return m.ApplicationProperties }),
		},
	}
}

// cloudEvent is the body of a message.
type cloudEvent struct {
	SpecVersion, ID, Type, Source, Subject, Traceparent string
	Time                                                time.Time
	Data                                                struct {
		User, Session, Reason string
		Epoch                 int64
		Deadline              *time.Time
	}
}

func decode(tb testing.TB, m amqpstub.Message) (e cloudEvent) {
	tb.Helper()
	if err := json.Unmarshal(m.Body, &e); err != nil {
		tb.Fatalf("message %s: %v in %s", m.ID, err, m.Body)
	}
	return e
}

// document returns an event as Cosmos DB has it, and whether it is there.
func (r *rig) document(id string) (d eventlog.Document, ok bool) {
	r.tb.Helper()
	pk, good := presence.PartitionKeyOf(id)
	if !good {
		r.tb.Fatalf("%q is no event id", id)
	}
	return d, r.read("events", pk, id, &d)
}

func (r *rig) read(container, pk, id string, into any) bool {
	r.tb.Helper()
	body, ok := r.account.Document(database, container, pk, id)
	if !ok {
		return false
	}
	text, err := json.Marshal(body)
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		r.tb.Fatalf("document %s: %v", id, err)
	}
	return true
}

// path is the history of an event as "detected queued processing done", with the attempt in front of the steps of a
// redelivery or a replay.
func path(d eventlog.Document) string {
	var steps []string
	for _, s := range d.History {
		step := string(s.Status)
		if s.Attempt.Replay > 0 || s.Attempt.Delivery > 1 {
			step = fmt.Sprintf("%d.%d:%s", s.Attempt.Replay, s.Attempt.Delivery, step)
		}
		steps = append(steps, step)
	}
	return strings.Join(steps, " ")
}

// waitPath waits until each event has that history.
func (r *rig) waitPath(want string, messages ...amqpstub.Message) {
	r.tb.Helper()
	for _, m := range messages {
		id, _, _ := strings.Cut(m.ID, ":")
		wait(r.tb, "event "+m.ID+" is "+want, func() (bool, any) {
			d, _ := r.document(id)
			return path(d) == want, path(d)
		})
	}
}

const whole = "detected queued processing done"

// TestEventsReachTheWorkersAndTheLog is the whole way of an event: from the beats to the queue, to the log, to the
// worker and to the users.
func TestEventsReachTheWorkersAndTheLog(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := r.start()
	silent, leaving, staying := users("silent", 30), users("leaving", 30), users("staying", 30)
	h.beat(silent, map[string]any{"ttlSeconds": 5})
	h.beat(append(leaving, staying...), map[string]any{"ttlSeconds": 600, "groups": []string{"g"}})
	h.leave(leaving)

	// Each change is on the queue once, by its MessageId and by what it says.
	messages := r.waitMessages(90 + 30 + 30)
	ids := map[string]bool{}
	found := map[string][]string{}
	epochs := map[string]int64{}
	for _, m := range messages {
		if ids[m.ID] {
			t.Errorf("MessageId %s is there twice", m.ID)
		}
		ids[m.ID] = true
		e := decode(t, m)
		found[e.Data.User] = append(found[e.Data.User], m.Subject+" "+e.Data.Reason)
		want := cloudEvent{
			SpecVersion: "1.0", ID: m.ID, Type: "userconnectivity." + m.Subject, Source: "/app", Subject: e.Data.User,
			Traceparent: e.Traceparent, Time: e.Time, Data: e.Data,
		}
		if diff := cmp.Diff(want, e); diff != "" {
			t.Errorf("event %s (-want +got):\n%s", m.ID, diff)
		}
		if m.ContentType != queue.ContentType || m.SessionID != e.Data.User || len(e.Traceparent) != 55 {
			t.Errorf("message %+v", m)
		}
		properties := map[string]any{"type": m.Subject, "user": e.Data.User, "epoch": float64(e.Data.Epoch), "reason": e.Data.Reason, "traceparent": e.Traceparent}
		if diff := cmp.Diff(properties, m.Properties); diff != "" {
			t.Errorf("properties of %s (-want +got):\n%s", m.ID, diff)
		}
		if e.Data.Epoch <= epochs[e.Data.User] {
			t.Errorf("%s comes after an epoch of %d", m.Body, epochs[e.Data.User])
		}
		epochs[e.Data.User] = e.Data.Epoch
		if late := e.Data.Reason == "expired"; late != (e.Data.Deadline != nil) || late && e.Time.Before(*e.Data.Deadline) {
			t.Errorf("deadline of %s", m.Body)
		}
	}
	for user, want := range map[string]string{"silent": "user.offline expired", "leaving": "user.offline left", "staying": ""} {
		for _, name := range map[string][]string{"silent": silent, "leaving": leaving, "staying": staying}[user] {
			if diff := cmp.Diff(strings.Join(found[name], ", "), strings.Trim("user.online beat, "+want, ", ")); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
		}
	}

	// The log has them as queued before any worker saw them.
	r.waitPath("detected queued", messages...)
	w := r.newTrigger(h, "ConnectivityWorker", eventsQueue, 0)
	w.work(len(messages))
	r.waitPath(whole, messages...)
	for _, m := range messages {
		d, _ := r.document(m.ID)
		if !slices.IsSortedFunc(d.History, func(a, b eventlog.Step) int { return a.At.Compare(b.At) }) {
			t.Errorf("times of %s: %v", m.ID, d.History)
		}
	}
	for _, name := range slices.Concat(silent, leaving, staying) {
		var u eventlog.UserDocument
		if !r.read("users", name, name, &u) || u.Epoch != epochs[name] || (u.Status == presence.Online) != strings.HasPrefix(name, "staying") {
			t.Errorf("users record of %s: %+v", name, u)
		}
	}
	if q := r.broker.Queue(eventsQueue); q.Active+q.Locked+q.DeadLetter+q.Duplicates > 0 {
		t.Errorf("queue afterwards: %+v", q)
	}

	p := h.waitHealth("all is well", func(p health) bool { return p.Status == "ok" })
	if p.number("eventLog", "requestUnits") < 20*150 || p.number("eventLog", "requests") < 3*150 || p.number("listener", "outboxDepth") != 0 {
		t.Errorf("health %v", p)
	}
}

// TestReplay sends one event again: under a MessageId that duplicate detection lets through, to be worked on once more.
func TestReplay(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := r.start()
	h.beat([]string{"ada"}, nil)
	h.leave([]string{"ada"})
	messages := r.waitMessages(2)
	w := r.newTrigger(h, "ConnectivityWorker", eventsQueue, 0)
	r.waitPath("detected queued", messages...)
	w.work(2)
	r.waitPath(whole, messages...)

	online := messages[0]
	for n := 1; n <= 2; n++ {
		if status := h.call("POST", "/api/events/"+online.ID+"/replay", nil, nil); status != http.StatusAccepted {
			t.Fatalf("replay: status %d", status)
		}
		again := r.waitMessages(1)[0]
		if want := fmt.Sprintf("%s:r%d", online.ID, n); again.ID != want || again.Properties["replay"] != float64(n) || decode(t, again).ID != online.ID {
			t.Errorf("replay is %+v, want MessageId %s", again, want)
		}
		w.work(1)
	}
	r.waitPath(whole+" 1.0:queued 1.1:processing 1.1:done 2.0:queued 2.1:processing 2.1:done", online)
	var u eventlog.UserDocument
	if r.read("users", "ada", "ada", &u); u.Status != presence.Offline {
		t.Errorf("the replay of an old event made the user %s", u.Status)
	}
	if status := h.call("POST", "/api/events/"+presence.EventID("ada", "default", presence.UserOnline, 1)+"/replay", nil, nil); status != http.StatusNotFound {
		t.Errorf("replay of an unknown event: status %d", status)
	}
}

// TestPoisonAndDeadLetters follows messages that can never succeed, and one that the broker gives up.
func TestPoisonAndDeadLetters(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.broker.CreateQueue(eventsQueue, amqpstub.QueueOptions{DuplicateDetection: true, MaxDeliveryCount: 3})
	h := r.start("MAX_DELIVERY_COUNT=10") // the broker is quicker than the worker thinks
	h.beat([]string{"ada"}, nil)
	event := r.waitMessages(1)[0]
	r.waitPath("detected queued", event)
	r.send(eventsQueue, map[string]string{"junk-1": "no event"})
	w := r.newTrigger(h, "ConnectivityWorker", eventsQueue, 0)
	w.work(2)
	r.waitPath(whole, event)
	rejected := r.broker.Queue(eventsQueue + queue.RejectedSuffix).Messages
	if len(rejected) != 1 || !strings.HasPrefix(rejected[0].ID, "junk-1/") || string(rejected[0].Body) != "no event" || !strings.Contains(fmt.Sprint(rejected[0].Properties["reason"]), "not a CloudEvent") {
		t.Errorf("rejected: %+v", rejected)
	}

	// The broker gives up an event that no worker ever finished, and a message that is none.
	h.leave([]string{"ada"})
	lost := r.waitMessages(1)[0]
	r.waitPath("detected queued", lost)
	r.send(eventsQueue, map[string]string{"junk-2": "no event"})
	w.giveUp(2, 3)
	r.newTrigger(h, "DeadLetters", eventsQueue, azservicebus.SubQueueDeadLetter).work(2)
	wait(t, "it is done", func() (bool, any) { d, _ := r.document(lost.ID); return d.Status == "done", path(d) })
	if d, _ := r.document(lost.ID); !strings.Contains(d.History[len(d.History)-1].Detail, "MaxDeliveryCountExceeded") {
		t.Errorf("dead letter: %+v", d.History)
	}
	var u eventlog.UserDocument
	if r.read("users", "ada", "ada", &u); u.Status != presence.Offline {
		t.Errorf("users record: %+v", u)
	}
	if rejected := r.broker.Queue(eventsQueue + queue.RejectedSuffix).Messages; len(rejected) != 2 {
		t.Errorf("rejected: %+v", rejected)
	}
}
