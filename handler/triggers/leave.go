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
	Leave(ctx context.Context, l presence.Leave) (presence.LeaveOutcome, error)
	Leaves(ctx context.Context, leaves []presence.Leave) (presence.LeavesReceipt, error)
}

// leaveBody is a leave as clients send it.
type leaveBody struct {
	User    string   `json:"user"`
	Session *string  `json:"session"`
	Seq     *integer `json:"seq"`
}

func (b leaveBody) leave(at time.Time, trace string) presence.Leave {
	return presence.Leave{User: b.User, Session: optionalSession(b.Session), Seq: b.Seq.optional(), At: at, Traceparent: trace}
}

// leaveReceiptBody answers a leave that is kept for later.
type leaveReceiptBody struct {
	User    string                `json:"user"`
	Session string                `json:"session"`
	Change  presence.LeaveOutcome `json:"change"`
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
		applyLeave(w, r, l, body.leave(received, traceparent(r)))
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
		applyLeave(w, r, l, presence.Leave{User: user, Session: session, At: received, Traceparent: traceparent(r)})
	}
}

// applyLeave answers 204, and 202 to a leave that is only kept in memory yet.
func applyLeave(w http.ResponseWriter, r *http.Request, l leaver, one presence.Leave) {
	outcome, err := l.Leave(r.Context(), one)
	switch {
	case err != nil:
		fail(w, r, err)
	case outcome == presence.LeaveDeferred:
		reply(w, http.StatusAccepted, leaveReceiptBody{one.User, one.Session, outcome})
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

// leaves is POST /api/leaves: up to presence.MaxBatch leaves. All of them applied is 204; else 200 counts the ones that
// are only kept in memory yet and names the rejected ones, and the others are applied.
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
		receipt, err := l.Leaves(r.Context(), good)
		if err != nil {
			fail(w, r, err)
			return
		}
		rejected = append(rejected, rejections(receipt.Rejected, at)...)
		if len(rejected) == 0 && receipt.Deferred == 0 {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		reply(w, http.StatusOK, struct {
			Deferred int         `json:"deferred"`
			Rejected []rejection `json:"rejected"`
		}{receipt.Deferred, rejected})
	}
}
