package triggers_test

import (
	"strings"
	"testing"
	"time"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/presence"
)

// newer has a later version of the app write the record of a user. It returns how the record is put back.
func (b *bench) newer(user string) (back func()) {
	b.t.Helper()
	b.beat(object{"user": user, "ttlSeconds": 3600})
	keys, err := b.raw.Keys(b.t.Context(), b.prefix+"{p*}"+user).Result()
	for _, key := range keys {
		if old, getErr := b.raw.Get(b.t.Context(), key).Result(); getErr == nil && strings.HasPrefix(old, "a") {
			set := func(record string) {
				if err := b.raw.Set(b.t.Context(), key, record, 0).Err(); err != nil {
					b.t.Fatal(err)
				}
			}
			set("b" + old[1:])
			return func() { set(old) }
		}
	}
	b.t.Fatalf("no record of %s among %v (%v)", user, keys, err)
	return nil
}

// TestUserOfALaterVersionInABulk: the others are applied, and the answer tells which one may be sent again.
func TestUserOfALaterVersionInABulk(t *testing.T) {
	t.Parallel()
	b := setup(t)
	back := b.newer("new")
	var got bulk
	beats := object{"heartbeats": []object{{"user": "ann"}, {"user": "new"}, {"user": "b b"}, {"user": "bob", "meta": object{"a": 1}}}}
	b.do(call{method: "POST", path: "/api/heartbeats", loose: true, body: beats}).into(200, &got)
	retry := map[int]bool{}
	for _, r := range got.Rejected {
		retry[r.Index] = r.Retry
	}
	if again, ok := retry[1]; got.Accepted != 2 || len(retry) != 2 || !ok || !again || retry[2] {
		t.Errorf("%+v", got)
	}
	b.post("/api/heartbeat", object{"user": "new"}).is(503)
	b.post("/api/leave", object{"user": "new"}).is(503)

	var left struct{ Rejected []rejection }
	b.post("/api/leaves", object{"leaves": []object{{"user": "ann"}, {"user": "new"}, {"user": "bob"}}}).into(200, &left)
	if len(left.Rejected) != 1 || left.Rejected[0].Index != 1 || !left.Rejected[0].Retry || !strings.Contains(left.Rejected[0].Detail, "newer version") {
		t.Errorf("%+v", left)
	}
	for _, s := range b.query("ann", "bob") {
		if s.Status != "offline" || s.LastSeen == nil {
			t.Errorf("%+v did not leave", s)
		}
	}
	back()
	if u := b.user("new"); u.Status != "online" {
		t.Errorf("%+v", u)
	}
}

// TestUserOfALaterVersionInAQueueBatch: the batch ends at once, and the beat of that user goes back to the queue by
// itself, with its date, until a process of the later version takes it or the session would be over.
func TestUserOfALaterVersionInAQueueBatch(t *testing.T) {
	t.Parallel()
	b := setup(t)
	back := b.newer("new")
	enqueued := time.Now().Add(-10 * time.Second).UTC().Truncate(time.Millisecond)
	batch := []delivered{
		{ID: "m-1", Body: `{"user":"ann"}`, EnqueuedAt: enqueued},
		{ID: "m-2", Body: "[{\"user\":\"bob\"},\n{\"user\":\"new\", \"meta\":{\"a\":1}}]", EnqueuedAt: enqueued},
		{ID: "m-3", Body: "junk", EnqueuedAt: enqueued},
	}
	for range 2 { // redelivered, it is sent back once
		b.succeeds("HeartbeatMessages", batch...)
	}
	for _, s := range b.query("ann", "bob") {
		if s.Status != "online" {
			t.Errorf("%+v, want online", s)
		}
	}
	if got := b.rejectedItems(); len(got) != 1 {
		t.Errorf("rejected %+v", got)
	}
	sent := b.queues.in("heartbeats")
	if len(sent) != 1 || string(sent[0].Body) != `{"user":"new","meta":{"a":1}}` || !sent[0].NotBefore.Equal(enqueued.Add(2*time.Second)) {
		t.Fatalf("sent back: %+v", sent)
	}

	// It comes again, to a process that knows as little.
	again := delivered{ID: sent[0].ID, Body: string(sent[0].Body), Properties: sent[0].Properties, EnqueuedAt: sent[0].NotBefore}
	b.succeeds("HeartbeatMessages", again)
	sent = b.queues.in("heartbeats")
	if len(sent) != 2 || sent[1].ID == sent[0].ID || sent[1].Properties["firstEnqueuedAt"] != sent[0].Properties["firstEnqueuedAt"] {
		t.Fatalf("sent back: %+v", sent)
	}
	// When its session would be over it is dropped: the later version would find it stale.
	old := again
	old.EnqueuedAt = enqueued.Add(presence.DefaultTTL)
	b.succeeds("HeartbeatMessages", old)
	if sent = b.queues.in("heartbeats"); len(sent) != 2 || !strings.Contains(b.log.String(), "is dropped") {
		t.Errorf("sent back: %+v", sent)
	}

	// A process that knows the record applies it, dated by when it came at first.
	back()
	before := b.user("new").Sessions[0]
	b.succeeds("HeartbeatMessages", delivered{ID: sent[1].ID, Body: string(sent[1].Body), Properties: sent[1].Properties})
	if after := b.user("new").Sessions[0]; after.ExpiresAt != before.ExpiresAt {
		t.Errorf("a beat from before the last one was applied: %+v, was %+v", after, before)
	}
	b.succeeds("HeartbeatMessages", delivered{ID: "m-9", Body: `{"user":"cid"}`, Properties: sent[1].Properties})
	due, err := time.Parse(presence.TimeFormat, b.user("cid").Sessions[0].ExpiresAt)
	if want := enqueued.Add(presence.DefaultTTL); err != nil || due.Sub(want).Abs() > 100*time.Millisecond {
		t.Errorf("due %v, want %v", due, want)
	}
}

// TestSendingBackFails: nothing is lost, the batch fails.
func TestSendingBackFails(t *testing.T) {
	t.Parallel()
	b := setup(t, impatient)
	b.newer("new")
	b.queues.fail(&fault.Error{Kind: fault.Unavailable, Message: "the broker is away"})
	batch := delivered{ID: "m-1", Body: `[{"user":"ann"},{"user":"new"}]`}
	b.fails("HeartbeatMessages", batch)
	if b.query("ann")[0].Status != "online" {
		t.Error("the other beat was not applied")
	}
	b.queues.fail(nil)
	b.succeeds("HeartbeatMessages", batch)
	if sent := b.queues.in("heartbeats"); len(sent) != 1 {
		t.Errorf("sent back %+v", sent)
	}
}
