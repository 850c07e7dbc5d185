package triggers

import (
	"context"
	"net/http"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"userconnectivity/handler/presence"
)

// beater applies heartbeats; presence.Tracker is one.
type beater interface {
	Heartbeat(ctx context.Context, b presence.Beat) (presence.Receipt, error)
	Heartbeats(ctx context.Context, beats []presence.Beat) (presence.BulkReceipt, error)
}

// beatBody is a heartbeat as clients send it, over HTTP and in queue messages.
type beatBody struct {
	User         string         `json:"user"`
	Session      *string        `json:"session"`
	TTLSeconds   *integer       `json:"ttlSeconds"`
	GraceSeconds integer        `json:"graceSeconds"`
	Groups       []string       `json:"groups"`
	Meta         jsontext.Value `json:"meta"`
	Seq          *integer       `json:"seq"`
}

// beat turns the body into a beat that came in at the given time.
func (b beatBody) beat(at time.Time, trace string) presence.Beat {
	beat := presence.Beat{
		User: b.User, Session: optionalSession(b.Session), Grace: seconds(b.GraceSeconds),
		Groups: b.Groups, Seq: b.Seq.optional(), At: at, Traceparent: trace,
	}
	if b.TTLSeconds != nil {
		ttl := seconds(*b.TTLSeconds)
		beat.TTL = &ttl
	}
	if b.Meta != nil && b.Meta.Kind() != 'n' { // null keeps the old value, as an omitted one does
		beat.Meta = []byte(b.Meta)
	}
	return beat
}

// queuedBeat is a beat that came over a queue.
func (b beatBody) queuedBeat(enqueued time.Time, trace string) presence.Beat {
	beat := b.beat(time.Now(), trace)
	beat.Enqueued = enqueued
	return beat
}

// receiptBody answers a heartbeat.
type receiptBody struct {
	User             string          `json:"user"`
	Session          string          `json:"session"`
	Status           presence.Status `json:"status"`
	Change           presence.Change `json:"change"`
	Epoch            *int64          `json:"epoch"`
	ExpiresAt        *string         `json:"expiresAt"`
	BeatAfterSeconds int64           `json:"beatAfterSeconds"`
	// Seq is answered to a stale beat: the last one of the session.
	Seq *int64 `json:"seq,omitempty"`
}

// heartbeat is POST /api/heartbeat: one beat of one session.
func heartbeat(b beater, limit *sharedTimeout) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		received := time.Now()
		var body beatBody
		if err := readJSON(w, r, maxSingleBody, &body); err != nil {
			fail(w, r, err)
			return
		}
		receipt, err := b.Heartbeat(limit.of(r.Context(), received), body.beat(received, traceparent(r)))
		if err != nil {
			fail(w, r, err)
			return
		}
		answer := receiptBody{
			User: receipt.User, Session: receipt.Session, Status: receipt.Status, Change: receipt.Change,
			ExpiresAt: presence.FormatOptional(receipt.ExpiresAt), BeatAfterSeconds: int64(receipt.BeatAfter / time.Second),
		}
		if receipt.Epoch > 0 {
			answer.Epoch = &receipt.Epoch
		}
		if receipt.Change == presence.ChangeStale {
			answer.Seq = receipt.Seq
		}
		status := http.StatusOK
		if receipt.Change == presence.ChangeDeferred {
			status = http.StatusAccepted
		}
		reply(w, status, answer)
	}
}
