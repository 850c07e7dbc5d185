package triggers_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/queue"
	"userconnectivity/handler/triggers"
)

// rejectedItems are the rejected heartbeats, by the MessageId and the position of the item.
func (b *bench) rejectedItems() map[string]queue.Message {
	items := map[string]queue.Message{}
	for _, m := range b.queues.in("heartbeats-rejected") {
		items[m.ID[:strings.LastIndex(m.ID, "/")]] = m
	}
	return items
}

// impatient gives batches little time.
func impatient(h *triggers.Handlers) { h.BatchTime = 2 * time.Second }

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
		"empty":     {body: "", reason: "it is empty"},
		"blanks":    {body: " \t\r\n\ufeff ", reason: "it is empty"},
		"number":    {body: "7", reason: "must be a JSON object"},
		"null":      {body: "null", reason: "/user must not be empty"},
		"string":    {body: `"ann"`, reason: "a JSON string that holds neither a JSON object nor an array"},
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
		delivered{ID: strings.Repeat("ü", 128), Body: "text of another message with that id"},
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
	long := 0
	for _, m := range b.queues.in("heartbeats-rejected") {
		if len(m.ID) > 128 {
			t.Errorf("MessageId %s is too long", m.ID)
		}
		if strings.Contains(string(m.Body), "with") {
			long++
		}
	}
	if long != 2 {
		t.Errorf("%d of 2 messages of one id were put aside", long)
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

// flaky fails calls with beats of one user, as often as it is told.
type flaky struct {
	tracker
	user string
	left *atomic.Int64
}

func (f flaky) Heartbeats(ctx context.Context, beats []presence.Beat) (presence.BulkReceipt, error) {
	for _, b := range beats {
		if b.User == f.user && f.left.Add(-1) >= 0 {
			return presence.BulkReceipt{}, &fault.Error{Kind: fault.Unavailable, Message: "the state store cannot be reached: try again", Err: errors.New("driver text")}
		}
	}
	return f.tracker.Heartbeats(ctx, beats)
}

func unluckyBatch(delivery int) []delivered {
	return []delivered{
		{ID: "m-1", Body: `{"user":"ann"}`, Count: delivery},
		{ID: "m-2", Body: `[{"user":"unlucky"},{"user":"bob"}]`, Count: delivery},
		{ID: "m-3", Body: "junk", Count: delivery},
		{ID: "m-4", Body: `{"user":"cid"}`, Count: delivery},
	}
}

// TestHeartbeatMessagesThatWait: a batch waits for a passing fault inside its own time, at its last delivery too.
func TestHeartbeatMessagesThatWait(t *testing.T) {
	t.Parallel()
	for _, function := range []string{"HeartbeatMessages", "HeartbeatDeadLetters"} {
		t.Run(function, func(t *testing.T) {
			t.Parallel()
			var left atomic.Int64
			left.Store(15) // more than one pass over the batch has
			b := setup(t, func(h *triggers.Handlers) { h.Beats.Tracker = flaky{h.Tracker.(tracker), "unlucky", &left} })
			b.succeeds(function, unluckyBatch(maxDelivery)...)
			for _, s := range b.query("ann", "bob", "cid", "unlucky") {
				if s.Status != "online" {
					t.Errorf("%+v, want online", s)
				}
			}
			if got := b.rejectedItems(); len(got) != 1 || string(got["m-3/0"].Body) != "junk" {
				t.Errorf("rejected %+v", got)
			}
			if !strings.Contains(b.log.String(), "wait for a fault to pass") {
				t.Errorf("nobody is told: %s", b.log)
			}
		})
	}
}

// TestHeartbeatMessagesThatFail: a fault that outlives a batch fails it, at its last delivery too, and nothing of it is
// rejected. The other beats are applied.
func TestHeartbeatMessagesThatFail(t *testing.T) {
	t.Parallel()
	var left atomic.Int64
	b := setup(t, impatient, func(h *triggers.Handlers) { h.Beats.Tracker = flaky{h.Tracker.(tracker), "unlucky", &left} })
	left.Store(1 << 40)
	for _, function := range []string{"HeartbeatMessages", "HeartbeatDeadLetters"} {
		if a := b.fails(function, unluckyBatch(maxDelivery)...); a.Status != 503 {
			t.Errorf("%s: %d %s", function, a.Status, a.Body)
		}
	}
	for _, s := range b.query("ann", "bob", "cid") {
		if s.Status != "online" {
			t.Errorf("%+v, want online", s)
		}
	}
	if got := b.rejectedItems(); len(got) != 0 {
		t.Errorf("rejected %+v", got)
	}
	left.Store(0)
	b.succeeds("HeartbeatMessages", unluckyBatch(maxDelivery+1)...)
	if s := b.query("unlucky"); s[0].Status != "online" {
		t.Errorf("%+v, want online", s)
	}
	if got := b.rejectedItems(); len(got) != 1 {
		t.Errorf("rejected %+v", got)
	}
}

// TestHeartbeatMessagesWhileRedisIsAway: no call is made while it is known to be away, and the first one follows as soon
// as it is back.
func TestHeartbeatMessagesWhileRedisIsAway(t *testing.T) {
	t.Parallel()
	var away atomic.Bool
	var left atomic.Int64
	looked := make(chan struct{}, 1)
	b := setup(t, func(h *triggers.Handlers) {
		h.Beats.Tracker = flaky{h.Tracker.(tracker), "unlucky", &left}
		h.Beats.Away = func() bool {
			select {
			case looked <- struct{}{}:
			default:
			}
			return away.Load()
		}
	})
	away.Store(true)
	left.Store(1 << 40)
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.succeeds("HeartbeatMessages", unluckyBatch(1)...)
	}()
	for range 5 {
		<-looked
	}
	if calls := 1<<40 - left.Load(); calls != 1 {
		t.Errorf("%d calls while it is away, want the one that found it out", calls)
	}
	left.Store(0)
	away.Store(false)
	<-done
	if s := b.query("unlucky"); s[0].Status != "online" {
		t.Errorf("%+v, want online", s)
	}
}

// TestDeadLetteredHeartbeats: what the broker gave up is applied with its age, or put aside with both reasons.
func TestDeadLetteredHeartbeats(t *testing.T) {
	t.Parallel()
	b := setup(t)
	gaveUp := object{"DeadLetterReason": "MaxDeliveryCountExceeded", "DeadLetterErrorDescription": "10 times"}
	b.succeeds("HeartbeatDeadLetters",
		delivered{ID: "m-1", Body: `{"user":"ann","ttlSeconds":600}`, EnqueuedAt: time.Now().Add(-5 * time.Minute), Properties: gaveUp, Count: 11},
		delivered{ID: "m-2", Body: `{"user":"old","ttlSeconds":600}`, EnqueuedAt: time.Now().Add(-11 * time.Minute), Properties: gaveUp, Count: 11},
		delivered{ID: "m-3", Body: "junk", Properties: gaveUp, Count: 11},
	)
	if s := b.query("ann", "old"); s[0].Status != "online" || s[1].Status != "offline" {
		t.Errorf("%+v", s)
	}
	got := b.rejectedItems()
	reason := fmt.Sprint(got["m-3/0"].Properties["reason"])
	if len(got) != 1 || !strings.Contains(reason, "not JSON") || !strings.Contains(reason, "MaxDeliveryCountExceeded: 10 times") {
		t.Errorf("rejected %+v", got)
	}
}

// TestRejectingFails: what cannot be put aside is not lost, the batch comes again.
func TestRejectingFails(t *testing.T) {
	t.Parallel()
	b := setup(t, impatient)
	b.queues.fail(errors.New("no broker"))
	b.fails("HeartbeatMessages", delivered{ID: "m-1", Body: "junk"}, delivered{ID: "m-2", Body: `{"user":"ann"}`})
	b.queues.fail(nil)
	b.succeeds("HeartbeatMessages", delivered{ID: "m-1", Body: "junk", Count: 2}, delivered{ID: "m-2", Body: `{"user":"ann"}`, Count: 2})
	if got := b.rejectedItems(); len(got) != 1 {
		t.Errorf("rejected %+v", got)
	}
}

// TestFormsOfHeartbeatMessages: heartbeats as gateways send them.
func TestFormsOfHeartbeatMessages(t *testing.T) {
	t.Parallel()
	ann, bob := `{"user":"ann"}`, `{"user":"bob"}`
	quoted := func(text string) string {
		out, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	base64ed := base64.StdEncoding.EncodeToString
	cloudEvent := `{"specversion":"1.0","id":"1","source":"/gateway","type":"com.example.beat",`
	for name, body := range map[string]string{
		"array":                      `[` + ann + `,` + bob + `]`,
		"array in an array":          `[[` + ann + `],[[` + bob + `]]]`,
		"byte order mark":            "\ufeff[" + ann + "," + bob + "]\r\n",
		"string":                     quoted(`[` + ann + `,` + bob + `]`),
		"string in a string":         quoted(quoted("\ufeff[" + ann + "," + bob + "]")),
		"array of strings":           `[` + quoted(ann) + `,` + quoted(bob) + `]`,
		"body of the bulk call":      `{"heartbeats":[` + ann + `,` + bob + `]}`,
		"that as a string":           quoted(`{"heartbeats":[` + ann + `,` + bob + `]}`),
		"lines":                      ann + "\n" + bob,
		"lines with blank ones":      "\ufeff\r\n" + ann + "\r\n\r\n" + bob + "\r\n\r\n",
		"lines of arrays":            "[" + ann + "]\n[" + bob + "]\n",
		"lines of strings":           quoted(ann) + "\n" + quoted(bob) + "\n",
		"lines in a string":          quoted(ann + "\n" + bob + "\n"),
		"CloudEvent":                 cloudEvent + `"data":[` + ann + `,` + bob + `]}`,
		"CloudEvent of a string":     cloudEvent + `"data":` + quoted("["+ann+","+bob+"]") + `}`,
		"CloudEvent of base64":       cloudEvent + `"data_base64":"` + base64ed([]byte("["+ann+","+bob+"]")) + `"}`,
		"CloudEvents":                `[` + cloudEvent + `"data":` + ann + `},` + cloudEvent + `"data":` + bob + `}]`,
		"CloudEvent of a bulk":       cloudEvent + `"data":{"heartbeats":[` + ann + `,` + bob + `]}}`,
		"Event Grid":                 `[{"id":"1","topic":"t","subject":"s","eventType":"beat","eventTime":"2026-11-21T05:20:00Z","dataVersion":"1","data":[` + ann + `,` + bob + `]}]`,
		"IoT Hub, object":            `{"properties":{},"systemProperties":{"iothub-connection-device-id":"d"},"body":{"heartbeats":[` + ann + `,` + bob + `]}}`,
		"IoT Hub, base64":            `{"properties":{},"systemProperties":{},"body":"` + base64ed([]byte("["+ann+","+bob+"]")) + `"}`,
		"IoT Hub, text":              `{"properties":{},"systemProperties":{},"body":` + quoted("["+ann+","+bob+"]") + `}`,
		"IoT Hub in Event Grid":      `{"id":"1","eventType":"Microsoft.Devices.DeviceTelemetry","data":{"properties":{},"systemProperties":{},"body":"` + base64ed([]byte(ann+"\n"+bob)) + `"}}`,
		"meta that looks wrapped":    `[{"user":"ann","meta":{"heartbeats":[],"specversion":"1.0"}},` + bob + `]`,
		"indented over many lines":   "[\n  {\n    \"user\": \"ann\"\n  },\n  " + bob + "\n]\n",
		"one of them over two lines": "[" + ann + ",\n" + bob + "]",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.succeeds("HeartbeatMessages", delivered{ID: "m", Body: body})
			for _, s := range b.query("ann", "bob") {
				if s.Status != "online" {
					t.Errorf("%s is %s", s.User, s.Status)
				}
			}
			if got := b.rejectedItems(); len(got) != 0 {
				t.Errorf("rejected %+v", got)
			}
		})
	}
}

// TestFormsThatAreNotTaken are rejected with a reason that names what is wrong; the beats beside them are applied.
func TestFormsThatAreNotTaken(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		body    string
		applied bool // the beat of ann
		items   map[string]string
	}{
		"arrays too deep":       {`[[[[[[[[{"user":"bob"}]]]]]]],{"user":"ann"}]`, true, map[string]string{"0": "must be a JSON object"}},
		"string of a text":      {`["text",{"user":"ann"}]`, true, map[string]string{"0": "must be a JSON object"}},
		"a line that is cut":    {"{\"user\":\"ann\"}\n{\"user\":\"b", true, map[string]string{"1": "is not JSON"}},
		"a line of text":        {"{\"user\":\"ann\"}\nend of file\n", true, map[string]string{"1": "is not JSON"}},
		"two on one line":       {`{"user":"bob"}{"user":"bob"}`, false, map[string]string{"0": "is not JSON"}},
		"bulk with more":        {`{"heartbeats":[{"user":"bob"}],"app":"x"}`, false, map[string]string{"0": "/app is not a known field"}},
		"bulk without an array": {`{"heartbeats":{"user":"bob"}}`, false, map[string]string{"0": "/heartbeats must be an array"}},
		"bulk of null":          {`{"heartbeats":null}`, false, map[string]string{"0": "/heartbeats must be an array"}},
		"CloudEvent of nothing": {`{"specversion":"1.0","id":"1","source":"/x","type":"t"}`, false, map[string]string{"0": "the CloudEvent has no data"}},
		"CloudEvent of noise":   {`{"specversion":"1.0","id":"1","source":"/x","type":"t","data_base64":"%"}`, false, map[string]string{"0": "is not base64"}},
		"event of nothing":      {`{"id":"1","eventType":"t","data":null}`, false, map[string]string{"0": "the event has no data"}},
		"device's noise":        {`{"systemProperties":{},"body":"text"}`, false, map[string]string{"0": "neither a JSON object nor an array"}},
		"wrapped too deep":      {strings.Repeat(`{"heartbeats":[`, 9) + `{"user":"bob"}` + strings.Repeat(`]}`, 9), false, map[string]string{"0": "/heartbeats is not a known field"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			b.succeeds("HeartbeatMessages", delivered{ID: "m", Body: c.body})
			for _, s := range b.query("ann", "bob") {
				if want := map[bool]string{true: "online", false: "offline"}[c.applied && s.User == "ann"]; s.Status != want {
					t.Errorf("%s is %s, want %s", s.User, s.Status, want)
				}
			}
			got := b.rejectedItems()
			for at, want := range c.items {
				if reason := fmt.Sprint(got["m/"+at].Properties["reason"]); !strings.Contains(reason, want) {
					t.Errorf("item %s: %q, want %q", at, reason, want)
				}
			}
			if len(got) != len(c.items) {
				t.Errorf("rejected %+v", got)
			}
		})
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
