package azuretest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/cosmosstore/cosmosfake"
	"userconnectivity/handler/presence"
)

// raw is a client of the rig's Redis, as another program has it.
func (r *rig) raw() *redis.Client {
	r.tb.Helper()
	c := r.redis.Client()
	r.tb.Cleanup(func() { _ = c.Close() })
	return c
}

// TestLogIsAway: while the event log is away, in each way in which it can be, every event is sent. When it is back all are
// logged, in a queue that has each event once.
func TestLogIsAway(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]*cosmosfake.Fault{
		"503":               {Status: http.StatusServiceUnavailable},
		"no connection":     {Drop: true},
		"no right":          {Status: http.StatusForbidden},
		"region that moves": {Status: http.StatusForbidden, Substatus: 3},
		"hangs":             {Hold: make(chan struct{})},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			h := r.start()
			h.beat(users("warm", 64), map[string]any{"ttlSeconds": 3600})
			r.waitMessages(64)
			h.waitHealth("all is well", func(p health) bool { return p.number("listener", "outboxDepth") == 0 })
			r.account.Faults(func(cosmosfake.Operation) *cosmosfake.Fault { return fault })
			for i, name := range []string{"a", "b", "c"} {
				h.beat(users(name, 64), map[string]any{"ttlSeconds": 3600})
				r.waitMessages(64 + 64*(i+1))
			}
			p := h.waitHealth("health tells", func(p health) bool { return p.number("listener", "outboxDepth") == 192 && p.detail("eventLog") != "" })
			if p.Status != "degraded" {
				t.Errorf("status %s", p.Status)
			}
			r.account.Faults(nil)
			if fault.Hold != nil {
				h.kill() // what hangs waits for its time; the next process begins anew
				h = r.start()
			}
			messages := r.waitMessages(64 + 192)
			r.waitPath("detected queued", messages...)
			h.waitHealth("nothing waits", func(p health) bool { return p.number("listener", "outboxDepth") == 0 })
		})
	}
}

// TestLogRefusesOneEvent: an event that the log refuses for good is sent all the same, holds up no other, also not after a
// restart, and is shown with the reason.
func TestLogRefusesOneEvent(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.env["REDIS_PARTITIONS"] = "1"
	h := r.start()
	h.beat([]string{"first"}, map[string]any{"ttlSeconds": 3600})
	r.waitPath("detected queued", r.waitMessages(1)...)
	odd := presence.PartitionKey("odd")
	var refused atomic.Int64
	r.account.Faults(func(o cosmosfake.Operation) *cosmosfake.Fault {
		if pk, _ := presence.PartitionKeyOf(o.ID); o.Container == "events" && o.Kind == "create" && pk == odd {
			refused.Add(1)
			return &cosmosfake.Fault{Status: http.StatusBadRequest, Message: "never"}
		}
		return nil
	})
	h.beat([]string{"odd"}, map[string]any{"ttlSeconds": 3600, "meta": map[string]any{"a": 1}})
	h.beat(users("later", 20), map[string]any{"ttlSeconds": 3600})
	messages := r.waitMessages(22)
	h.waitHealth("nothing waits", func(p health) bool { return p.number("listener", "outboxDepth") == 0 })
	tried := refused.Load()
	for _, m := range messages {
		if pk, _ := presence.PartitionKeyOf(m.ID); pk != odd {
			r.waitPath("detected queued", m)
		}
	}
	p := h.waitHealth("health tells", func(p health) bool { return p.detail("listener") != "" })
	says(t, p.detail("listener"), "1 events were refused for good", "by the event log (sent all the same)", "refused the request (400)", "quarantine")
	notes := r.raw().XRange(t.Context(), "uc{p0}/quarantine", "-", "+").Val()
	if len(notes) != 1 || !strings.Contains(fmt.Sprint(notes[0].Values), "the event log refused it") {
		t.Errorf("quarantine: %v", notes)
	}
	h.kill()
	h = r.start()
	h.beat(users("restarted", 20), map[string]any{"ttlSeconds": 3600})
	r.waitMessages(42)
	h.waitHealth("nothing waits", func(p health) bool { return p.number("listener", "outboxDepth") == 0 })
	if n := refused.Load(); n != tried {
		t.Errorf("the refused event was tried %d times more after the restart", n-tried)
	}
}

// TestMetaOfOlderBuilds: what older builds took at the edge and Cosmos DB refuses is in the outbox still. Its event is sent
// and logged, with what the log takes of it.
func TestMetaOfOlderBuilds(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.env["REDIS_PARTITIONS"] = "1"
	metas := map[string]string{
		"deep": `{"a":` + strings.Repeat("[", 200) + strings.Repeat("]", 200) + `}`, "huge": `{"n":1.0e309}`, "junk": `{"a":`,
	}
	for user, meta := range metas {
		f := []string{"1", "user.online", user, "default", "5", "beat", "5", "", "1767225600000", "5", "life", "0", "1", "", "", "default,5,45,0", meta}
		if err := r.raw().XAdd(t.Context(), &redis.XAddArgs{Stream: "uc{p0}/outbox", Values: []any{"e", strings.Join(f, "\n")}}).Err(); err != nil {
			t.Fatal(err)
		}
	}
	h := r.start()
	messages := r.waitMessages(len(metas))
	r.waitPath("detected queued", messages...)
	h.waitHealth("nothing waits", func(p health) bool { return p.number("listener", "outboxDepth") == 0 })
	for _, m := range messages {
		var body struct {
			Data struct {
				User string
				Meta json.RawMessage
			}
		}
		if err := json.Unmarshal(m.Body, &body); err != nil {
			t.Fatal(err)
		}
		d, _ := r.document(m.ID)
		sent, logged := metas[body.Data.User], metas[body.Data.User]
		switch body.Data.User {
		case "deep":
			logged = ""
		case "junk":
			sent, logged = "", ""
		}
		if string(body.Data.Meta) != sent || string(d.Meta) != logged || (d.Omitted != "") != (body.Data.User == "deep") {
			t.Errorf("meta of %s: sent %.40s, logged %.40s, omitted %q", body.Data.User, body.Data.Meta, d.Meta, d.Omitted)
		}
	}
}

// TestEntriesOfALaterVersion wait in the outbox, hold up nothing, and health says so.
func TestEntriesOfALaterVersion(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.env["REDIS_PARTITIONS"] = "1"
	h := r.start()
	raw := r.raw()
	for _, text := range []string{"3\nuser.away\nann", strings.Join([]string{"1", "user.away", "u", "s", "5", "beat", "5", "", "5", "5", "life", "0", "1", "", "", "", ""}, "\n")} {
		if err := raw.XAdd(t.Context(), &redis.XAddArgs{Stream: "uc{p0}/outbox", Values: []any{"e", text}}).Err(); err != nil {
			t.Fatal(err)
		}
	}
	h.beat(users("u", 20), map[string]any{"ttlSeconds": 3600})
	r.waitPath("detected queued", r.waitMessages(20)...)
	p := h.waitHealth("health tells", func(p health) bool { return strings.Contains(p.detail("listener"), "2 entries") })
	says(t, p.detail("listener"), "a form that this version does not know", "finish the roll-out")
	if n := raw.XLen(t.Context(), "uc{p0}/outbox").Val(); n != 2 {
		t.Errorf("%d entries are left, want 2", n)
	}
	// The process that knows them takes them, and nothing is left to tell.
	taken, _, err := raw.XAutoClaim(t.Context(), &redis.XAutoClaimArgs{
		Stream: "uc{p0}/outbox", Group: "relay", Consumer: "next", MinIdle: 5 * time.Second, Start: "0-0", Count: 10,
	}).Result()
	if err != nil || len(taken) != 2 {
		t.Fatal(taken, err)
	}
	for _, m := range taken {
		raw.XAck(t.Context(), "uc{p0}/outbox", "relay", m.ID)
		raw.XDel(t.Context(), "uc{p0}/outbox", m.ID)
	}
	h.waitHealth("all is well", func(p health) bool { return p.Parts["listener"]["status"] == "ok" })
}

// TestReadOnlyPackage: the handler cannot make the file of an embedded event log. Events are sent all the same.
func TestReadOnlyPackage(t *testing.T) {
	t.Parallel()
	const readOnly = "/sys" // nobody makes folders there
	if os.Mkdir(filepath.Join(readOnly, "user-connectivity"), 0o700) == nil {
		t.Fatal("a folder can be made in " + readOnly)
	}
	for name, tt := range map[string]struct {
		settings []string
		says     []string
		known    bool // the log has the events
	}{
		"DATA_DIR is there": {
			settings: []string{"DATA_DIR=" + readOnly + "/data"},
			says:     []string{"event log cannot be written by this process", "/sys/data", "Set DATA_DIR to a folder that this process may write, or COSMOS_ENDPOINT"},
		},
		"no DATA_DIR": {settings: []string{"DATA_DIR="}, says: []string{"the event log is in /", "it is lost with this instance"}, known: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.dir = readOnly
			h := r.start(append(tt.settings, "COSMOS_ENDPOINT=", "COSMOS_KEY=", "MAX_INSTANCES=1", "TMPDIR="+t.TempDir())...)
			wait(t, "the log says so at the start", func() (bool, any) {
				return strings.Contains(h.output.String(), "the event log"), h.output.String()
			})
			h.beat(users("u", 20), map[string]any{"ttlSeconds": 3600})
			r.waitMessages(20)
			p := h.waitHealth("nothing waits", func(p health) bool { return p.number("listener", "outboxDepth") == 0 })
			if p.Parts["eventLog"]["status"] != "degraded" {
				t.Errorf("event log: %v", p.Parts["eventLog"])
			}
			says(t, p.detail("eventLog"), tt.says...)
			var page struct {
				Events   []any
				Complete bool
			}
			if status := h.call("GET", "/api/users/"+users("u", 1)[0]+"/events", nil, &page); status != http.StatusOK {
				t.Fatalf("events: status %d", status)
			}
			if page.Complete != tt.known || (len(page.Events) == 1) != tt.known {
				t.Errorf("events: %+v", page)
			}
		})
	}
}

// TestLogOfEachInstance: without Cosmos DB on several instances health, the start and the answer say that a log is one of
// several.
func TestLogOfEachInstance(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		settings []string
		partial  bool
	}{
		"on Azure":          {nil, true},
		"one instance only": {[]string{"MAX_INSTANCES=1"}, false},
		"elsewhere":         {[]string{"WEBSITE_INSTANCE_ID="}, false},
		"several elsewhere": {[]string{"WEBSITE_INSTANCE_ID=", "MAX_INSTANCES=3"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			h := r.start(append(tt.settings, "COSMOS_ENDPOINT=", "COSMOS_KEY=")...)
			h.beat([]string{"ada"}, map[string]any{"ttlSeconds": 3600})
			id := r.waitMessages(1)[0].ID
			p := h.waitHealth("nothing waits", func(p health) bool { return p.number("listener", "outboxDepth") == 0 })
			if told := strings.Contains(p.detail("eventLog"), "a file of this instance alone"); told != tt.partial || (p.Parts["eventLog"]["status"] == "degraded") != tt.partial {
				t.Errorf("event log: %v", p.Parts["eventLog"])
			}
			if told := strings.Contains(h.output.String(), "a file of this instance alone"); told != tt.partial {
				t.Errorf("the log says so at the start: %v, want %v", told, tt.partial)
			}
			var page struct {
				Events   []any
				Complete bool
			}
			if status := h.call("GET", "/api/users/ada/events", nil, &page); status != http.StatusOK || page.Complete == tt.partial || len(page.Events) != 1 {
				t.Errorf("events: status %d, %+v", status, page)
			}
			if status := h.call("GET", "/api/events/"+id, nil, nil); status != http.StatusOK {
				t.Errorf("event: status %d", status)
			}
			unknown := presence.EventID("bob", "default", presence.UserOnline, 1)
			if status := h.call("GET", "/api/events/"+unknown, nil, nil); status != http.StatusNotFound {
				t.Errorf("unknown event: status %d", status)
			}
		})
	}
}
