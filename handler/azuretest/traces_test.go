package azuretest

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"userconnectivity/handler/presence"
	"userconnectivity/handler/servicebus/amqpstub"
)

// span is one that a receiver took.
type span struct {
	*tracepb.Span
	service string
}

func (s span) trace() string  { return hex.EncodeToString(s.TraceId) }
func (s span) id() string     { return hex.EncodeToString(s.SpanId) }
func (s span) parent() string { return hex.EncodeToString(s.ParentSpanId) }

// text returns an attribute of the span.
func (s span) text(name string) string {
	for _, a := range s.Attributes {
		if a.Key == name {
			if v := a.Value.GetStringValue(); v != "" {
				return v
			}
			return a.Value.String()
		}
	}
	return ""
}

// receiver takes spans as OTLP over HTTP, as a collector does.
type receiver struct {
	*httptest.Server
	status   atomic.Int32  // that it answers; 0 is 200
	hang     chan struct{} // not nil: no answer before it is closed
	requests atomic.Int64

	mu      sync.Mutex
	spans   []span
	headers http.Header // of the last request
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()
	r := &receiver{}
	r.Server = httptest.NewServer(http.HandlerFunc(r.serve))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) serve(w http.ResponseWriter, req *http.Request) {
	r.requests.Add(1)
	body, err := io.ReadAll(req.Body)
	var data tracepb.TracesData
	if err != nil || proto.Unmarshal(body, &data) != nil || req.URL.Path != "/v1/traces" || req.Header.Get("Content-Type") != "application/x-protobuf" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	if r.hang != nil {
		<-r.hang
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.headers = req.Header
	if status := r.status.Load(); status != 0 {
		w.WriteHeader(int(status))
		return
	}
	for _, of := range data.ResourceSpans {
		service := ""
		for _, a := range of.Resource.Attributes {
			if a.Key == "service.name" {
				service = a.Value.GetStringValue()
			}
		}
		for _, scope := range of.ScopeSpans {
			for _, s := range scope.Spans {
				r.spans = append(r.spans, span{s, service})
			}
		}
	}
}

// of returns the spans of a trace by their names and, of those about an event, its status in the log.
func (r *receiver) of(trace string) map[string]span {
	r.mu.Lock()
	defer r.mu.Unlock()
	named := map[string]span{}
	for _, s := range r.spans {
		if s.trace() == trace {
			named[strings.TrimSpace(s.Name+" "+s.text("userconnectivity.status"))] = s
		}
	}
	return named
}

// waitFor waits until a trace has spans with these names, and no others.
func (r *receiver) waitFor(t *testing.T, trace string, names ...string) map[string]span {
	t.Helper()
	var found map[string]span
	wait(t, "trace "+trace, func() (bool, any) {
		found = r.of(trace)
		have := make([]string, 0, len(found))
		for name := range found {
			have = append(have, name)
		}
		slices.Sort(have)
		slices.Sort(names)
		return slices.Equal(have, names), have
	})
	return found
}

// beatIn sends a heartbeat that belongs to a trace.
func (h *handler) beatIn(traceparent, body string) {
	h.tb.Helper()
	req, err := http.NewRequestWithContext(h.tb.Context(), "POST", h.url+"/api/heartbeat", strings.NewReader(body))
	if err != nil {
		h.tb.Fatal(err)
	}
	req.Header = http.Header{"Content-Type": {"application/json"}, "Traceparent": {traceparent}, "X-Azure-Functions-Invocationid": {"invocation-1"}}
	resp, err := h.client.Do(req)
	if err != nil {
		h.tb.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		h.tb.Fatalf("heartbeat: status %d", resp.StatusCode)
	}
}

const (
	trace1      = "4bf92f3577b34da6a3ce929d0e0e4736"
	parent1     = "00f067aa0ba902b7"
	sampled     = "00-" + trace1 + "-" + parent1 + "-01"
	notSampled  = "00-" + trace1 + "-" + parent1 + "-00"
	wroteQueued = "write events queued"
	wroteDone   = "write events done"
)

// TestOneTraceFollowsAnEvent from the heartbeat to the users record, and another one from the deadline that passed.
func TestOneTraceFollowsAnEvent(t *testing.T) {
	t.Parallel()
	r, to := newRig(t), newReceiver(t)
	h := r.start("OTEL_EXPORTER_OTLP_ENDPOINT="+to.URL, "OTEL_RESOURCE_ATTRIBUTES=deployment.environment.name=test")
	h.beatIn(sampled, `{"user":"ada","ttlSeconds":5}`)
	messages := r.waitMessages(2)
	r.waitPath("detected queued", messages...)
	r.newTrigger(h, "ConnectivityWorker", eventsQueue, 0).work(2)

	online := to.waitFor(t, trace1, "POST /api/heartbeat", "detect user.online", "send connectivity-events", wroteQueued, "process connectivity-events", "apply users", wroteDone)
	request := online["POST /api/heartbeat"]
	if request.parent() != parent1 || request.Kind != tracepb.Span_SPAN_KIND_SERVER || request.service != "app" || request.text("http.route") != "/api/heartbeat" ||
		request.text("faas.invocation_id") != "invocation-1" || request.text("http.response.status_code") != "int_value:200" {
		t.Errorf("%v", request)
	}
	below := func(spans map[string]span, parent string) {
		t.Helper()
		for name, s := range spans {
			want := parent
			switch {
			case s.id() == parent || name == "POST /api/heartbeat":
				continue
			case name == "apply users":
				want = spans["process connectivity-events"].id()
			}
			if s.parent() != want {
				t.Errorf("%s is below %s, want %s", name, s.parent(), want)
			}
		}
	}
	below(online, request.id())
	if e := decode(t, messages[0]); e.Traceparent != "00-"+trace1+"-"+request.id()+"-01" || messages[0].Properties["traceparent"] != e.Traceparent {
		t.Errorf("the event tells %s and %s, not the request", e.Traceparent, messages[0].Properties["traceparent"])
	}

	event := decode(t, messages[1])
	own := strings.Split(presence.TraceparentOf(messages[1].ID), "-")
	offline := to.waitFor(t, own[1], "detect user.offline", "send connectivity-events", wroteQueued, "process connectivity-events", "apply users", wroteDone)
	detect := offline["detect user.offline"]
	if begin, end := time.Unix(0, int64(detect.StartTimeUnixNano)), time.Unix(0, int64(detect.EndTimeUnixNano)); !begin.Equal(*event.Data.Deadline) || !end.Equal(event.Time) ||
		detect.parent() != "" || detect.id() != own[2] || detect.text("userconnectivity.reason") != "expired" || detect.text("cloudevents.event_id") != messages[1].ID {
		t.Errorf("%v from %v to %v: it is not the first span, from the deadline %v to %v", detect, begin, end, event.Data.Deadline, event.Time)
	}
	below(offline, own[2])
	process := offline["process connectivity-events"]
	if process.Kind != tracepb.Span_SPAN_KIND_CONSUMER || len(process.Links) != 1 || offline["send connectivity-events"].Kind != tracepb.Span_SPAN_KIND_PRODUCER {
		t.Errorf("%v", process)
	}
	batch := to.waitFor(t, hex.EncodeToString(process.Links[0].TraceId), "POST /ConnectivityWorker")["POST /ConnectivityWorker"]
	if batch.id() != hex.EncodeToString(process.Links[0].SpanId) || batch.Kind != tracepb.Span_SPAN_KIND_CONSUMER {
		t.Errorf("the event is not linked to its batch: %v", batch)
	}
	to.mu.Lock()
	defer to.mu.Unlock()
	for _, s := range to.spans {
		if strings.Contains(s.Span.String(), "ada") {
			t.Errorf("a span tells the user: %v", s)
		}
	}
}

// TestSamplingKeepsToTheParent: what the caller did not sample leaves no span, also of the events it causes; what no
// request caused is chosen by the sampler, alike in each process.
func TestSamplingKeepsToTheParent(t *testing.T) {
	t.Parallel()
	r, to := newRig(t), newReceiver(t)
	h := r.start("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="+to.URL+"/v1/traces", "OTEL_TRACES_SAMPLER=parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG=0")
	h.beatIn(notSampled, `{"user":"ada","ttlSeconds":5}`)
	messages := r.waitMessages(2)
	r.waitPath("detected queued", messages...)
	r.newTrigger(h, "ConnectivityWorker", eventsQueue, 0).work(2)
	if e := decode(t, messages[0]); e.Traceparent != notSampled {
		t.Errorf("the event tells %s", e.Traceparent)
	}
	h.beatIn(sampled, `{"user":"bob","ttlSeconds":600}`)
	to.waitFor(t, trace1, "POST /api/heartbeat", "detect user.online", "send connectivity-events", wroteQueued) // bob's alone
	to.mu.Lock()
	defer to.mu.Unlock()
	for _, s := range to.spans {
		if s.trace() != trace1 {
			t.Errorf("a span of a trace that is not sampled: %v", s)
		}
	}
}

// TestNoTracesUnlessConfigured: nobody connects to a receiver, and the trace context is passed on as it came.
func TestNoTracesUnlessConfigured(t *testing.T) {
	t.Parallel()
	for name, settings := range map[string]func(url string) []string{
		"none": func(url string) []string {
			return []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + url, "OTEL_TRACES_EXPORTER=none"}
		},
		"disabled": func(url string) []string {
			return []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + url, "OTEL_SDK_DISABLED=true"}
		},
		"wrong": func(url string) []string {
			return []string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + url, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, to := newRig(t), newReceiver(t)
			h := r.start(settings(to.URL)...)
			h.beatIn(sampled, `{"user":"ada"}`)
			messages := r.waitMessages(1)
			if e := decode(t, messages[0]); e.Traceparent != sampled {
				t.Errorf("the event tells %s", e.Traceparent)
			}
			r.waitPath("detected queued", messages...)
			h.end()
			if n := to.requests.Load(); n > 0 {
				t.Errorf("%d requests to the receiver", n)
			}
			if told := strings.Contains(h.output.String(), "OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf"); told != (name == "wrong") {
				t.Errorf("the wrong setting is told: %v", told)
			}
		})
	}
}

// end ends the handler as a stop of the machine does, and waits for it.
func (h *handler) end() {
	h.tb.Helper()
	if err := h.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		h.tb.Fatal(err)
	}
	select {
	case <-h.exited:
	case <-time.After(patience):
		h.tb.Fatalf("the handler does not end\n%s", h.output)
	}
}

// TestReceiverThatIsAway, refuses or hangs slows nobody: one line tells, the spans are counted, and the process ends in
// time.
func TestReceiverThatIsAway(t *testing.T) {
	t.Parallel()
	const secret = "hunter2"
	for name, set := range map[string]func(*testing.T, *receiver){
		"away":    func(_ *testing.T, to *receiver) { to.Close() },
		"refuses": func(_ *testing.T, to *receiver) { to.status.Store(http.StatusUnauthorized) },
		"throttles": func(_ *testing.T, to *receiver) {
			to.status.Store(http.StatusTooManyRequests)
		},
		"hangs": func(t *testing.T, to *receiver) {
			to.hang = make(chan struct{})
			t.Cleanup(func() { close(to.hang) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, to := newRig(t), newReceiver(t)
			set(t, to)
			h := r.start("OTEL_EXPORTER_OTLP_ENDPOINT="+to.URL, "OTEL_EXPORTER_OTLP_HEADERS=x-api-key="+secret, "OTEL_EXPORTER_OTLP_TIMEOUT=300")
			failed := func() (n int) {
				for line := range strings.Lines(h.metrics()) {
					if count, ok := strings.CutPrefix(line, "userconnectivity_trace_spans_failed_total "); ok {
						_, _ = fmt.Sscan(count, &n)
					}
				}
				return n
			}
			for outages := 1; outages <= 3; outages++ { // batches that fail
				before := failed()
				h.beatIn(sampled, `{"user":"ada"}`)
				wait(t, "the spans are dropped", func() (bool, any) { n := failed(); return n > before, n })
			}
			if n := strings.Count(h.output.String(), "traces cannot be sent"); n != 1 {
				t.Errorf("%d lines tell of it", n)
			}
			p := h.health()
			if p.Status != "ok" || !strings.Contains(p.detail("process"), "traces cannot be sent") {
				t.Errorf("health %v", p)
			}
			if name == "refuses" {
				to.mu.Lock()
				if got := to.headers.Get("X-Api-Key"); got != secret {
					t.Errorf("the receiver got the key %q", got)
				}
				to.mu.Unlock()
				to.status.Store(0)
				h.beatIn(sampled, `{"user":"ada"}`)
				wait(t, "they are sent again", func() (bool, any) { return strings.Contains(h.output.String(), "traces are sent again"), h.output })
			}
			h.end()
			if strings.Contains(h.output.String()+fmt.Sprint(p), secret) {
				t.Error("the key of the receiver is told")
			}
		})
	}
}

// metrics returns what the handler tells Prometheus.
func (h *handler) metrics() string {
	h.tb.Helper()
	req, err := http.NewRequestWithContext(context.WithoutCancel(h.tb.Context()), "GET", h.url+"/api/metrics", nil)
	if err != nil {
		h.tb.Fatal(err)
	}
	resp, err := h.client.Do(req)
	if err != nil {
		h.tb.Fatal(err)
	}
	defer resp.Body.Close()
	var text bytes.Buffer
	if _, err := text.ReadFrom(resp.Body); err != nil {
		h.tb.Fatal(err)
	}
	return text.String()
}

// TestLastTracesAreSent when the process is asked to end.
func TestLastTracesAreSent(t *testing.T) {
	t.Parallel()
	r, to := newRig(t), newReceiver(t)
	h := r.start("OTEL_EXPORTER_OTLP_ENDPOINT="+to.URL, "OTEL_SERVICE_NAME=presence")
	h.beatIn(sampled, `{"user":"ada"}`)
	h.end()
	if s, ok := to.of(trace1)["POST /api/heartbeat"]; !ok || s.service != "presence" {
		t.Errorf("%v", to.of(trace1))
	}
}

// TestHeartbeatsOfAQueueAreTraced: the events of a heartbeat are in the trace of its message, and without one in that
// of its batch.
func TestHeartbeatsOfAQueueAreTraced(t *testing.T) {
	t.Parallel()
	r, to := newRig(t), newReceiver(t)
	h := r.start("OTEL_EXPORTER_OTLP_ENDPOINT=" + to.URL)
	body := map[string]any{
		"Data": map[string]any{"messages": `["{\"user\":\"ada\"}","{\"user\":\"bob\"}"]`},
		"Metadata": map[string]any{
			"MessageIdArray": `["m1","m2"]`, "DeliveryCountArray": `[1,1]`,
			"ApplicationPropertiesArray": `[{"Diagnostic-Id":"` + sampled + `"},{}]`,
		},
	}
	if status := h.call("POST", "/HeartbeatMessages", body, nil); status != http.StatusOK {
		t.Fatalf("status %d", status)
	}
	messages := r.waitMessages(2)
	slices.SortFunc(messages, func(a, b amqpstub.Message) int { return strings.Compare(a.SessionID, b.SessionID) })
	if e := decode(t, messages[0]); e.Traceparent != sampled {
		t.Errorf("the event of a message with a trace tells %s", e.Traceparent)
	}
	to.waitFor(t, trace1, "detect user.online", "send connectivity-events", wroteQueued)
	of := strings.Split(decode(t, messages[1]).Traceparent, "-")
	spans := to.waitFor(t, of[1], "POST /HeartbeatMessages", "detect user.online", "send connectivity-events", wroteQueued)
	if batch := spans["POST /HeartbeatMessages"]; batch.id() != of[2] || batch.Kind != tracepb.Span_SPAN_KIND_CONSUMER {
		t.Errorf("%v", batch)
	}
}
