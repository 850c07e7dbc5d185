// Package triggers is the inbound edge: it turns what the Functions host sends into calls of the core, and
// the answers into what the host expects. HTTP arrives proxied under /api, everything else as an envelope
// under /<FunctionName>.
package triggers

import (
	"cmp"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
)

// Handlers are what the functions call.
type Handlers struct {
	Tracker interface {
		beater
		leaver
		userReader
	}
	Events   eventReader
	Replayer replayer
	Worker   eventWorker
	Beats    HeartbeatQueue
	Listener supervisor
	Health   healthChecker
	Metrics  meter
	// Observer is told of every answered request; nil is nobody.
	Observer observer
	Version  string
	Log      *slog.Logger
}

const (
	// requestTimeout bounds an HTTP request.
	requestTimeout = 10 * time.Second
	// timeoutTick is by how much that of a heartbeat may be shorter.
	timeoutTick = 100 * time.Millisecond
	// batchTimeout bounds a batch of queue messages: half of the queue's lock of 5 minutes (design D14).
	batchTimeout = 150 * time.Second
	// singlePlaces and bulkPlaces bound the requests under way at once: with 16 KiB and 4 MiB bodies, 64 and 128 MiB.
	singlePlaces = 4096
	bulkPlaces   = 32
	// scrapePlaces are of their own: the numbers are wanted most when all other places are taken.
	scrapePlaces = 8
)

// Routes returns the router: one line for each function, in the order of the HTTP API.
func Routes(h Handlers) *chi.Mux {
	r := chi.NewRouter()
	r.Use(withLogger(h.Log), observed(h.Observer), recovered)
	r.NotFound(notFound)
	r.MethodNotAllowed(func(w http.ResponseWriter, req *http.Request) { methodNotAllowed(r, w, req) })
	r.Get("/", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }) // the host's probe
	r.Get("/api/live", live)                                                                         // Live

	single := atMost(singlePlaces)
	r.Group(func(r chi.Router) {
		r.Use(single)
		r.Post("/api/heartbeat", heartbeat(h.Tracker, &sharedTimeout{timeout: requestTimeout, tick: timeoutTick})) // Heartbeat
	})
	r.Group(func(r chi.Router) {
		r.Use(single, within(requestTimeout))
		r.Post("/api/leave", leave(h.Tracker))                                  // Leave
		r.Delete("/api/users/{user}/sessions/{session}", endSession(h.Tracker)) // EndSession
		r.Get("/api/users/{user}", user(h.Tracker))                             // User
		r.Get("/api/users/{user}/events", userEvents(h.Events))                 // UserEvents
		r.Get("/api/events/{id}", event(h.Events))                              // Event
		r.Post("/api/events/{id}/replay", replay(h.Replayer))                   // Replay
		r.Get("/api/health", healthOf(h.Health, h.Version))                     // Health
		r.Get("/api/openapi.json", openAPIDocument)                             // OpenApi
	})
	r.Group(func(r chi.Router) {
		r.Use(atMost(bulkPlaces), within(requestTimeout))
		r.Post("/api/heartbeats", heartbeats(h.Tracker))  // Heartbeats
		r.Post("/api/leaves", leaves(h.Tracker))          // Leaves
		r.Post("/api/users/query", usersQuery(h.Tracker)) // UsersQuery
	})
	r.With(atMost(scrapePlaces), within(requestTimeout)).Get("/api/metrics", metrics(h.Metrics)) // Metrics
	r.Group(func(r chi.Router) {
		r.Use(within(batchTimeout))
		r.Post("/HeartbeatMessages", h.Beats.serve)
		r.Post("/ConnectivityWorker", connectivityWorker(h.Worker))
		r.Post("/DeadLetters", deadLetters(h.Worker))
		r.Post("/ExpirationListener", expirationListener(h.Listener))
	})
	return r
}

func notFound(w http.ResponseWriter, r *http.Request) {
	fail(w, r, &httpError{status: http.StatusNotFound, detail: fmt.Sprintf("there is no route %s; GET /api/openapi.json lists them", r.URL.Path)})
}

// methodNotAllowed answers 405 with the methods that the route takes. The router calls it for a method that HTTP
// does not know, too, whether there is a route or not.
func methodNotAllowed(routes chi.Routes, w http.ResponseWriter, r *http.Request) {
	path := cmp.Or(r.URL.RawPath, r.URL.Path)
	var takes []string
	for _, method := range []string{http.MethodDelete, http.MethodGet, http.MethodPost, http.MethodPut} {
		if routes.Match(chi.NewRouteContext(), method, path) {
			takes = append(takes, method)
		}
	}
	if len(takes) == 0 {
		notFound(w, r)
		return
	}
	list := strings.Join(takes, ", ")
	w.Header().Set("Allow", list)
	fail(w, r, &httpError{status: http.StatusMethodNotAllowed, detail: fmt.Sprintf("%s does not take %s; it takes %s", r.URL.Path, r.Method, list)})
}
