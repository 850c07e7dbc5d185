package triggers_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/big"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/queue"
	"userconnectivity/handler/redisconn"
	"userconnectivity/handler/redisstore"
	"userconnectivity/handler/triggers"
	"userconnectivity/handler/worker"
)

// FuzzAcceptedSurvives: what is accepted at the edge is the same in Redis, in the outbox, in the message, for the worker
// and in the event log, and each of them can take it. The queue accepts what HTTP accepts.
func FuzzAcceptedSurvives(f *testing.F) {
	for _, meta := range []string{
		`{}`, `{"a":1}`, `{"n":1e309}`, `{"n":-1.7976931348623157e308}`, `{"n":1e-400}`, `{"n":5e-324}`, `{"n":-0}`, `{"n":-0.0}`, `{"n":9007199254740991}`, `{"n":9007199254740993}`,
		`{"n":1E5,"m":1e+05,"f":0.1234567890123456789012345678901234567890}`, `{"n":` + strings.Repeat("1", 900) + `}`, `{"n":0.` + strings.Repeat("0", 900) + `1}`,
		`{"a":` + strings.Repeat("[", 31) + strings.Repeat("]", 31) + `}`, `{"a":` + strings.Repeat("[", 129) + strings.Repeat("]", 129) + `}`, strings.Repeat(`{"a":`, 31) + "{}" + strings.Repeat("}", 31),
		`{"s":"\ud800"}`, `{"s":"\udc00\ud800"}`, `{"s":"\ud83d\ude00"}`, `{"s":"\u0000\u001f\u007f\u0085\u2028\u2029\ufeff\uffff"}`, "{\"s\":\"\u2028<>&'\\/\"}", `{"\u0000":1,"":2}`, "{\"s\":\"\xff\"}",
		`{"a":1,"a":2}`, `{"a":1,"A":2,"\u0061b":3}`, `{"` + strings.Repeat("n", 1000) + `":0}`, `{"s":"` + strings.Repeat("<", 1000) + `"}`, `{"a\nb":"\r\n,"}`, `{"$id":1,"_ts":2,"id":"x","ttl":-1,"__proto__":{}}`,
		` { "a" : [ true , false , null , "" ] } `, `{"d":"2026-01-01T00:00:00.1234567+01:00"}`,
	} {
		f.Add(`{"user":"ann","groups":["g:1","~|=+"],"meta":`+meta+`}`, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	}
	for _, body := range []string{
		`{"user":"-","session":"+"}`, `{"user":"~","session":"...","ttlSeconds":5.0,"graceSeconds":6e2,"groups":["-","+","..."],"seq":9007199254740991}`,
		`{"user":"` + strings.Repeat("u", 128) + `","session":"` + strings.Repeat("|", 128) + `"}`, `{"user":"ann","groups":[]}`,
	} {
		f.Add(body, "")
		f.Add(body, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-zz\r\nx: y")
	}
	server, prefix := testkit.Shared(f)
	client := redisconn.NewClient(redisconn.Endpoint{URL: server.URL()}, f.Name(), nil)
	f.Cleanup(func() { _ = client.Close() })
	var runs atomic.Int64
	f.Fuzz(func(t *testing.T, body, trace string) {
		store := redisstore.New(client, redisstore.Config{Prefix: fmt.Sprintf("%s%d:", prefix, runs.Add(1)), Partitions: 1})
		t.Cleanup(store.Close)
		tracker, sender := presence.NewTracker(store, nil, presence.DefaultTTL), &queues{seen: map[string]bool{}}
		routes := triggers.Routes(triggers.Handlers{
			Tracker: tracker, Worker: (*worker.Worker)(nil), Log: discard, Beats: triggers.HeartbeatQueue{Tracker: tracker, Sender: sender},
		})
		r := request("POST", "/api/heartbeat", body)
		r.Header.Set("Traceparent", trace)
		w := record(routes, r)
		judge(t, w)
		if !strings.HasPrefix(strings.TrimLeft(body, "\ufeff \t\r\n"), "[") && w.Code != 413 {
			serve(routes, "POST", "/HeartbeatMessages", envelope(delivered{Body: strings.ToValidUTF8(body, "\uFFFD"), ID: "m"}))
			if refused := len(sender.messages) > 0; refused != (w.Code == 400) && strings.ToValidUTF8(body, "\uFFFD") == body {
				t.Errorf("%q: %d over HTTP, refused over the queue: %v", body, w.Code, refused)
			}
		}
		if w.Code != 200 {
			return
		}
		var sent struct {
			User, Session string
			Groups        []string
			Meta          json.RawMessage
		}
		if err := json.Unmarshal([]byte(strings.TrimPrefix(body, "\ufeff")), &sent); err != nil {
			t.Fatal(err)
		}
		meta := sent.Meta
		if string(compacted(t, meta)) == "{}" || string(meta) == "null" {
			meta = nil
		}

		users, err := store.Users(t.Context(), []string{sent.User})
		if err != nil || len(users[0].Sessions) != 1 {
			t.Fatalf("%+v, %v", users, err)
		}
		same(t, "Redis", meta, users[0].Sessions[0].Meta)
		entries, err := store.Outbox("test").Next(t.Context(), 0, 10)
		if err != nil || len(entries) != 1 {
			t.Fatalf("%d entries, %v", len(entries), err)
		}
		e := entries[0].Event
		same(t, "the outbox", meta, e.Meta)
		if e.User != sent.User || !cmp.Equal(append([]string{}, e.Groups...), append([]string{}, sent.Groups...)) || e.Traceparent == "" {
			t.Errorf("%q became %+v", body, e)
		}

		codec := queue.Codec{Source: "/test", TypePrefix: "userconnectivity."}
		m, err := codec.Encode(e, 0)
		if err != nil || len(m.Body) > 64<<10 {
			t.Fatalf("a message of %d bytes, %v", len(m.Body), err)
		}
		read, _, err := codec.Decode(m.Body)
		if err != nil {
			t.Fatalf("the worker cannot read %s: %v", m.Body, err)
		}
		same(t, "the worker", meta, read.Meta)
		if read.User != e.User || read.Session != e.Session || !cmp.Equal(read.Groups, append([]string{}, e.Groups...)) || read.Traceparent != e.Traceparent {
			t.Errorf("sent %+v, read %+v", e, read)
		}

		d, err := eventlog.NewDocument(eventlog.Record{Event: read, History: []eventlog.Step{{Status: eventlog.Detected, At: read.DetectedAt}}})
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(d)
		if err != nil || len(text) > 64<<10 {
			t.Fatalf("a document of %d bytes, %v", len(text), err)
		}
		logged := asStored(t, text)
		same(t, "the event log", meta, logged.Meta)
	})
}

// asStored is a document after Cosmos DB kept it: numbers are float64, and nothing is nested deeper than 128 levels.
func asStored(t *testing.T, text []byte) (d eventlog.Document) {
	t.Helper()
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatalf("it cannot be stored: %v in %s", err, text)
	}
	if depth := depthOf(v); depth > 128 {
		t.Fatalf("nested %d levels deep: %s", depth, text)
	}
	stored, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(stored, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

func depthOf(v any) (depth int) {
	switch v := v.(type) {
	case map[string]any:
		for _, value := range v {
			depth = max(depth, depthOf(value))
		}
		return depth + 1
	case []any:
		for _, value := range v {
			depth = max(depth, depthOf(value))
		}
		return depth + 1
	}
	return 0
}

// same wants two JSON texts to mean the same: the same whole numbers, and for the others the same float64.
// cmp takes time exponential in the depth of a value, so it does not compare these.
func same(t *testing.T, where string, want, got json.RawMessage) {
	t.Helper()
	if (want == nil) != (got == nil) || want != nil && !reflect.DeepEqual(meaning(t, want), meaning(t, got)) {
		t.Errorf("%s has %s, want %s", where, got, want)
	}
}

func meaning(t *testing.T, text json.RawMessage) any {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	return numbers(t, v)
}

// numbers replaces each number by the text of its exact value: of a whole number in plain digits its own, else that of
// its float64.
func numbers(t *testing.T, v any) any {
	t.Helper()
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			v[name] = numbers(t, value)
		}
	case []any:
		for i, value := range v {
			v[i] = numbers(t, value)
		}
	case json.Number:
		if !strings.ContainsAny(v.String(), ".eE") {
			n, ok := new(big.Int).SetString(v.String(), 10)
			if !ok {
				t.Fatalf("%s is no number", v)
			}
			return n.String()
		}
		f, err := v.Float64()
		if err != nil {
			t.Fatalf("%s: %v", v, err)
		}
		return new(big.Float).SetFloat64(f+0).Text('g', 400) // -0 and 0 are equal
	}
	return v
}

func compacted(t *testing.T, text json.RawMessage) []byte {
	t.Helper()
	var b bytes.Buffer
	if text != nil {
		if err := json.Compact(&b, text); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}
