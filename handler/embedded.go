package main

import (
	"context"

	"userconnectivity/handler/sqlitestore"
)

// embeddedLog returns the event log that is a file of this instance, nil when there is another.
func (a *app) embeddedLog() *sqlitestore.Embedded {
	log, _ := a.records.(*sqlitestore.Embedded)
	return log
}

// logIsComplete reports whether the event log that this instance asks may have all events of the app.
func (a *app) logIsComplete() bool {
	log := a.embeddedLog()
	return log == nil || log.Complete()
}

// tellLog opens an embedded event log once, and says at the start what is wrong with it.
func (a *app) tellLog(ctx context.Context) {
	log := a.embeddedLog()
	if log == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	if err := log.Ping(ctx); err != nil && ctx.Err() == nil {
		a.log.WarnContext(ctx, "the event log cannot be opened", "error", err)
	}
	for _, warning := range log.Warnings() {
		a.log.WarnContext(ctx, "the event log is not as it should be", "warning", warning)
	}
}
