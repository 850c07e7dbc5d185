package triggers

import (
	"context"
	_ "embed"
	"net/http"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/health"
)

// healthChecker tells the state of every part by name.
type healthChecker interface {
	Health(ctx context.Context) map[string]health.Part
}

// live is GET /api/live: 200 while the process can answer and its own loops turn. The platform replaces an instance
// for which that is not so. It asks nothing of any other part: a probe that failed with Redis would replace every
// instance in an outage of Redis.
func live(l listener) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if err := l.Live(); err != nil {
			// No line in the log: its reader may be what the loop waits for.
			p, _ := problemOf(&fault.Error{Kind: fault.Unavailable, Message: err.Error()})
			w.Header().Set("Retry-After", "1")
			write(w, p.Status, "application/problem+json", p)
			return
		}
		reply(w, http.StatusOK, struct {
			Status string `json:"status"`
		}{"ok"})
	}
}

// healthOf is GET /api/health: the state of every part. The app is as well as its worst part; 503 while one is down.
func healthOf(h healthChecker, version string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		parts := h.Health(r.Context())
		worst, code := health.Worst(parts), http.StatusOK
		if worst == health.Down {
			code = http.StatusServiceUnavailable
		}
		reply(w, code, struct {
			Status  health.Status          `json:"status"`
			Version string                 `json:"version"`
			Parts   map[string]health.Part `json:"parts"`
		}{worst, version, parts})
	}
}

// The contract is written in openapi.yaml; openapi.json is made from it by the tests' flag -update.
//
//go:embed openapi.json
var openAPIJSON []byte

// openAPIDocument is GET /api/openapi.json: the contract of this API.
func openAPIDocument(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", jsonType)
	_, _ = w.Write(openAPIJSON) // the caller has gone: nobody is left to tell
}
