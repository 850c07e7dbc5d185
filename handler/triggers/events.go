package triggers

import (
	"context"
	"errors"
	"net/http"
	"time"

	jsonv2 "github.com/go-json-experiment/json"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/fault"
	"userconnectivity/handler/jsonform"
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
	At     time.Time       `json:"at"`
	Detail string          `json:"detail,omitempty"`
}

// eventView is an event as it is answered.
type eventView struct {
	presence.Event
	Status  eventlog.Status `json:"status"`
	History []stepView      `json:"history"`
}

// MarshalJSON writes the times as all answers have them.
func (v eventView) MarshalJSON() ([]byte, error) {
	type members eventView // without this method
	return jsonv2.Marshal(members(v), jsonform.Sent)
}

func viewEvent(r eventlog.Record) eventView {
	v := eventView{Event: r.Event, Status: r.Status()}
	v.Body = v.WithLists()
	v.LastSeen, v.Life, v.Generation = time.Time{}, "", 0 // what only workers are told
	for _, s := range r.Chronological() {
		v.History = append(v.History, stepView{Status: s.Status, At: s.At, Detail: s.Detail})
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
			err = &fault.Error{Kind: fault.NotFound, Message: "the event log of this instance does not have this event, and it has not all: health says why"}
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
