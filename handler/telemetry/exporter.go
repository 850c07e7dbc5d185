package telemetry

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"userconnectivity/handler/metrics"
)

// counts are the sampled spans of a process by what became of them.
type counts struct {
	ended, sent, failed atomic.Int64

	mu   sync.Mutex
	last string // why the last batch could not be sent, "" when it was
}

func (c *counts) fault() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last
}

// setFault remembers how the last batch went, and returns how the one before did.
func (c *counts) setFault(fault string) (before string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before, c.last = c.last, fault
	return before
}

// counted counts the spans that end.
type counted struct {
	sdktrace.SpanProcessor
	counts *counts
}

// OnEnd implements sdktrace.SpanProcessor.
func (c *counted) OnEnd(s sdktrace.ReadOnlySpan) {
	if s.SpanContext().IsSampled() {
		c.counts.ended.Add(1)
	}
	c.SpanProcessor.OnEnd(s)
}

// watched counts what is sent and what is not. One line tells of an outage's begin, one of its end.
type watched struct {
	sdktrace.SpanExporter
	counts *counts
	log    *slog.Logger
}

// ExportSpans implements sdktrace.SpanExporter. It returns no error: the SDK would only log it once more.
func (w *watched) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := w.SpanExporter.ExportSpans(ctx, spans)
	if err != nil {
		w.counts.failed.Add(int64(len(spans)))
		if w.counts.setFault(err.Error()) == "" {
			w.log.WarnContext(ctx, "traces cannot be sent; they are dropped until they can", "error", err)
		}
		return nil
	}
	w.counts.sent.Add(int64(len(spans)))
	if w.counts.setFault("") != "" {
		w.log.InfoContext(ctx, "traces are sent again")
	}
	return nil
}

// console logs each span as a line.
type console struct{ log *slog.Logger }

// ExportSpans implements sdktrace.SpanExporter.
func (c console) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	for _, s := range spans {
		parent := ""
		if s.Parent().SpanID().IsValid() {
			parent = s.Parent().SpanID().String()
		}
		attributes := make([]any, 0, len(s.Attributes()))
		for _, a := range s.Attributes() {
			attributes = append(attributes, slog.Any(string(a.Key), a.Value.AsInterface()))
		}
		c.log.InfoContext(ctx, "span", "trace", s.SpanContext().TraceID().String(), "span", s.SpanContext().SpanID().String(), "parent", parent,
			"name", s.Name(), "kind", s.SpanKind().String(), "start", s.StartTime().UTC(), "took", s.EndTime().Sub(s.StartTime()),
			"status", s.Status().Code.String(), "problem", s.Status().Description, slog.Group("attributes", attributes...))
	}
	return nil
}

// Shutdown implements sdktrace.SpanExporter.
func (console) Shutdown(context.Context) error { return nil }

// Describe implements prometheus.Collector.
func (t *Traces) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (t *Traces) Collect(ch chan<- prometheus.Metric) {
	metrics.Counter(ch, "trace_spans_ended_total", "Spans that were made and sampled.", t.counts.ended.Load())
	metrics.Counter(ch, "trace_spans_sent_total", "Spans that the receiver took.", t.counts.sent.Load())
	metrics.Counter(ch, "trace_spans_failed_total", "Spans that could not be sent, and were dropped.", t.counts.failed.Load())
}
