package triggers

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/presence"
)

// eventReader is the event log.
type eventReader interface {
	Event(ctx context.Context, id string) (eventlog.Record, error)
	UserEvents(ctx context.Context, user string, limit int, continuation string) (eventlog.Page, error)
}

// replayer sends an event to its queue again; worker.Worker is one.
type replayer interface {
	Replay(ctx context.Context, id string) error
}

type stepView struct {
	Status eventlog.Status `json:"status"`
	At     string          `json:"at"`
	Detail string          `json:"detail,omitempty"`
}

type eventView struct {
	ID          string                  `json:"id"`
	Type        presence.EventType      `json:"type"`
	User        string                  `json:"user,omitempty"`
	Session     string                  `json:"session,omitempty"`
	Key         string                  `json:"key,omitempty"`
	Epoch       int64                   `json:"epoch"`
	Reason      presence.Reason         `json:"reason"`
	Deadline    *string                 `json:"deadline"`
	DetectedAt  string                  `json:"detectedAt"`
	Groups      []string                `json:"groups"`
	Sessions    []presence.EventSession `json:"sessions"`
	Meta        json.RawMessage         `json:"meta,omitempty"`
	Traceparent string                  `json:"traceparent"`
	Status      eventlog.Status         `json:"status"`
	History     []stepView              `json:"history"`
}

func viewEvent(r eventlog.Record) eventView {
	e := r.Event
	history := r.Chronological()
	v := eventView{
		ID: e.ID, Type: e.Type, User: e.User, Session: e.Session, Key: e.Key, Epoch: e.Epoch, Reason: e.Reason,
		Deadline: presence.FormatOptional(e.Deadline), DetectedAt: presence.FormatTime(e.DetectedAt),
		Groups: append([]string{}, e.Groups...), Sessions: append([]presence.EventSession{}, e.Sessions...), Meta: e.Meta,
		Traceparent: e.Traceparent, Status: r.Status(), History: make([]stepView, len(history)),
	}
	for i, s := range history {
		v.History[i] = stepView{Status: s.Status, At: presence.FormatTime(s.At), Detail: s.Detail}
	}
	return v
}

// userEvents is GET /api/users/{user}/events: the user's events, newest first, a page at a time. complete tells whether
// the log that is asked may have all of them; nil is that it may.
func userEvents(events eventReader, complete func() bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		id, err := pathID(r, "user")
		if err != nil {
			fail(w, r, err)
			return
		}
		limit, continuation, err := paging(r)
		if err != nil {
			fail(w, r, err)
			return
		}
		page, err := events.UserEvents(r.Context(), id, limit, continuation)
		if err != nil {
			fail(w, r, err)
			return
		}
		answer := struct {
			Events       []eventView `json:"events"`
			Continuation *string     `json:"continuation"`
			Complete     bool        `json:"complete"`
		}{Events: make([]eventView, len(page.Records)), Complete: complete == nil || complete()}
		for i, record := range page.Records {
			answer.Events[i] = viewEvent(record)
		}
		if page.Continuation != "" {
			answer.Continuation = &page.Continuation
		}
		reply(w, http.StatusOK, answer)
	}
}

// event is GET /api/events/{id}: one event with its history.
func event(events eventReader, complete func() bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		id, err := eventID(r)
		if err != nil {
			fail(w, r, err)
			return
		}
		record, err := events.Event(r.Context(), id)
		if errors.Is(err, eventlog.ErrNotFound) && complete != nil && !complete() {
			err = &presence.Error{Kind: presence.NotFound, Message: "the event log of this instance does not have this event, and it has not all: health says why"}
		}
		if err != nil {
			fail(w, r, err)
			return
		}
		reply(w, http.StatusOK, viewEvent(record))
	}
}

// replay is POST /api/events/{id}/replay: the event is sent again, under a MessageId of its own.
func replay(p replayer) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		id, err := eventID(r)
		if err != nil {
			fail(w, r, err)
			return
		}
		if err := p.Replay(r.Context(), id); err != nil {
			fail(w, r, err)
			return
		}
		reply(w, http.StatusAccepted, struct {
			ID string `json:"id"`
		}{id})
	}
}

// eventID reads an event id from the path. One of another form names no event.
func eventID(r *http.Request) (string, error) {
	id, err := pathID(r, "id")
	if err != nil {
		return "", err
	}
	if _, ok := presence.PartitionKeyOf(id); !ok {
		return "", eventlog.ErrNotFound
	}
	return id, nil
}
