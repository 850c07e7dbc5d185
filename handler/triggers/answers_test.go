package triggers_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/health"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/triggers"
)

// TestEveryDocumentedAnswer gets each answer that openapi.yaml lists for each operation out of the handler, so
// that the document promises nothing that does not happen. The exceptions are the host's own 401, and the 408 that
// TestStalledUploads waits for.
func TestEveryDocumentedAnswer(t *testing.T) {
	t.Parallel()
	b := setup(t)
	broken := setup(t, withFailing(func(context.Context) error { return errors.New("broken") }))
	away := setup(t, withFailing(func(context.Context) error {
		return &fault.Error{Kind: fault.Unavailable, Message: "away", RetryAfter: time.Second}
	}))
	refusing := setup(t, withFailing(func(context.Context) error { return &fault.Error{Kind: fault.Conflict, Message: "no route"} }))
	deferred := setup(t, func(h *triggers.Handlers) { h.Tracker = deferring{} })
	down := setup(t, func(h *triggers.Handlers) { h.Health = parts{"redis": {Status: health.Down}} })
	panicking := setup(t, withFailing(func(context.Context) error { panic("broken") }))
	busy := setupBusy(t)

	b.beat(object{"user": "ann"})
	b.relay()
	id := b.events("/api/users/ann/events").Events[0].ID
	var full []object
	for i := range presence.MaxSessions {
		full = append(full, object{"user": "full", "session": fmt.Sprint("s", i)})
	}
	b.post("/api/heartbeats", object{"heartbeats": full}).is(200)

	good := calls()
	good["Event"] = call{method: "GET", path: "/api/events/" + id}
	good["Replay"] = call{method: "POST", path: "/api/events/" + id + "/replay"}
	good["ExpirationListener"] = call{method: "GET", path: "/api/listener"}
	good["Live"] = call{method: "GET", path: "/api/live"}
	good["Health"] = call{method: "GET", path: "/api/health"}
	good["Metrics"] = call{method: "GET", path: "/api/metrics"}
	good["OpenApi"] = call{method: "GET", path: "/api/openapi.json"}
	with := func(name string, change func(*call)) call {
		c := good[name]
		c.loose = true
		change(&c)
		return c
	}
	hung := setup(t, func(h *triggers.Handlers) {
		h.Listener = listener{hung: errors.New("hung"), silent: errors.New("hung")}
	})
	panickingListener := setup(t, func(h *triggers.Handlers) { h.Listener = failing{func(context.Context) error { panic("broken") }} })
	type try struct {
		bench *bench
		call  call
	}
	tries := map[string]try{
		"Heartbeat 202":          {deferred, good["Heartbeat"]},
		"Leave 202":              {deferred, good["Leave"]},
		"EndSession 202":         {deferred, good["EndSession"]},
		"Live 500":               {panickingListener, good["Live"]},
		"Live 503":               {hung, good["Live"]},
		"ExpirationListener 500": {panickingListener, good["ExpirationListener"]},
		"ExpirationListener 503": {hung, good["ExpirationListener"]},
		"Metrics 500":            {panicking, good["Metrics"]},
		"Metrics 503":            {busy, good["Metrics"]},
		"Heartbeat 409":          {b, call{method: "POST", path: "/api/heartbeat", body: object{"user": "full", "session": "more"}}},
		"Leaves 200":             {b, call{method: "POST", path: "/api/leaves", body: object{"leaves": []object{{"user": ""}}}, loose: true}},
		"Health 500":             {panicking, good["Health"]},
		"Health 503":             {down, good["Health"]},
		"Event 404":              {b, call{method: "GET", path: "/api/events/" + presence.EventID("x", "x", presence.UserOnline, 1)}},
		"Replay 404":             {b, call{method: "POST", path: "/api/events/" + presence.EventID("x", "x", presence.UserOnline, 1) + "/replay"}},
		"Replay 409":             {refusing, good["Replay"]},
		"OpenApi 503":            {busy, good["OpenApi"]},
	}
	success := map[string]int{"Leave": 204, "Leaves": 204, "EndSession": 204, "Replay": 202}
	for name, c := range good {
		status := success[name]
		if status == 0 {
			status = 200
		}
		tries[fmt.Sprint(name, " ", status)] = try{b, c}
		if name == "ExpirationListener" || name == "Live" || name == "Health" || name == "Metrics" || name == "OpenApi" {
			continue
		}
		tries[name+" 500"], tries[name+" 503"] = try{broken, c}, try{away, c}
		if c.body == nil {
			tries[name+" 400"] = try{b, with(name, func(c *call) { c.path = strings.NewReplacer("ann", "a%20b", id, "a%20b").Replace(c.path) })}
			continue
		}
		tries[name+" 400"] = try{b, with(name, func(c *call) { c.body = "{" })}
		tries[name+" 413"] = try{b, with(name, func(c *call) { c.body = strings.Repeat(" ", 4<<20+1) })}
		tries[name+" 415"] = try{b, with(name, func(c *call) { c.header = http.Header{"Content-Type": {"text/plain"}} })}
	}
	// Making the document fails only when the file is no YAML, which TestPublishedContract would tell.
	documented := map[string]bool{}
	for _, item := range contractOf(t).doc.Paths.Map() {
		for _, op := range item.Operations() {
			for status := range op.Responses.Map() {
				if status != "401" && status != "408" && op.OperationID+" "+status != "OpenApi 500" {
					documented[op.OperationID+" "+status] = true
				}
			}
		}
	}
	for name, tt := range tries {
		_, status, _ := strings.Cut(name, " ")
		if a := tt.bench.do(tt.call); fmt.Sprint(a.Status) != status {
			t.Errorf("%s: %s: %d %s", name, a.call, a.Status, a.Body)
		}
		delete(documented, name)
	}
	if len(documented) > 0 {
		t.Errorf("documented, but not tried: %q", slices.Sorted(maps.Keys(documented)))
	}
}

// deferring is a core that keeps every beat and leave for later.
type deferring struct{ failing }

func (deferring) Heartbeat(_ context.Context, b presence.Beat) (presence.Receipt, error) {
	return presence.Receipt{
		User: b.User, Session: b.Session, BeatAfter: 15 * time.Second,
		BeatOutcome: presence.BeatOutcome{Change: presence.ChangeDeferred, Status: presence.Offline},
	}, nil
}

func (deferring) Leave(context.Context, presence.Leave) (presence.LeaveOutcome, error) {
	return presence.LeaveDeferred, nil
}

// singlePlaces and scrapePlaces are how many single requests and scrapes may be under way at once.
const (
	singlePlaces = 4096
	scrapePlaces = 8
)

// setupBusy returns a bench whose places for single requests and scrapes are all taken until the test ends.
func setupBusy(t *testing.T) *bench {
	t.Helper()
	inside, finish := make(chan struct{}, singlePlaces+scrapePlaces), make(chan struct{})
	b := setup(t, withFailing(func(context.Context) error {
		inside <- struct{}{}
		<-finish
		return nil
	}))
	var wg sync.WaitGroup
	for range singlePlaces {
		wg.Go(func() { serve(b.routes, "GET", "/api/users/ann", "") })
	}
	for range scrapePlaces {
		wg.Go(func() { serve(b.routes, "GET", "/api/metrics", "") })
	}
	t.Cleanup(func() {
		close(finish)
		wg.Wait()
	})
	for range singlePlaces + scrapePlaces {
		<-inside
	}
	return b
}
