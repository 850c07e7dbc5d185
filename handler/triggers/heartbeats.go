package triggers

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/presence"
)

// rejection is one item of a bulk call that was not applied. Retry says that it may be sent again as it is.
type rejection struct {
	Index  int    `json:"index"`
	Detail string `json:"detail"`
	Retry  bool   `json:"retry,omitempty"`
}

// bulkBody answers POST /api/heartbeats.
type bulkBody struct {
	Accepted         int         `json:"accepted"`
	Deferred         int         `json:"deferred"`
	Stale            int         `json:"stale"`
	Rejected         []rejection `json:"rejected"`
	BeatAfterSeconds int64       `json:"beatAfterSeconds"`
}

// heartbeats is POST /api/heartbeats: up to presence.MaxBatch beats, each judged by itself.
func heartbeats(b beater) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		received := time.Now()
		var body struct {
			Heartbeats []jsontext.Value `json:"heartbeats"`
		}
		if err := readBulk(w, r, &body, "/heartbeats", func() []jsontext.Value { return body.Heartbeats }); err != nil {
			fail(w, r, err)
			return
		}
		trace := traceparent(r)
		beats, at, rejected := decodeItems(body.Heartbeats, func(b beatBody) presence.Beat { return b.beat(received, trace) })
		receipt, err := b.Heartbeats(r.Context(), beats)
		if err != nil {
			fail(w, r, err)
			return
		}
		reply(w, http.StatusOK, bulkBody{
			Accepted: receipt.Accepted, Deferred: receipt.Deferred, Stale: receipt.Stale,
			Rejected: append(rejected, rejections(receipt.Rejected, at)...), BeatAfterSeconds: int64(receipt.BeatAfter / time.Second),
		})
	}
}

// readBulk decodes the body of a bulk call; items returns the array at pointer once it is decoded.
func readBulk(w http.ResponseWriter, r *http.Request, body any, pointer string, items func() []jsontext.Value) error {
	if err := readJSON(w, r, maxBulkBody, body); err != nil {
		return err
	}
	return checkCount(pointer, len(items()), items() != nil)
}

// checkCount refuses an array that is missing or too long.
func checkCount(pointer string, n int, present bool) error {
	switch {
	case !present:
		return fault.Refuse([]fault.FieldError{{Pointer: pointer, Detail: fmt.Sprintf("must be an array of at most %d items", presence.MaxBatch)}})
	case n > presence.MaxBatch:
		return fault.Refuse([]fault.FieldError{{Pointer: pointer, Detail: fmt.Sprintf("must have at most %d items, has %d", presence.MaxBatch, n)}})
	}
	return nil
}

// decodeItems decodes each item of a bulk call by itself. at[i] is the position of good[i] among the items.
func decodeItems[Body, Item any](items []jsontext.Value, convert func(Body) Item) (good []Item, at []int, rejected []rejection) {
	good, at, rejected = make([]Item, 0, len(items)), make([]int, 0, len(items)), []rejection{}
	for i, item := range items {
		var b Body
		if err := unmarshal(item, &b); err != nil {
			rejected = append(rejected, rejection{Index: i, Detail: detailOf(err)})
			continue
		}
		good, at = append(good, convert(b)), append(at, i)
	}
	return good, at, rejected
}

// rejections translates positions among the decoded items back to positions in the request.
func rejections(from []presence.Rejection, at []int) []rejection {
	out := make([]rejection, len(from))
	for i, r := range from {
		out[i] = rejection{Index: at[r.Index], Detail: detailOf(r.Err), Retry: fault.Passing(r.Err)}
	}
	return out
}

// detailOf says in one line what is wrong with an item.
func detailOf(err error) string {
	p, _ := problemOf(err)
	detail := p.Detail
	for _, f := range p.Errors {
		detail += "; " + strings.TrimSpace(f.Pointer+" "+f.Detail)
	}
	return detail
}
