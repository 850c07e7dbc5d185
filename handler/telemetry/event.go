package telemetry

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/fault"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/queue"
)

// contextOf is the trace of an event by its traceparent. own says that no request caused the event, so that the
// traceparent was made from its id: then the sampler decides as it does where a trace begins, by the id of the trace,
// which is the same in each process.
func (t *Traces) contextOf(traceparent, id string) (c trace.SpanContext, own bool) {
	c = trace.SpanContextFromContext(w3c.Extract(context.Background(), propagation.MapCarrier{queue.Traceparent: traceparent}))
	if own = c.IsValid() && traceparent == presence.TraceparentOf(id); own {
		begins := t.sampler.ShouldSample(sdktrace.SamplingParameters{ParentContext: context.Background(), TraceID: c.TraceID()})
		c = c.WithTraceFlags(c.TraceFlags().WithSampled(begins.Decision == sdktrace.RecordAndSample))
	}
	return c, own
}

func about(e presence.Event) trace.SpanStartEventOption {
	return trace.WithAttributes(semconv.CloudEventsEventID(e.ID), semconv.CloudEventsEventType(string(e.Type)))
}

// fail tells of an error no more than its kind: its text may have anything in it, such as the name of a user.
func fail(span trace.Span, err error) {
	if err == nil {
		return
	}
	status := "it failed; the log says why"
	if errors.Is(err, context.DeadlineExceeded) {
		status = "it took too long"
	}
	span.SetStatus(codes.Error, status)
	span.SetAttributes(semconv.ErrorTypeKey.String(kinds[fault.KindOf(err)]))
}

// kinds are the names of the kinds of errors in spans.
var kinds = map[fault.Kind]string{
	fault.Internal: "internal", fault.Invalid: "invalid", fault.NotFound: "not_found", fault.Conflict: "conflict", fault.Unavailable: "unavailable",
}

// appender writes to the event log.
type appender interface {
	Write(ctx context.Context, updates []eventlog.Update) error
}

// Detected returns the event log as the relay writes to it: each event that it takes has a span "detect <type>", from
// its deadline to its detection, by the clock of Redis; without a deadline it has no length. It is the first span of a
// trace that no request began.
func (t *Traces) Detected(next appender) appender {
	if t == nil {
		return next
	}
	return detected{t, next}
}

type detected struct {
	t    *Traces
	next appender
}

// Write writes updates.
func (d detected) Write(ctx context.Context, updates []eventlog.Update) error {
	err := d.next.Write(ctx, updates)
	if refused := (*eventlog.RefusedError)(nil); err == nil || errors.As(err, &refused) {
		for _, u := range updates {
			d.t.detect(ctx, u.Event)
		}
	}
	return err
}

func (t *Traces) detect(ctx context.Context, e presence.Event) {
	c, own := t.contextOf(e.Traceparent, e.ID)
	if !c.IsValid() {
		return
	}
	begin := e.Deadline
	if begin.IsZero() || begin.After(e.DetectedAt) {
		begin = e.DetectedAt
	}
	options := []trace.SpanStartOption{
		trace.WithTimestamp(begin), about(e), trace.WithAttributes(attribute.String("userconnectivity.reason", string(e.Reason))),
	}
	if own {
		ctx, options = withIDs(ctx, c), append(options, trace.WithNewRoot())
	} else {
		ctx = trace.ContextWithRemoteSpanContext(ctx, c)
	}
	_, span := t.tracer.Start(ctx, "detect "+string(e.Type), options...)
	span.End(trace.WithTimestamp(e.DetectedAt))
}

// sender puts messages on a queue.
type sender interface {
	Send(ctx context.Context, queue string, msgs []queue.Message) error
}

// Sender returns a sender that makes a span "send <queue>" of each message, in the trace of its event. Messages of no
// event are in the trace of who sends them.
func (t *Traces) Sender(next sender) sender {
	if t == nil {
		return next
	}
	return traced{t, next}
}

type traced struct {
	t    *Traces
	next sender
}

// refuser is the error of a sender about some messages. All others were sent.
type refuser interface{ Refused() map[string]string }

// Send sends messages.
func (s traced) Send(ctx context.Context, to string, msgs []queue.Message) error {
	spans := make([]trace.Span, 0, len(msgs))
	ids := make([]string, 0, len(msgs))
	for _, m := range msgs {
		id, _ := queue.ParseMessageID(m.ID)
		traceparent, _ := m.Properties[queue.Traceparent].(string)
		parent, _ := s.t.contextOf(traceparent, id)
		if !parent.IsValid() {
			if parent = trace.SpanContextFromContext(ctx); !parent.IsValid() {
				continue
			}
		}
		_, span := s.t.tracer.Start(trace.ContextWithRemoteSpanContext(ctx, parent), "send "+to, trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(
			semconv.MessagingSystemServiceBus, semconv.MessagingOperationTypeSend, semconv.MessagingOperationName("send"), semconv.MessagingDestinationName(to),
			semconv.MessagingMessageID(m.ID), semconv.MessagingBatchMessageCountKey.Int(len(msgs)),
		))
		spans, ids = append(spans, span), append(ids, m.ID)
	}
	err := s.next.Send(ctx, to, msgs)
	var refused refuser
	some := errors.As(err, &refused)
	for i, span := range spans {
		if !some {
			fail(span, err)
		} else if _, no := refused.Refused()[ids[i]]; no {
			fail(span, err)
		}
		span.End()
	}
	return err
}

// users is the durable record of each user's last state.
type users interface {
	Apply(ctx context.Context, e presence.Event) (bool, error)
}

// Processed returns the users record as the worker applies events to it: a span "process <queue>" of each event that
// the worker took from its queue, in the trace of the event and linked to that of the batch.
func (t *Traces) Processed(next users, from string) users {
	if t == nil {
		return next
	}
	return processed{t, next, from}
}

type processed struct {
	t    *Traces
	next users
	from string
}

// Apply applies an event.
func (p processed) Apply(ctx context.Context, e presence.Event) (bool, error) {
	c, _ := p.t.contextOf(e.Traceparent, e.ID)
	if !c.IsValid() {
		return p.next.Apply(ctx, e)
	}
	options := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindConsumer), about(e), trace.WithAttributes(
		semconv.MessagingSystemServiceBus, semconv.MessagingOperationTypeProcess, semconv.MessagingOperationName("process"),
		semconv.MessagingDestinationName(p.from), semconv.MessagingMessageID(e.ID),
	)}
	if batch := trace.SpanContextFromContext(ctx); batch.IsValid() {
		options = append(options, trace.WithLinks(trace.Link{SpanContext: batch}))
	}
	ctx, span := p.t.tracer.Start(trace.ContextWithRemoteSpanContext(ctx, c), "process "+p.from, options...)
	defer span.End()
	applied, err := p.next.Apply(ctx, e)
	span.SetAttributes(attribute.Bool("userconnectivity.applied", applied))
	fail(span, err)
	return applied, err
}

// store is the event log and the users records.
type store interface {
	appender
	users
	Event(ctx context.Context, id string) (eventlog.Record, error)
	UserEvents(ctx context.Context, user string, limit int, continuation string) (eventlog.Page, error)
	User(ctx context.Context, id string) (presence.User, bool, error)
}

// Store returns a store that makes a span of each event that is written to the log or applied to the users record, in
// the trace of the event. Reads have none.
func (t *Traces) Store(next store) store {
	if t == nil {
		return next
	}
	return tracedStore{next, t}
}

type tracedStore struct {
	store
	t *Traces
}

// Write writes updates.
func (s tracedStore) Write(ctx context.Context, updates []eventlog.Update) error {
	spans := make([]trace.Span, 0, len(updates))
	ids := make([]string, 0, len(updates))
	for _, u := range updates {
		c, _ := s.t.contextOf(u.Event.Traceparent, u.Event.ID)
		if !c.IsValid() || len(u.Steps) == 0 {
			continue
		}
		_, span := s.t.tracer.Start(trace.ContextWithRemoteSpanContext(ctx, c), "write events", trace.WithSpanKind(trace.SpanKindClient), about(u.Event), trace.WithAttributes(
			s.t.eventLog, semconv.DBOperationName("write"), semconv.DBCollectionNameKey.String("events"),
			attribute.String("userconnectivity.status", string(u.Steps[len(u.Steps)-1].Status)),
		))
		spans, ids = append(spans, span), append(ids, u.Event.ID)
	}
	err := s.store.Write(ctx, updates)
	var refused *eventlog.RefusedError
	some := errors.As(err, &refused)
	no := map[string]error{}
	if some {
		for _, r := range refused.Events {
			no[r.ID] = r.Err
		}
	}
	for i, span := range spans {
		if some {
			fail(span, no[ids[i]])
		} else {
			fail(span, err)
		}
		span.End()
	}
	return err
}

// Apply applies an event.
func (s tracedStore) Apply(ctx context.Context, e presence.Event) (bool, error) {
	ctx, span := s.t.tracer.Start(ctx, "apply users", trace.WithSpanKind(trace.SpanKindClient), about(e), trace.WithAttributes(
		s.t.eventLog, semconv.DBOperationName("apply"), semconv.DBCollectionNameKey.String("users"),
	))
	defer span.End()
	applied, err := s.store.Apply(ctx, e)
	fail(span, err)
	return applied, err
}
