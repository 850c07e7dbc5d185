package triggers_test

import (
	"encoding/json"
	"io"
	"mime"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// delivered is one message of a batch, as the broker delivers it.
type delivered struct {
	Body, ID   string
	Count      int
	EnqueuedAt time.Time
	Properties map[string]any
}

// envelope is a batch as the host hands it over: each array is a string that holds JSON.
func envelope(messages ...delivered) string {
	quoted := func(v any) string {
		text, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		return string(text)
	}
	var bodies, ids, times []string
	var counts []int
	var properties []map[string]any
	for _, m := range messages {
		if m.EnqueuedAt.IsZero() {
			m.EnqueuedAt = time.Now()
		}
		if m.Properties == nil {
			m.Properties = map[string]any{}
		}
		bodies, ids, counts = append(bodies, m.Body), append(ids, m.ID), append(counts, max(m.Count, 1))
		times = append(times, m.EnqueuedAt.UTC().Format("2006-01-02T15:04:05.9999999Z"))
		properties = append(properties, m.Properties)
	}
	return quoted(map[string]any{
		"Data": map[string]any{"messages": quoted(bodies)},
		"Metadata": map[string]any{
			"MessageActions": map[string]any{}, "Client": map[string]any{"FullyQualifiedNamespace": "bus.example.net"},
			"MessageIdArray": quoted(ids), "DeliveryCountArray": quoted(counts), "EnqueuedTimeUtcArray": quoted(times),
			"ApplicationPropertiesArray": quoted(properties), "SessionIdArray": quoted(make([]*string, len(messages))),
			"sys": map[string]any{"MethodName": "test", "UtcNow": "2026-03-01T08:15:31.1234567Z", "RandGuid": "11111111-2222-4333-8444-555555555555"},
		},
	})
}

// invoke calls a function as the host does and returns what the host makes of the answer.
func (b *bench) invoke(function, body string) (outcome string, a *answer) {
	b.t.Helper()
	r, err := http.NewRequestWithContext(b.t.Context(), "POST", b.server.URL+"/"+function, io.NopCloser(strings.NewReader(body)))
	if err != nil {
		b.t.Fatal(err)
	}
	// A reader of unknown length is sent in chunks, as the host does.
	r.Header.Set("Content-Type", "application/json; charset=utf-8")
	r.Header.Set("User-Agent", "Azure-Functions-Host/4.1037.0.0")
	r.Header.Set("X-Azure-Functions-InvocationId", "11111111-2222-4333-8444-555555555555")
	response, err := b.server.Client().Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer response.Body.Close()
	a = &answer{t: b.t, call: "invoke " + function, Status: response.StatusCode, Header: response.Header}
	if a.Body, err = io.ReadAll(response.Body); err != nil {
		b.t.Fatal(err)
	}
	return hostOutcome(a.Status, a.Header.Get("Content-Type"), a.Body), a
}

// succeeds calls a function and wants the host to take the batch as done.
func (b *bench) succeeds(function string, messages ...delivered) {
	b.t.Helper()
	if outcome, a := b.invoke(function, envelope(messages...)); outcome != "succeeded" {
		b.t.Fatalf("%s: %s: %d %s", function, outcome, a.Status, a.Body)
	}
}

// fails calls a function and wants the host to deliver the batch again.
func (b *bench) fails(function string, messages ...delivered) *answer {
	b.t.Helper()
	outcome, a := b.invoke(function, envelope(messages...))
	if outcome != "failed" {
		b.t.Fatalf("%s: %s: %d %s", function, outcome, a.Status, a.Body)
	}
	return a
}

// hostOutcome is what the host makes of a reply. testdata/replies.json has the replies that it was seen to get.
func hostOutcome(status int, contentType string, body []byte) string {
	if status < 200 || status > 299 {
		return "failed"
	}
	if len(body) == 0 {
		return "hangs"
	}
	if media, _, err := mime.ParseMediaType(contentType); err != nil || media != "application/json" {
		return "failed"
	}
	var reply *struct{ Outputs, Logs, ReturnValue json.RawMessage }
	if err := json.Unmarshal(body, &reply); err != nil {
		return "failed"
	}
	if reply == nil {
		return "hangs"
	}
	return "succeeded"
}

func TestHostOutcome(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("testdata/replies.json")
	if err != nil {
		t.Fatal(err)
	}
	var replies []struct {
		Status        int
		ContentType   string
		Body, Outcome string
	}
	if err := json.Unmarshal(text, &replies); err != nil || len(replies) < 10 {
		t.Fatalf("%d replies, %v", len(replies), err)
	}
	for _, r := range replies {
		if got := hostOutcome(r.Status, r.ContentType, []byte(r.Body)); got != r.Outcome {
			t.Errorf("%+v: %s", r, got)
		}
	}
}

// TestEveryFunctionAnswersWhatTheHostTakes calls each function that gets envelopes, with nothing to do.
func TestEveryFunctionAnswersWhatTheHostTakes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, f := range readFunctions(t) {
		if f.proxied() {
			continue
		}
		if outcome, a := b.invoke(f.name, envelope()); outcome != "succeeded" {
			t.Errorf("%s: %s: %d %s", f.name, outcome, a.Status, a.Body)
		}
	}
}

// TestTheHostsProbe: any answer to GET / tells the host that the handler is ready.
func TestTheHostsProbe(t *testing.T) {
	t.Parallel()
	w := serve(setup(t).routes, "GET", "/", "")
	if w.Code != http.StatusNoContent || w.Body.Len() != 0 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
