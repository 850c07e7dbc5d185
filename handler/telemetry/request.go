package telemetry

import (
	"net/http"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// invocationHeader carries the host's id of an invocation, by which its own logs can be found.
const invocationHeader = "X-Azure-Functions-Invocationid"

// w3c reads and writes traceparent and tracestate. See https://www.w3.org/TR/trace-context/.
var w3c propagation.TraceContext

// polled are routes that monitors and the host ask again and again: they have no spans.
var polled = map[string]bool{"/": true, "/api/live": true, "/api/health": true, "/api/listener": true, "/api/metrics": true}

// Begin begins the span of a request. Its parent is that of the request's traceparent. The header of the request that
// is returned tells the span, so that what the request causes follows it. end ends the span; route is the pattern of
// the route, without ids.
func (t *Traces) Begin(r *http.Request) (traced *http.Request, end func(route, method string, status int)) {
	if t == nil || polled[r.URL.Path] {
		return r, func(string, string, int) {}
	}
	kind, trigger := trace.SpanKindServer, semconv.FaaSTriggerHTTP
	if !strings.HasPrefix(strings.ToLower(r.URL.Path), "/api/") { // a batch of queue messages, which the host posts
		kind, trigger = trace.SpanKindConsumer, semconv.FaaSTriggerPubSub
	}
	headers := propagation.HeaderCarrier(r.Header)
	ctx, span := t.tracer.Start(w3c.Extract(r.Context(), headers), r.Method, trace.WithSpanKind(kind), trace.WithAttributes(trigger))
	traced = r.WithContext(ctx)
	// A span that is not sampled is told to nobody: what follows keeps to the caller's, if there was one.
	if span.SpanContext().IsSampled() || !trace.SpanContextFromContext(w3c.Extract(r.Context(), headers)).IsValid() {
		traced.Header = r.Header.Clone()
		w3c.Inject(ctx, propagation.HeaderCarrier(traced.Header))
	}
	return traced, func(route, method string, status int) {
		defer span.End()
		if !span.IsRecording() {
			return
		}
		span.SetName(method + " " + route)
		told := []attribute.KeyValue{semconv.HTTPRoute(route), semconv.HTTPResponseStatusCode(status)}
		if method == "other" {
			told = append(told, semconv.HTTPRequestMethodOther)
		} else {
			told = append(told, semconv.HTTPRequestMethodKey.String(method))
		}
		if id := r.Header.Get(invocationHeader); id != "" {
			told = append(told, semconv.FaaSInvocationID(id))
		}
		span.SetAttributes(told...)
		if status >= http.StatusInternalServerError {
			span.SetStatus(codes.Error, http.StatusText(status))
		}
	}
}
