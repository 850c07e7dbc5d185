package triggers

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// This file reads the bodies of requests. Whatever is wrong with one before its JSON is looked at is answered here.

// Limits of request bodies, in bytes (design, section 4).
const (
	maxSingleBody = 16 << 10
	maxBulkBody   = 4 << 20
)

const (
	// bodyTimeout bounds how long the body of a request takes to arrive.
	bodyTimeout = 10 * time.Second
	// firstRead is how much room a body gets before any of it has arrived, in bytes.
	firstRead = 2 << 10
	// jsonType is the media type of every body that is read.
	jsonType = "application/json"
)

// room is the memory that the bodies of a group of requests share, in bytes.
type room struct {
	size  int64
	taken atomic.Int64
}

// take takes n bytes for a request, which gives them back at its end, and reports whether there were so many left.
func (m *room) take(q *request, n int64) bool {
	if m == nil {
		return true
	}
	q.held += n
	return m.taken.Add(n) <= m.size
}

// arrived reads the body of each request, at most limit bytes, before the request takes a place: one that stalls holds
// none. The bodies share memory bytes, beside the first firstRead of each; what has not arrived yet takes none of them.
// A request for which there is no memory left gets 503 at once.
func arrived(limit, memory int64) func(http.Handler) http.Handler {
	m := &room{size: memory}
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ContentLength == 0 {
				next.ServeHTTP(w, r)
				return
			}
			q := requestOf(r)
			defer func() {
				if q.held > 0 {
					m.taken.Add(-q.held)
				}
			}()
			var err error
			if q.body, err = q.readBody(r, limit, m); err != nil {
				fail(w, r, err)
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

// bodyOf returns the body of a request, at most limit bytes: the one that arrived has read, else it is read now.
func bodyOf(r *http.Request, limit int64) ([]byte, error) {
	q := requestOf(r)
	if q.body != nil {
		return q.body, nil
	}
	return q.readBody(r, limit, nil)
}

// readBody reads the whole body, at most limit bytes, by the deadline that begun has set. It takes what it needs beyond firstRead from
// m, once the bytes before have arrived.
func (q *request) readBody(r *http.Request, limit int64, m *room) ([]byte, error) {
	most := limit + 1
	if r.ContentLength > limit {
		q.endsConnection()
		return nil, tooLarge(limit)
	} else if r.ContentLength >= 0 {
		most = r.ContentLength
	}
	body := make([]byte, 0, min(most, firstRead))
	for int64(len(body)) < most {
		if len(body) == cap(body) {
			more := min(int64(cap(body)), most-int64(cap(body)))
			if !m.take(q, more) {
				return nil, busy(fmt.Sprintf("%d MiB of bodies of requests", m.size>>20))
			}
			body = append(make([]byte, 0, int64(cap(body))+more), body...)
		}
		n, err := r.Body.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case err == nil:
		case errors.Is(err, io.EOF) && int64(len(body)) >= r.ContentLength:
			most = int64(len(body))
		case errors.Is(err, os.ErrDeadlineExceeded):
			q.endsConnection()
			return nil, &httpError{status: http.StatusRequestTimeout, detail: fmt.Sprintf("the body did not arrive within %v: send the request again", bodyTimeout), err: err}
		default:
			return nil, &httpError{status: http.StatusBadRequest, detail: "the body could not be read to its end", err: err}
		}
	}
	if most > limit {
		q.endsConnection()
		return nil, tooLarge(limit)
	}
	_ = q.conn.SetReadDeadline(time.Time{})
	return body, nil
}

func tooLarge(limit int64) error {
	return &httpError{status: http.StatusRequestEntityTooLarge, detail: fmt.Sprintf("the body must have at most %d bytes", limit)}
}

// readJSON decodes the body of a request into v: one JSON value of a known shape, at most limit bytes.
// Duplicate names, unknown names and anything after the value are refused.
func readJSON(w http.ResponseWriter, r *http.Request, limit int64, v any) error {
	if err := checkContent(w, r); err != nil {
		return err
	}
	body, err := bodyOf(r, limit)
	if err != nil {
		return err
	}
	return unmarshal(body, v)
}

// checkContent refuses a body that is not declared as plain JSON. One without a type is refused, too: it is what a page
// of another site may send without being asked for its right to.
func checkContent(w http.ResponseWriter, r *http.Request) error {
	for _, coding := range r.Header["Content-Encoding"] {
		if !strings.EqualFold(coding, "identity") {
			w.Header().Set("Accept-Encoding", "identity")
			return &httpError{status: http.StatusUnsupportedMediaType, detail: fmt.Sprintf("the body must be sent as it is, without Content-Encoding, not %.100q", coding)}
		}
	}
	types := r.Header["Content-Type"]
	if len(types) == 1 && types[0] == jsonType {
		return nil
	}
	if len(types) != 1 {
		return &httpError{status: http.StatusUnsupportedMediaType, detail: "the header Content-Type must be there once and be application/json"}
	}
	media, parameters, err := mime.ParseMediaType(types[0])
	if err != nil || media != jsonType {
		return &httpError{status: http.StatusUnsupportedMediaType, detail: fmt.Sprintf("the body must be application/json, not %.100q", types[0])}
	}
	if charset := cmp.Or(strings.ToLower(parameters["charset"]), "utf-8"); charset != "utf-8" && charset != "us-ascii" {
		return &httpError{status: http.StatusUnsupportedMediaType, detail: fmt.Sprintf("the body must be application/json in UTF-8, not %.100q", charset)}
	}
	return nil
}

// byteOrderMark may stand in front of a JSON text. It is not part of it; see RFC 8259, section 8.1.
const byteOrderMark = "\ufeff"

// withoutMark returns a JSON text without the byte order mark in front of it.
func withoutMark(text []byte) jsontext.Value {
	if len(text) > 2 && text[0] == byteOrderMark[0] && string(text[:3]) == byteOrderMark {
		return text[3:]
	}
	return text
}
