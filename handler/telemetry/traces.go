// Package telemetry makes traces by OpenTelemetry: spans that follow an event from the request that caused it, or from
// the deadline that passed, to the users record, by the traceparent that the event carries. They are sent as OTLP over
// HTTP, in batches and by a goroutine of their own: who makes a span never waits for a receiver.
//
// No span, error or log line has a user, a key or a header in it. Only ids of events, names of queues, types and
// statuses are told, and of errors their kind.
package telemetry

import (
	"context"
	"encoding/binary"
	"log/slog"
	"math/rand/v2"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// Config says where spans go and which are made. The names of the standard variables are those of package config.
type Config struct {
	// Endpoint is the URL that spans are posted to, with its path; "" is nowhere.
	Endpoint string
	// Headers go with every call, such as a key of the receiver. They are never told.
	Headers map[string]string
	// Timeout bounds the sending of one batch with all its tries.
	Timeout time.Duration
	// Console has each span logged as a line, and none sent.
	Console bool
	// Sampler is a name of OTEL_TRACES_SAMPLER, and Ratio the part of traces, 0 to 1, for those that have "ratio" in it.
	Sampler string
	Ratio   float64
	// Service, Version and Instance name this process; Attributes are told beside them, and go behind them.
	Service, Version, Instance string
	Attributes                 map[string]string
	// EventLog is the database of the event log, as OpenTelemetry names it: azure.cosmosdb or sqlite.
	EventLog string
}

const (
	// maxWaiting bounds the spans that wait to be sent; those beyond are dropped.
	maxWaiting = 8192
	// sendEvery is how long a span waits at most until it is sent with others.
	sendEvery = time.Second
	// scope names what makes the spans.
	scope = "userconnectivity/handler"
)

// Traces makes spans. A nil *Traces is off: it makes none, and its decorators return what they were given. It is safe
// for concurrent use.
type Traces struct {
	tracer   trace.Tracer
	sampler  sdktrace.Sampler
	provider *sdktrace.TracerProvider
	counts   *counts
	client   *client // nil for the console
	eventLog attribute.KeyValue
}

// New returns Traces, nil where the spans would go nowhere. Shutdown ends its goroutine.
func New(c Config, log *slog.Logger) *Traces {
	t := &Traces{sampler: samplerOf(c.Sampler, c.Ratio), counts: &counts{}, eventLog: semconv.DBSystemNameKey.String(c.EventLog)}
	var exporter sdktrace.SpanExporter
	switch {
	case c.Console:
		exporter = console{log}
	case c.Endpoint != "":
		t.client = newClient(c)
		exporter = &watched{SpanExporter: otlptrace.NewUnstarted(t.client), counts: t.counts, log: log}
	default:
		return nil
	}
	batches := sdktrace.NewBatchSpanProcessor(exporter, sdktrace.WithMaxQueueSize(maxWaiting), sdktrace.WithBatchTimeout(sendEvery), sdktrace.WithExportTimeout(c.Timeout))
	t.provider = sdktrace.NewTracerProvider(
		sdktrace.WithSampler(t.sampler), sdktrace.WithIDGenerator(ids{}), sdktrace.WithResource(resourceOf(c)),
		sdktrace.WithSpanProcessor(&counted{batches, t.counts}),
	)
	t.tracer = t.provider.Tracer(scope)
	return t
}

// Shutdown sends what waits and ends. What is not sent when ctx ends is dropped.
func (t *Traces) Shutdown(ctx context.Context) error {
	if t == nil {
		return nil
	}
	err := t.provider.Shutdown(ctx)
	if t.client != nil {
		t.client.end()
	}
	return err
}

// Fault says why spans cannot be sent, "" for nothing.
func (t *Traces) Fault() string {
	if t == nil {
		return ""
	}
	return t.counts.fault()
}

// samplerOf returns the sampler of a name of OTEL_TRACES_SAMPLER.
func samplerOf(name string, ratio float64) sdktrace.Sampler {
	switch name {
	case "always_on":
		return sdktrace.AlwaysSample()
	case "always_off":
		return sdktrace.NeverSample()
	case "traceidratio":
		return sdktrace.TraceIDRatioBased(ratio)
	case "parentbased_always_off":
		return sdktrace.ParentBased(sdktrace.NeverSample())
	case "parentbased_traceidratio":
		return sdktrace.ParentBased(sdktrace.TraceIDRatioBased(ratio))
	}
	return sdktrace.ParentBased(sdktrace.AlwaysSample())
}

func resourceOf(c Config) *resource.Resource {
	told := make([]attribute.KeyValue, 0, len(c.Attributes)+3)
	for name, value := range c.Attributes {
		told = append(told, attribute.String(name, value))
	}
	told = append(told, semconv.ServiceName(c.Service), semconv.ServiceVersion(c.Version), semconv.ServiceInstanceID(c.Instance))
	return resource.NewWithAttributes(semconv.SchemaURL, told...)
}

// ids makes the ids of spans. A trace that no request began has those that the traceparent of its event tells: they
// are in the context.
type ids struct{}

type givenIDs struct{}

// withIDs has the next root span in ctx take the ids of c.
func withIDs(ctx context.Context, c trace.SpanContext) context.Context {
	return context.WithValue(ctx, givenIDs{}, c)
}

// NewIDs implements sdktrace.IDGenerator.
func (g ids) NewIDs(ctx context.Context) (trace.TraceID, trace.SpanID) {
	if c, ok := ctx.Value(givenIDs{}).(trace.SpanContext); ok {
		return c.TraceID(), c.SpanID()
	}
	var id trace.TraceID
	for !id.IsValid() {
		binary.NativeEndian.PutUint64(id[:8], rand.Uint64())
		binary.NativeEndian.PutUint64(id[8:], rand.Uint64())
	}
	return id, g.NewSpanID(ctx, id)
}

// NewSpanID implements sdktrace.IDGenerator.
func (ids) NewSpanID(context.Context, trace.TraceID) trace.SpanID {
	var id trace.SpanID
	for !id.IsValid() {
		binary.NativeEndian.PutUint64(id[:], rand.Uint64())
	}
	return id
}
