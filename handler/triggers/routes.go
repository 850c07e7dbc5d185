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
	Listener listener
	Health   healthChecker
	Metrics  meter
	// Observer is told of every answered request; nil is nobody.
	Observer observer
	// Traces makes a span of each request; nil makes none.
	Traces tracer
	// Complete reports whether the event log that this process asks may have all events; nil is that it may.
	Complete func() bool
	Version  string
	Log      *slog.Logger
	// BatchTime is how long a batch of queue messages may take; 0 is half of the queue's lock of 5 minutes.
	BatchTime time.Duration
}

const (
	// requestTimeout bounds an HTTP request.
	requestTimeout = 10 * time.Second
	// timeoutTick is by how much that of a heartbeat may be shorter.
	timeoutTick = 100 * time.Millisecond
	// batchTimeout bounds a batch of queue messages: half of the queue's lock of 5 minutes (design D14).
	batchTimeout = 150 * time.Second
	// singlePlaces and bulkPlaces bound the requests at work at once, those whose body has arrived.
	singlePlaces = 4096
	bulkPlaces   = 32
	// singleMemory and bulkMemory bound what bodies take, in bytes: those of all places, and others on their way in.
	singleMemory = 96 << 20
	bulkMemory   = 192 << 20
	// scrapePlaces are of their own: the numbers are wanted most when all other places are taken.
	scrapePlaces = 8
)

// Routes returns the router: one line for each function, in the order of the HTTP API.
func Routes(h Handlers) *chi.Mux {
	r := chi.NewRouter()
	var list routeList
	r.Use(begun(h.Log, h.Observer), traced(h.Traces), recovered, anyCase(&list))
	r.NotFound(notFound)
	r.MethodNotAllowed(func(w http.ResponseWriter, req *http.Request) { methodNotAllowed(r, list, w, req) })
	get(r, "/", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }) // the host's probe
	get(r, "/api/live", live(h.Listener))                                                             // Live

	singleBody, single := arrived(maxSingleBody, singleMemory), atMost(singlePlaces)
	r.Group(func(r chi.Router) {
		r.Use(singleBody, single)
		r.Post("/api/heartbeat", heartbeat(h.Tracker, &sharedTimeout{timeout: requestTimeout, tick: timeoutTick})) // Heartbeat
	})
	r.Group(func(r chi.Router) {
		r.Use(singleBody, single, within(requestTimeout))
		r.Post("/api/leave", leave(h.Tracker))                                  // Leave
		r.Delete("/api/users/{user}/sessions/{session}", endSession(h.Tracker)) // EndSession
		get(r, "/api/users/{user}", user(h.Tracker))                            // User
		get(r, "/api/users/{user}/events", userEvents(h.Events, h.Complete))    // UserEvents
		get(r, "/api/events/{id}", event(h.Events, h.Complete))                 // Event
		r.Post("/api/events/{id}/replay", replay(h.Replayer))                   // Replay
		get(r, "/api/health", healthOf(h.Health, h.Version))                    // Health
		get(r, "/api/listener", expirationListener(h.Listener))                 // ExpirationListener
		get(r, "/api/openapi.json", openAPIDocument)                            // OpenApi
	})
	r.Group(func(r chi.Router) {
		r.Use(arrived(maxBulkBody, bulkMemory), atMost(bulkPlaces), within(requestTimeout))
		r.Post("/api/heartbeats", heartbeats(h.Tracker))  // Heartbeats
		r.Post("/api/leaves", leaves(h.Tracker))          // Leaves
		r.Post("/api/users/query", usersQuery(h.Tracker)) // UsersQuery
	})
	get(r.With(atMost(scrapePlaces), within(requestTimeout)), "/api/metrics", metrics(h.Metrics)) // Metrics
	r.Group(func(r chi.Router) {
		r.Use(within(cmp.Or(h.BatchTime, batchTimeout)))
		r.Post("/HeartbeatMessages", h.Beats.serve)
		r.Post("/HeartbeatDeadLetters", h.Beats.serveDeadLetters)
		r.Post("/ConnectivityWorker", connectivityWorker(h.Worker))
		r.Post("/DeadLetters", deadLetters(h.Worker))
	})
	for _, route := range r.Routes() {
		if strings.HasPrefix(route.Pattern, "/api/") {
			list = append(list, strings.Split(route.Pattern, "/"))
		}
	}
	return r
}

// get serves GET, and HEAD with it: net/http sends the head of the same answer.
func get(r chi.Router, pattern string, h http.HandlerFunc) {
	r.Get(pattern, h)
	r.Head(pattern, h)
}

func notFound(w http.ResponseWriter, r *http.Request) {
	fail(w, r, &httpError{status: http.StatusNotFound, detail: fmt.Sprintf("there is no route %s; GET /api/openapi.json lists them", r.URL.Path)})
}

// methodNotAllowed answers 405 with the methods that the route takes. The router calls it for a method that HTTP
// does not know, too, whether there is a route or not.
func methodNotAllowed(routes chi.Routes, list routeList, w http.ResponseWriter, r *http.Request) {
	path := cmp.Or(r.URL.RawPath, r.URL.Path)
	pattern := path
	if strings.HasPrefix(strings.ToLower(path), "/api/") {
		pattern, path = list.find(path)
	}
	var takes []string
	for _, method := range methods {
		match := chi.NewRouteContext()
		if routes.Match(match, method, path) && match.RoutePattern() == pattern {
			takes = append(takes, method)
		}
	}
	if len(takes) == 0 {
		notFound(w, r)
		return
	}
	refuseMethod(w, r, takes...)
}

// refuseMethod answers 405 with the methods that the route takes.
func refuseMethod(w http.ResponseWriter, r *http.Request, takes ...string) {
	list := strings.Join(takes, ", ")
	w.Header().Set("Allow", list)
	fail(w, r, &httpError{status: http.StatusMethodNotAllowed, detail: fmt.Sprintf("%s does not take %s; it takes %s", r.URL.Path, r.Method, list)})
}
