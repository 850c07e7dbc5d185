package sqlitestore

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/presence"
)

// Embedded is the event log of an app without Cosmos DB. Where the file can never be written, as in a package that is
// mounted read-only, it does without: events are counted as unlogged instead, so that they are sent and processed all the
// same. A fault that may pass, as a full disk, is an error as in Store: nothing is skipped then.
type Embedded struct {
	*Store
	perInstance bool
	unlogged    atomic.Int64
}

// NewEmbedded returns the event log in a store. perInstance tells that other instances of the app have files of their
// own.
func NewEmbedded(s *Store, perInstance bool) *Embedded {
	return &Embedded{Store: s, perInstance: perInstance}
}

// Write writes as Store.Write does, or counts the events as unlogged where the file can never be written.
func (e *Embedded) Write(ctx context.Context, updates []eventlog.Update) error {
	err := e.Store.Write(ctx, updates)
	if errors.Is(err, eventlog.ErrUnwritable) {
		e.unlogged.Add(int64(len(updates)))
		return nil
	}
	return err
}

// Apply applies as Store.Apply does. Where the file can never be written nothing is applied, without an error.
func (e *Embedded) Apply(ctx context.Context, event presence.Event) (bool, error) {
	applied, err := e.Store.Apply(ctx, event)
	if errors.Is(err, eventlog.ErrUnwritable) {
		return false, nil
	}
	return applied, err
}

// Event returns one event with its history, or eventlog.ErrNotFound, also where there is no log.
func (e *Embedded) Event(ctx context.Context, id string) (eventlog.Record, error) {
	r, err := e.Store.Event(ctx, id)
	if errors.Is(err, eventlog.ErrUnwritable) {
		err = fmt.Errorf("read event %.40q: %w", id, eventlog.ErrNotFound)
	}
	return r, err
}

// UserEvents returns a page of a user's events, an empty one where there is no log.
func (e *Embedded) UserEvents(ctx context.Context, user string, limit int, continuation string) (eventlog.Page, error) {
	page, err := e.Store.UserEvents(ctx, user, limit, continuation)
	if errors.Is(err, eventlog.ErrUnwritable) {
		err = nil
	}
	return page, err
}

// User returns the last applied state of a user, and false for one of whom nothing is known, as of all where there is no
// log.
func (e *Embedded) User(ctx context.Context, id string) (presence.User, bool, error) {
	u, known, err := e.Store.User(ctx, id)
	if errors.Is(err, eventlog.ErrUnwritable) {
		err = nil
	}
	return u, known, err
}

// Complete reports whether the log may have all events of the app.
func (e *Embedded) Complete() bool { return !e.perInstance && e.Unlogged() == 0 }

// Unlogged counts the updates of events that could not be logged since the process began.
func (e *Embedded) Unlogged() int64 { return e.unlogged.Load() }

// Warnings says what is wrong with this log, with the cure: it has not all events, is not where it was meant to be, or
// belongs to one of several instances.
func (e *Embedded) Warnings() []string {
	var warnings []string
	if n := e.Unlogged(); n > 0 {
		warnings = append(warnings, fmt.Sprintf("%d updates of events were not logged since this process began, since the event log cannot be written: "+
			"the events were sent, but GET /api/events does not know them, and no users record is kept. %s", n, cure))
	}
	if path, usual := e.Path(); path != usual {
		warnings = append(warnings, fmt.Sprintf("the event log is in %s, since the usual place %s cannot be written: it is lost with this instance. %s", path, usual, cure))
	}
	if e.perInstance {
		warnings = append(warnings, "the event log is a file of this instance alone, and other instances have their own: GET /api/users/{user}/events and "+
			"GET /api/events/{id} know a part of the events. To have one log set COSMOS_ENDPOINT=https://name.documents.azure.com:443/ (docs/deploy.md); "+
			"with one instance only set MAX_INSTANCES=1")
	}
	return warnings
}

// cure is what to do about a log that cannot be written.
const cure = "Set DATA_DIR to a folder that this process may write, or COSMOS_ENDPOINT"
