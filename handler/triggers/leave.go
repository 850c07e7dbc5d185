package triggers

import (
	"context"
	"net/http"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"userconnectivity/handler/presence"
)

// leaver ends sessions; presence.Tracker is one.
type leaver interface {
	Leave(ctx context.Context, l presence.Leave) error
	Leaves(ctx context.Context, leaves []presence.Leave) ([]presence.Rejection, error)
}

// leaveBody is a leave as clients send it.
type leaveBody struct {
	User    string  `json:"user"`
	Session *string `json:"session"`
	Seq     *int64  `json:"seq"`
}

func (b leaveBody) leave(at time.Time, trace string) presence.Leave {
	return presence.Leave{User: b.User, Session: optionalSession(b.Session), Seq: b.Seq, At: at, Traceparent: trace}
}

// leave is POST /api/leave: ends one session, after its grace.
func leave(l leaver) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		received := time.Now()
		var body leaveBody
		if err := readJSON(w, r, maxSingleBody, &body); err != nil {
			fail(w, r, err)
			return
		}
		if err := l.Leave(r.Context(), body.leave(received, traceparent(r))); err != nil {
			fail(w, r, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}
}

// endSession is DELETE /api/users/{user}/sessions/{session}: the same, by path.
func endSession(l leaver) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		received := time.Now()
		user, err := pathID(r, "user")
		if err != nil {
			fail(w, r, err)
			return
		}
		session, err := pathID(r, "session")
		if err != nil {
			fail(w, r, err)
			return
		}
		if err := l.Leave(r.Context(), presence.Leave{User: user, Session: session, At: received, Traceparent: traceparent(r)}); err != nil {
			fail(w, r, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}
}

// leaves is POST /api/leaves: up to presence.MaxBatch leaves. All of them good is 204; else 200 names the
// rejected ones, and the others are applied.
func leaves(l leaver) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		received := time.Now()
		var body struct {
			Leaves []jsontext.Value `json:"leaves"`
		}
		if err := readBulk(w, r, &body, "/leaves", func() []jsontext.Value { return body.Leaves }); err != nil {
			fail(w, r, err)
			return
		}
		trace := traceparent(r)
		good, at, rejected := decodeItems(body.Leaves, func(b leaveBody) presence.Leave { return b.leave(received, trace) })
		refused, err := l.Leaves(r.Context(), good)
		if err != nil {
			fail(w, r, err)
			return
		}
		if rejected = append(rejected, rejections(refused, at)...); len(rejected) == 0 {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		reply(w, http.StatusOK, struct {
			Rejected []rejection `json:"rejected"`
		}{rejected})
	}
}
