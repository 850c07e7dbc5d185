package queue

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"

	"userconnectivity/handler/presence"
)

var codec = Codec{Source: "/app", TypePrefix: "userconnectivity."}

func sample() presence.Event {
	at := time.UnixMilli(1795238400123).UTC()
	return presence.Event{
		ID: presence.EventID("alice", "phone", presence.UserOffline, 7), Type: presence.UserOffline, Subject: presence.Subject{User: "alice", Session: "phone"},
		Body: presence.Body{
			Epoch: 1795238400123, Reason: presence.ReasonExpired, Deadline: at.Add(-20 * time.Millisecond), DetectedAt: at, Groups: []string{"g"}, Sessions: []presence.EventSession{},
			Meta: json.RawMessage(`{"a":[1,2]}`), LastSeen: at.Add(-5 * time.Second), Life: "L", Generation: 2,
		},
		Traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
	}
}

func TestEncodeDecode(t *testing.T) {
	for _, replay := range []int{0, 3} {
		m, err := codec.Encode(sample(), replay)
		if err != nil {
			t.Fatal(err)
		}
		got, n, err := codec.Decode(m.Body)
		if err != nil || n != replay {
			t.Fatalf("replay %d: %d, %v", replay, n, err)
		}
		if diff := cmp.Diff(sample(), got); diff != "" {
			t.Error(diff)
		}
	}
}

func TestMessageIsAStructuredCloudEvent(t *testing.T) {
	m, err := codec.Encode(sample(), 2)
	if err != nil {
		t.Fatal(err)
	}
	if m.ID != sample().ID+":r2" || m.Subject != "user.offline" || m.SessionID != "alice" || m.ContentType != ContentType {
		t.Errorf("message %+v", m)
	}
	var body map[string]any
	if err := json.Unmarshal(m.Body, &body); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]any{
		"specversion": "1.0", "id": sample().ID, "type": "userconnectivity.user.offline", "source": "/app",
		"subject": "alice", "time": "2026-11-21T05:20:00.123Z", "traceparent": sample().Traceparent, "replay": 2.0,
	} {
		if body[name] != want {
			t.Errorf("%s is %v, want %v", name, body[name], want)
		}
	}
	d := body["data"].(map[string]any)
	if d["deadline"] != "2026-11-21T05:20:00.103Z" || d["user"] != "alice" {
		t.Errorf("data %v", d)
	}
}

func TestDecodeRefuses(t *testing.T) {
	good, err := codec.Encode(sample(), 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ old, new, want string }{
		"no JSON":          {string(good.Body), `{"id":`, "not a CloudEvent"},
		"no event":         {string(good.Body), `[]`, "not a CloudEvent"},
		"foreign type":     {"userconnectivity.user.offline", "other.thing", "unknown event type"},
		"id of another":    {`"user":"alice"`, `"user":"bob"`, "id is not one"},
		"bad session":      {`"session":"phone"`, `"session":"a b"`, "data.session"},
		"no epoch":         {`"epoch":1795238400123`, `"epoch":0`, "data.epoch"},
		"no reason":        {`"reason":"expired"`, `"reason":""`, "data.reason is missing"},
		"no source":        {`"source":"/app"`, `"source":""`, "not a valid CloudEvent"},
		"no version":       {`"specversion":"1.0",`, ``, "not a valid CloudEvent"},
		"no time":          {`"time":"2026-11-21T05:20:00.123Z"`, `"time":"yesterday"`, "is not RFC 3339"},
		"no deadline":      {`"deadline":"2026-11-21T05:20:00.103Z"`, `"deadline":"soon"`, "data cannot be read"},
		"wrong data shape": {`"epoch":1795238400123`, `"epoch":"x"`, "data cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			body := strings.Replace(string(good.Body), c.old, c.new, 1)
			if body == string(good.Body) {
				t.Fatalf("%s is not in %s", c.old, body)
			}
			if _, _, err := codec.Decode([]byte(body)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// TestDecodeKeepsEveryValue: whatever JSON a client may put into meta comes through as it is.
func TestDecodeKeepsEveryValue(t *testing.T) {
	t.Parallel()
	for _, meta := range []string{
		`{"n":1e309}`, `{"n":-1e-400}`, `{"n":123456789012345678901234567890.5}`, `{"n":0.1000}`, `{"n":-0}`, `{"n":1E+2}`,
		`{"a":1,"a":2}`, `{"s":"\u0000 \ud83d\ude00 </script>"}`, `{"a":` + strings.Repeat("[", 500) + strings.Repeat("]", 500) + `}`, `{}`,
	} {
		e := sample()
		e.Meta = json.RawMessage(meta)
		for replay := range 3 {
			m, err := codec.Encode(e, replay)
			if err != nil {
				t.Fatalf("%.60s: %v", meta, err)
			}
			got, n, err := codec.Decode(m.Body)
			if err != nil || n != replay {
				t.Fatalf("%.60s: replay %d, %v", meta, n, err)
			}
			if strings.Contains(meta, "\\u") { // escapes are another way to write the same
				continue
			}
			if diff := cmp.Diff(e, got); diff != "" {
				t.Errorf("%.60s: %s", meta, diff)
			}
		}
	}
}

// TestDecodeWhatALaterVersionSends: what a later version of this app adds, or CloudEvents allow, is no fault.
func TestDecodeWhatALaterVersionSends(t *testing.T) {
	t.Parallel()
	good, err := codec.Encode(sample(), 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		old, new string
		change   func(*presence.Event)
	}{
		"attribute":      {`"specversion":"1.0"`, `"specversion":"1.1","sequence":"17","severity":{"n":1e400},"big":99999999999`, func(*presence.Event) {}},
		"member of data": {`"reason":"expired"`, `"reason":"expired","zone":{"a":[1e309]}`, func(*presence.Event) {}},
		"reason":         {`"reason":"expired"`, `"reason":"evicted"`, func(e *presence.Event) { e.Reason = "evicted" }},
		"type":           {"user.offline", "user.hibernated", func(e *presence.Event) { e.Type = "user.hibernated" }},
		"more of session": {`"sessions":[]`, `"sessions":[{"session":"a","startEpoch":1,"ttlSeconds":5,"graceSeconds":0,"zone":"x"}]`, func(e *presence.Event) {
			e.Sessions = []presence.EventSession{{Session: "a", StartEpoch: 1, TTLSeconds: 5}}
		}},
		"finer time": {"00.123Z", "00.123456789Z", func(e *presence.Event) { e.DetectedAt = e.DetectedAt.Add(456789) }},
	} {
		want := sample()
		c.change(&want)
		got, _, err := codec.Decode([]byte(strings.Replace(string(good.Body), c.old, c.new, 1)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	// Of a type that is not known nothing else need be readable.
	for _, data := range []string{`"data":[7]`, `"data":{"user":7}`, `"data":null`, `"other":1`} {
		body := `{"specversion":"1.0","id":"x","source":"/app","type":"userconnectivity.user.hibernated","replay":2,` + data + `}`
		if got, replay, err := codec.Decode([]byte(body)); err != nil || replay != 2 || got.ID != "x" || got.Type != "user.hibernated" || got.Type.Valid() {
			t.Errorf("%s: %+v, %d, %v", body, got, replay, err)
		}
	}
}

// TestTimesHaveMilliseconds: every time in a message has three digits behind the second.
func TestTimesHaveMilliseconds(t *testing.T) {
	t.Parallel()
	e := sample()
	e.DetectedAt, e.Deadline, e.LastSeen = time.UnixMilli(1795238400000), time.UnixMilli(1795238400100), time.UnixMilli(1795238400120)
	m, err := codec.Encode(e, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"time":"2026-11-21T05:20:00.000Z"`, `"deadline":"2026-11-21T05:20:00.100Z"`, `"lastSeen":"2026-11-21T05:20:00.120Z"`} {
		if !strings.Contains(string(m.Body), want) {
			t.Errorf("%s is not in %s", want, m.Body)
		}
	}
}

// TestTheSDKReadsOurEvents: consumers read messages with the official library.
func TestTheSDKReadsOurEvents(t *testing.T) {
	t.Parallel()
	for _, e := range []presence.Event{sample(), expiry("cart:7"), expiry("a\nb\x00c")} {
		m, err := codec.Encode(e, 2)
		if err != nil {
			t.Fatal(err)
		}
		var got event.Event
		if err := json.Unmarshal(m.Body, &got); err != nil {
			t.Fatalf("%v in %s", err, m.Body)
		}
		if err := got.Validate(); err != nil {
			t.Errorf("%v in %s", err, m.Body)
		}
		if got.ID() != e.ID || got.Type() != codec.TypePrefix+string(e.Type) || !got.Time().Equal(e.DetectedAt) ||
			got.Extensions()["traceparent"] != e.Traceparent || got.Extensions()["replay"] != int32(2) || got.DataContentType() != "application/json" {
			t.Errorf("%s is read as %v", m.Body, got)
		}
		var payload struct {
			User, Key string
			Epoch     int64
		}
		if err := got.DataAs(&payload); err != nil || payload.User != e.User || payload.Key != e.Key || payload.Epoch != e.Epoch {
			t.Errorf("data %+v, %v", payload, err)
		}
	}
}

func TestParseMessageID(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		messageID, id string
		replay        int
	}{{"", "", 0}, {"a-b", "a-b", 0}, {"a-b:r2", "a-b", 2}, {"a-b:r", "a-b", 0}, {"a-b:rx", "a-b", 0}, {"a-b:r-1", "a-b", 0}, {":r3", "", 3}} {
		if id, replay := ParseMessageID(tt.messageID); id != tt.id || replay != tt.replay {
			t.Errorf("%q: %q, %d", tt.messageID, id, replay)
		}
	}
}

func FuzzDecode(f *testing.F) {
	good, err := codec.Encode(sample(), 1)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good.Body)
	f.Add([]byte(`{"specversion":"1.0"}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, body []byte) {
		e, replay, err := codec.Decode(body)
		if err != nil {
			return
		}
		m, err := codec.Encode(e, replay)
		if err != nil {
			t.Fatalf("decoded but not encoded: %v", err)
		}
		again, n, err := codec.Decode(m.Body)
		if err != nil || n != replay || again.ID != e.ID || again.Epoch != e.Epoch {
			t.Fatalf("decoded differently the second time: %v", err)
		}
	})
}
