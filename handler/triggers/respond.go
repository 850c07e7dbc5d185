package triggers

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/google/uuid"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/fault"
)

// This file has every HTTP status of the handler: errors become problem details (RFC 9457) here and nowhere else.

// httpError is an error that only HTTP knows, such as a body of a wrong type.
type httpError struct {
	status int
	detail string
	err    error
}

func (e *httpError) Error() string {
	if e.err != nil {
		return e.detail + ": " + e.err.Error()
	}
	return e.detail
}

func (e *httpError) Unwrap() error { return e.err }

// problem is the body of an error, application/problem+json.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	// Instance is the invocation's id, under which the log tells more.
	Instance string             `json:"instance,omitempty"`
	Errors   []fault.FieldError `json:"errors,omitempty"`
}

// problemType is the media type of a problem.
const problemType = "application/problem+json"

// defaultRetryAfter is asked for when an error does not say when to try again.
const defaultRetryAfter = time.Second

// problemOf maps an error to what the caller is told. retryAfter is 0 when trying again does not help.
func problemOf(err error) (p problem, retryAfter time.Duration) {
	p = problem{Type: "about:blank", Status: http.StatusInternalServerError, Detail: "the request failed here; the log says why, under the invocation id in instance where there is one"}
	var known *fault.Error
	var web *httpError
	switch {
	case errors.As(err, &web):
		p.Status, p.Detail = web.status, web.detail
	case errors.As(err, &known):
		p.Detail, p.Errors = known.Message, known.Fields
		switch known.Kind {
		case fault.Invalid:
			p.Status = http.StatusBadRequest
		case fault.NotFound:
			p.Status = http.StatusNotFound
		case fault.Conflict:
			p.Status = http.StatusConflict
		case fault.Unavailable:
			p.Status = http.StatusServiceUnavailable
			retryAfter = max(known.RetryAfter, defaultRetryAfter)
		}
	case errors.Is(err, eventlog.ErrNotFound):
		p.Status, p.Detail = http.StatusNotFound, "there is no event with this id in the event log"
	case errors.Is(err, eventlog.ErrContinuation):
		p.Status, p.Detail = http.StatusBadRequest, "the input is not valid"
		p.Errors = []fault.FieldError{{Pointer: "query:continuation", Detail: "must be one that an earlier answer for the same user had"}}
	case errors.Is(err, context.DeadlineExceeded):
		p.Status, p.Detail, retryAfter = http.StatusServiceUnavailable, "the request took too long: try again", defaultRetryAfter
	case errors.Is(err, eventlog.ErrUnavailable):
		p.Status, p.Detail, retryAfter = http.StatusServiceUnavailable, "the event log cannot be reached: try again", defaultRetryAfter
	}
	p.Title = http.StatusText(p.Status)
	return p, retryAfter
}

// fail answers with the problem of err and logs what only we can mend.
func fail(w http.ResponseWriter, r *http.Request, err error) {
	p, retryAfter := problemOf(err)
	p.Instance = instanceOf(r)
	if retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(max(retryAfter.Round(time.Second), time.Second)/time.Second)))
	}
	if p.Status >= http.StatusInternalServerError {
		level := slog.LevelError
		if p.Status == http.StatusServiceUnavailable {
			level = slog.LevelWarn
		}
		logger(r.Context()).Log(r.Context(), level, "request failed", "method", r.Method, "route", routeOf(r), "status", p.Status, "error", err)
	}
	write(w, p.Status, problemType, p)
}

// instanceOf is the id of an invocation as an answer repeats it: "" for what is none of the host's.
func instanceOf(r *http.Request) string {
	if id := requestOf(r).id; len(id) == 36 && uuid.Validate(id) == nil {
		return id
	}
	return ""
}

// reply answers with a JSON value.
func reply(w http.ResponseWriter, status int, v any) { write(w, status, jsonType, v) }

// serverCounts is up to which length of a body net/http itself finds the Content-Length; a longer one would be chunked.
const serverCounts = 2 << 10

func write(w http.ResponseWriter, status int, contentType string, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		// Only a programming error gets here: every type that is answered can be written.
		status, contentType = http.StatusInternalServerError, problemType
		body = []byte(`{"type":"about:blank","title":"Internal Server Error","status":500,"detail":"the answer cannot be written"}`)
	}
	w.Header().Set("Content-Type", contentType)
	if len(body) > serverCounts {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	w.WriteHeader(status)
	_, _ = w.Write(body) // the caller has gone: nobody is left to tell
}

// busy is the error of a request for which there is no room beside the others.
func busy(with string) error {
	return &fault.Error{Kind: fault.Unavailable, Message: "the app is busy with " + with + " of this kind: try again"}
}
