package localhost

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// recorded is a request that the Functions host sent to a handler.
type recorded struct {
	Request string
	Headers []string
	Body    json.RawMessage
}

func (r recorded) function() string {
	return strings.TrimPrefix(strings.Fields(r.Request)[1], "/")
}

type parsedEnvelope struct{ Data, Metadata map[string]any }

func parseEnvelope(t *testing.T, data []byte) parsedEnvelope {
	t.Helper()
	var e parsedEnvelope
	if err := json.Unmarshal(data, &e); err != nil {
		t.Fatal(err)
	}
	return e
}

// additions are the keys that the Service Bus extension adds and the stand-in of the recording did not.
var additions = map[string]bool{
	"PartitionKey": true, "PartitionKeyArray": true, "LockTokenArray": true, "ExpiresAtUtcArray": true, "ExpiresAtArray": true,
	"ContentTypeArray": true, "ReplyToArray": true, "ToArray": true, "SubjectArray": true, "LabelArray": true,
	"CorrelationIdArray": true, "UserPropertiesArray": true, "ReplyToSessionIdArray": true,
	"TransactionPartitionKeyArray": true, "DeadLetterSourceArray": true,
}

// normalise replaces what differs from call to call, after checking its form.
func normalise(t *testing.T, e parsedEnvelope, recorded bool) parsedEnvelope {
	t.Helper()
	sys := e.Metadata["sys"].(map[string]any)
	if _, err := time.Parse("2006-01-02T15:04:05.9999999Z", sys["UtcNow"].(string)); err != nil {
		t.Error(err)
	}
	if len(sys["RandGuid"].(string)) != 36 {
		t.Errorf("RandGuid %v", sys["RandGuid"])
	}
	sys["UtcNow"], sys["RandGuid"] = "", ""
	if client, ok := e.Metadata["Client"].(map[string]any); ok {
		client["FullyQualifiedNamespace"] = ""
	}
	for _, name := range []string{"ExpiresAtUtc", "ExpiresAt"} { // messages of the embedded broker do not expire
		if text, ok := e.Metadata[name].(string); ok {
			layout := map[string]string{"ExpiresAtUtc": "2006-01-02T15:04:05", "ExpiresAt": "2006-01-02T15:04:05-07:00"}[name]
			if at, err := time.Parse(layout, text); err != nil || at.Format("Z07:00") != "Z" {
				t.Errorf("%s %q: %v", name, text, err)
			}
			e.Metadata[name] = ""
		}
	}
	if !recorded {
		for name := range e.Metadata {
			if additions[name] {
				delete(e.Metadata, name)
			}
		}
	}
	return e
}

func TestQueueEnvelopesEqualTheRecordedOnes(t *testing.T) {
	t.Parallel()
	bodies := map[string]string{
		"json-object": `{"a":1,"MessageId":"EVIL","nested":{"k":[1]},"arr":[1,2],"nul":null}`,
		"plain-text":  "plain text",
		"json-string": `"json string"`,
		"empty":       "",
	}
	properties := json.RawMessage(`{"tenant":"t1","n":3,"d":1.5,"t":"2026-01-15T10:00:00.123Z"}`)
	at := time.Date(2026, 1, 15, 10, 0, 0, 123e6, time.UTC)
	var all map[string]recorded
	readTestdata(t, "envelopes.json", &all)
	seen := 0
	for name, want := range all {
		kind, ok := strings.CutPrefix(name, "queue-")
		if !ok {
			continue
		}
		seen++
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			parts := strings.SplitN(kind, "-", 3)
			f := &function{name: want.function(), trigger: binding{Name: "msg", DataType: parts[0], Cardinality: parts[1]}}
			first := message{Sequence: 42, ID: "m-1", Body: []byte(bodies[parts[2]]), Properties: properties, EnqueuedAt: at, DeliveryCount: 1}
			var got []byte
			if parts[1] == "many" {
				second := message{Sequence: 43, ID: "m-2", Body: []byte(`{"a":2}`), EnqueuedAt: at, DeliveryCount: 1}
				if parts[0] == "binary" {
					second.Body = []byte{0xff, 0x00}
				}
				got = batchEnvelope(f, []message{first, second}, "token", time.Now()).json()
			} else {
				first.SessionID, first.Subject, first.ContentType = "sess-1", "s", "application/json"
				got = messageEnvelope(f, first, "00000000-0000-0000-0000-000000000001", time.Now()).json()
			}
			if diff := cmp.Diff(normalise(t, parseEnvelope(t, want.Body), true), normalise(t, parseEnvelope(t, got), false)); diff != "" {
				t.Errorf("envelope differs (-recorded +ours):\n%s", diff)
			}
		})
	}
	if seen != 16 {
		t.Errorf("%d recorded queue envelopes, want 16", seen)
	}
}

func TestBodyMembersOverwriteMetadata(t *testing.T) {
	t.Parallel()
	f := &function{name: "One", trigger: binding{Name: "msg", DataType: "string", Cardinality: "one"}}
	m := message{ID: "m-1", Body: []byte(`{"messageid":"evil","myTrigger":1,"yes":true,"deep":{"x":"<&>"},"list":[1]}`)}
	got := parseEnvelope(t, messageEnvelope(f, m, "t", time.Now()).json()).Metadata
	for name, want := range map[string]any{
		"MessageId": `"evil"`, "yes": `"True"`, "deep": map[string]any{"x": "<&>"}, "myTrigger": nil, "list": nil, "messageid": nil,
	} {
		if diff := cmp.Diff(want, got[name]); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestDeadLetterReasonIsAnApplicationProperty(t *testing.T) {
	t.Parallel()
	f := &function{name: "Dead", trigger: binding{Name: "msg", DataType: "string", Cardinality: "many"}}
	m := message{ID: "m-1", Properties: json.RawMessage(`{"n":9007199254740993}`), DeadLetterReason: "MaxDeliveryCountExceeded", DeadLetterDescription: "too often"}
	got := parseEnvelope(t, batchEnvelope(f, []message{m}, "t", time.Now()).json()).Metadata["ApplicationPropertiesArray"]
	want := `[{"DeadLetterErrorDescription":"too often","DeadLetterReason":"MaxDeliveryCountExceeded","n":9007199254740993}]`
	if got != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

func TestCallsLookLikeTheRecordedOnes(t *testing.T) {
	t.Parallel()
	calls := make(chan call, 10)
	r := start(t, testApp{
		functions: map[string]string{"many": strings.Replace(queueFunction("work", "many", "string"), `"name":"msg"`, `"name":"msgs"`, 1)},
		script:    func(c call) reply { calls <- c; return ok },
	})
	put(t, r.broker, "work", "1")
	c := next(t, calls)
	var all map[string]recorded
	readTestdata(t, "envelopes.json", &all)
	recorded := all["queue-string-many-plain-text"]
	want := http.Header{}
	for _, line := range recorded.Headers {
		name, value, _ := strings.Cut(line, ": ")
		want.Set(name, value)
	}
	if c.Method+" "+c.URI+" HTTP/1.1" != recorded.Request {
		t.Errorf("request %s %s", c.Method, c.URI)
	}
	if "http://"+c.Host != r.HandlerURL || len(c.Encoding) != 1 || c.Encoding[0] != "chunked" {
		t.Errorf("host %s, encoding %v", c.Host, c.Encoding)
	}
	want.Del("Host")
	want.Del("Transfer-Encoding")
	if len(c.Header.Get(headerInvocationID)) != 36 {
		t.Errorf("invocation id %q", c.Header.Get(headerInvocationID))
	}
	want.Set(headerInvocationID, c.Header.Get(headerInvocationID))
	if diff := cmp.Diff(want, c.Header); diff != "" {
		t.Errorf("headers differ (-recorded +ours):\n%s", diff)
	}
}
