package main

import (
	"context"
	"fmt"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/fault"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/queue"
)

// noSender is the queue of an app without one, or with wrong settings of it: every event waits in the outbox, and no
// message is lost, since to be refused is a passing fault.
type noSender struct{ why error }

var errNoQueue = &fault.Error{Kind: fault.Unavailable, Message: "no queue is set: set ServiceBusConnection, or run under the local host, which sets LOCAL_QUEUE_URL"}

// unusableQueue is the fault of a queue whose settings are wrong.
func unusableQueue(why error) error {
	return &fault.Error{Kind: fault.Unavailable, Message: "the queue is not used, since settings of it are wrong; GET /api/health says which", Err: why}
}

// Send refuses the messages.
func (s noSender) Send(context.Context, string, []queue.Message) error { return s.why }

// Ping says why there is no queue.
func (s noSender) Ping(context.Context, string) error { return s.why }

// noRecords is an event log whose settings are wrong. It refuses every call with the reason, as a passing fault: what
// is to be logged is kept where it is until another process, with other settings, logs it.
type noRecords struct{ why error }

// unusableRecords is the fault of an event log whose settings are wrong.
func unusableRecords(why error) error {
	return fmt.Errorf("%w: settings of it are wrong: %w", eventlog.ErrUnavailable, why)
}

// Write refuses the updates.
func (r noRecords) Write(context.Context, []eventlog.Update) error { return r.why }

// Event finds nothing out.
func (r noRecords) Event(context.Context, string) (eventlog.Record, error) {
	return eventlog.Record{}, r.why
}

// UserEvents finds nothing out.
func (r noRecords) UserEvents(context.Context, string, int, string) (eventlog.Page, error) {
	return eventlog.Page{}, r.why
}

// Apply refuses the event.
func (r noRecords) Apply(context.Context, presence.Event) (bool, error) { return false, r.why }

// User finds nothing out.
func (r noRecords) User(context.Context, string) (presence.User, bool, error) {
	return presence.User{}, false, r.why
}

// Ping says why there is no event log.
func (r noRecords) Ping(context.Context) error { return r.why }

// Close has nothing to close.
func (noRecords) Close() error { return nil }
