package triggers_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"userconnectivity/handler/presence"
	"userconnectivity/handler/queue"
	"userconnectivity/handler/triggers"
)

// rejectedItems are the rejected heartbeats, by MessageId.
func (b *bench) rejectedItems() map[string]queue.Message {
	items := map[string]queue.Message{}
	for _, m := range b.queues.in("heartbeats-rejected") {
		items[m.ID] = m
	}
	return items
}

func TestHeartbeatMessages(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.succeeds("HeartbeatMessages",
		delivered{ID: "m-1", Body: `{"user":"ann","groups":["north"],"meta":{"a":1},"seq":3}`},
		delivered{ID: "m-2", Body: ` [{"user":"bob"},{"user":"bob","session":"laptop","ttlSeconds":60}]`},
		delivered{ID: "m-3", Body: "[]"},
	)
	if u := b.user("ann"); u.Status != "online" || u.Groups[0] != "north" || string(u.Sessions[0].Meta) != `{"a":1}` {
		t.Errorf("ann: %+v", u)
	}
	if u := b.user("bob"); u.Status != "online" || len(u.Sessions) != 2 {
		t.Errorf("bob: %+v", u)
	}
	if got := b.rejectedItems(); len(got) != 0 {
		t.Errorf("rejected %+v", got)
	}
}

// TestBadHeartbeatMessages: what can never succeed goes to heartbeats-rejected with its reason, the rest applies.
func TestBadHeartbeatMessages(t *testing.T) {
	t.Parallel()
	b := setup(t)
	tooMany, err := json.Marshal(make([]object, 1001))
	if err != nil {
		t.Fatal(err)
	}
	bad := map[string]struct{ body, item, reason string }{
		"text":      {body: "plain text", reason: "not JSON"},
		"empty":     {body: "", reason: "not JSON"},
		"string":    {body: `"ann"`, reason: "must be a JSON object"},
		"cut":       {body: `[{"user":"cut"}`, reason: "not JSON"},
		"trailing":  {body: `{"user":"cut"} {"user":"cut"}`, reason: "not JSON"},
		"unknown":   {body: `{"user":"cut","MessageId":"forged"}`, reason: "/MessageId is not a known field"},
		"ttl":       {body: `{"user":"cut","ttlSeconds":4}`, reason: "/ttlSeconds must be a whole number of seconds between 5 and 3600"},
		"id":        {body: `{"user":"c t"}`, reason: "/user may only have the characters"},
		"too-many":  {body: string(tooMany), reason: "at most 1000 items, has 1001"},
		"not-utf-8": {body: "{\"user\":\"\ufffd\"}", reason: "/user may only have the characters"},
	}
	messages := []delivered{{ID: "good-1", Body: `{"user":"ann"}`}}
	for id, m := range bad {
		messages = append(messages, delivered{ID: id, Body: m.body})
	}
	messages = append(messages,
		delivered{ID: "mixed", Body: `[{"user":"bob"},{"user":"b b"},7,{"user":"cid"},{"user":"dan","colour":1}]`},
		delivered{ID: strings.Repeat("ü", 128), Body: "text of a message with a long id"},
		delivered{ID: "good-2", Body: `{"user":"eve"}`},
	)
	for range 2 { // delivered again, nothing more happens
		b.succeeds("HeartbeatMessages", messages...)
	}
	for _, s := range b.query("ann", "bob", "cid", "eve") {
		if s.Status != "online" {
			t.Errorf("%+v, want online", s)
		}
	}
	for _, s := range b.query("cut", "dan") {
		if s.Status != "offline" || s.LastSeen != nil {
			t.Errorf("%+v, want never seen", s)
		}
	}
	got := b.rejectedItems()
	for id, m := range bad {
		r, ok := got[id+"/0"]
		reason, _ := r.Properties["reason"].(string)
		if !ok || string(r.Body) != m.body || !strings.Contains(reason, m.reason) || r.Subject != "rejected" {
			t.Errorf("%s: %s %q with reason %q, want %q", id, r.ID, r.Body, reason, m.reason)
		}
		delete(got, id+"/0")
	}
	for id, item := range map[string]string{"mixed/1": `{"user":"b b"}`, "mixed/2": "7", "mixed/4": `{"user":"dan","colour":1}`} {
		if string(got[id].Body) != item || got[id].Properties["reason"] == "" {
			t.Errorf("%s: %+v, want %s", id, got[id], item)
		}
		delete(got, id)
	}
	if len(got) != 1 {
		t.Errorf("rejected too: %+v", got)
	}
	for id, m := range got {
		if len(id) > 128 || string(m.Body) != "text of a message with a long id" {
			t.Errorf("%+v", m)
		}
	}
}

// TestMessagesWithoutIDs: two that the host names no id for are two rejected items.
func TestMessagesWithoutIDs(t *testing.T) {
	t.Parallel()
	b := setup(t)
	if outcome, a := b.invoke("HeartbeatMessages", `{"Data":{"messages":"[\"one\",\"two\"]"},"Metadata":{}}`); outcome != "succeeded" {
		t.Fatalf("%s: %s", outcome, a.Body)
	}
	if got := b.rejectedItems(); len(got) != 2 {
		t.Errorf("rejected %+v", got)
	}
}

// TestAgedHeartbeatMessages: a beat counts from when its message was enqueued.
func TestAgedHeartbeatMessages(t *testing.T) {
	t.Parallel()
	b := setup(t)
	now := time.Now()
	b.succeeds("HeartbeatMessages",
		delivered{ID: "m-1", Body: `{"user":"aged","ttlSeconds":60}`, EnqueuedAt: now.Add(-20 * time.Second)},
		delivered{ID: "m-2", Body: `{"user":"too-old","ttlSeconds":60}`, EnqueuedAt: now.Add(-61 * time.Second)},
		delivered{ID: "m-3", Body: `{"user":"future","ttlSeconds":60}`, EnqueuedAt: now.Add(time.Hour)},
	)
	took := time.Since(now) + time.Second
	for user, age := range map[string]time.Duration{"aged": 20 * time.Second, "future": 0} {
		u := b.user(user)
		if len(u.Sessions) != 1 {
			t.Fatalf("%s: %+v", user, u)
		}
		due, err := time.Parse(presence.TimeFormat, u.Sessions[0].ExpiresAt)
		if err != nil {
			t.Fatal(err)
		}
		// It is counted from the moment that the beat is taken, less its age: by then some time has passed.
		if late := due.Sub(now.Add(60*time.Second - age)); late < -time.Second || late > took {
			t.Errorf("%s is due %s, which is %s off", user, due, late)
		}
	}
	if u := b.user("too-old"); u.Status != "offline" || u.LastSeen != nil {
		t.Errorf("a beat whose deadline has passed was applied: %+v", u)
	}
	// One that comes after a newer beat is stale: it neither renews nor shortens.
	newer := b.beat(object{"user": "aged", "ttlSeconds": 90})
	b.succeeds("HeartbeatMessages", delivered{ID: "m-4", Body: `{"user":"aged","ttlSeconds":3600}`, EnqueuedAt: now.Add(-30 * time.Second)})
	if u := b.user("aged"); u.Sessions[0].ExpiresAt != *newer.ExpiresAt {
		t.Errorf("a late message moved the deadline: %+v, want %s", u, *newer.ExpiresAt)
	}
	if got := b.rejectedItems(); len(got) != 0 {
		t.Errorf("rejected %+v", got)
	}
}

// flaky fails the beats of one user.
type flaky struct {
	tracker
	user string
}

func (f flaky) Heartbeats(ctx context.Context, beats []presence.Beat) (presence.BulkReceipt, error) {
	for _, b := range beats {
		if b.User == f.user {
			return presence.BulkReceipt{}, &presence.Error{Kind: presence.Unavailable, Message: "the state store cannot be reached: try again", Err: errors.New("driver text")}
		}
	}
	return f.tracker.Heartbeats(ctx, beats)
}

// TestHeartbeatMessagesThatFail: a passing fault fails the batch, at its last delivery it is put aside.
func TestHeartbeatMessagesThatFail(t *testing.T) {
	t.Parallel()
	b := setup(t, func(h *triggers.Handlers) { h.Beats.Tracker = flaky{tracker: h.Tracker.(tracker), user: "unlucky"} })
	batch := func(delivery int) []delivered {
		return []delivered{
			{ID: "m-1", Body: `{"user":"ann"}`, Count: delivery},
			{ID: "m-2", Body: `[{"user":"unlucky"},{"user":"bob"}]`, Count: delivery},
			{ID: "m-3", Body: "junk", Count: delivery},
			{ID: "m-4", Body: `{"user":"cid"}`, Count: delivery},
		}
	}
	for delivery := 1; delivery < maxDelivery; delivery++ {
		if a := b.fails("HeartbeatMessages", batch(delivery)...); a.Status != 503 {
			t.Errorf("delivery %d: %d %s", delivery, a.Status, a.Body)
		}
	}
	b.succeeds("HeartbeatMessages", batch(maxDelivery)...)
	for _, s := range b.query("ann", "cid") {
		if s.Status != "online" {
			t.Errorf("%+v, want online", s)
		}
	}
	got := b.rejectedItems()
	reason := fmt.Sprint(got["m-2/0"].Properties["reason"])
	if len(got) != 2 || string(got["m-2/0"].Body) != batch(1)[1].Body || !strings.Contains(reason, "last delivery") {
		t.Errorf("rejected %+v", got)
	}
	if string(got["m-3/0"].Body) != "junk" {
		t.Errorf("the junk of the same batch: %+v", got)
	}
}

// TestRejectingFails: what cannot be put aside is not lost, the batch comes again.
func TestRejectingFails(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.queues.fail(errors.New("no broker"))
	b.fails("HeartbeatMessages", delivered{ID: "m-1", Body: "junk"}, delivered{ID: "m-2", Body: `{"user":"ann"}`})
	b.queues.fail(nil)
	b.succeeds("HeartbeatMessages", delivered{ID: "m-1", Body: "junk", Count: 2}, delivered{ID: "m-2", Body: `{"user":"ann"}`, Count: 2})
	if got := b.rejectedItems(); len(got) != 1 {
		t.Errorf("rejected %+v", got)
	}
}

// TestHeartbeatMessagesInAnyOrder: with a seq, a batch that comes again or out of order ends in the same state.
func TestHeartbeatMessagesInAnyOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	begin := time.Now().Add(-time.Minute)
	message := func(n int) delivered {
		return delivered{
			ID: fmt.Sprint("m-", n), EnqueuedAt: begin.Add(time.Duration(n) * time.Second),
			Body: fmt.Sprintf(`{"user":"ann","ttlSeconds":3600,"seq":%d,"meta":{"n":%d}}`, n, n),
		}
	}
	b.succeeds("HeartbeatMessages", message(2), message(1), message(4))
	b.succeeds("HeartbeatMessages", message(2), message(3), message(4), message(1))
	if u := b.user("ann"); len(u.Sessions) != 1 || string(u.Sessions[0].Meta) != `{"n":4}` {
		t.Errorf("%+v", u)
	}
	if got := b.relay(); len(got) != 1 {
		t.Errorf("%d events, want one", len(got))
	}
}
