package queue

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"userconnectivity/handler/presence"
)

var codec = Codec{Source: "/app", TypePrefix: "userconnectivity."}

func sample() presence.Event {
	at := time.UnixMilli(1795238400123).UTC()
	return presence.Event{
		ID: presence.EventID("alice", "phone", presence.UserOffline, 7), Type: presence.UserOffline, User: "alice",
		Session: "phone", Epoch: 1795238400123, Reason: presence.ReasonExpired, Deadline: at.Add(-20 * time.Millisecond),
		DetectedAt: at, Groups: []string{"g"}, Sessions: []presence.EventSession{}, Meta: json.RawMessage(`{"a":[1,2]}`),
		LastSeen: at.Add(-5 * time.Second), Life: "L", Generation: 2,
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
		"unknown type":     {"user.offline", "user.gone", "unknown event type"},
		"id of another":    {`"user":"alice"`, `"user":"bob"`, "id is not one"},
		"bad session":      {`"session":"phone"`, `"session":"a b"`, "data.session"},
		"no epoch":         {`"epoch":1795238400123`, `"epoch":0`, "data.epoch"},
		"unknown reason":   {`"reason":"expired"`, `"reason":"tired"`, "data.reason"},
		"wrong data shape": {`"epoch":1795238400123`, `"epoch":"x"`, "data cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			body := strings.Replace(string(good.Body), c.old, c.new, 1)
			if _, _, err := codec.Decode([]byte(body)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
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
