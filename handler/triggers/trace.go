package triggers

import (
	"cmp"
	"context"
	"net/http"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"userconnectivity/handler/queue"
)

// tracer makes a span of each request; telemetry.Traces is one. The request that Begin returns has the span in its
// context and its header Traceparent, so that what the request causes follows it.
type tracer interface {
	Begin(r *http.Request) (traced *http.Request, end func(route, method string, status int))
}

// traced makes a span of each request. A request whose connection is broken off ends its span, too.
func traced(t tracer) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		if t == nil {
			return next
		}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r, end := t.Begin(r)
			defer func() { end(routeOf(r), methodOf(r), cmp.Or(requestOf(r).status, http.StatusOK)) }()
			next.ServeHTTP(w, r)
		})
	}
}

// traceparent returns the W3C trace context that a message of a queue has for what it causes: that of its sender, as
// the property traceparent or, from clients of Azure, Diagnostic-Id; without one that of the batch, if it is traced.
func (m message) traceparent(ctx context.Context) string {
	for _, name := range []string{queue.Traceparent, "Diagnostic-Id"} {
		if text, _ := m.Properties[name].(string); isTraceparent(text) {
			return text
		}
	}
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return ""
	}
	batch := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, batch)
	return batch[queue.Traceparent]
}
