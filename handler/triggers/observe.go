package triggers

import (
	"cmp"
	"net/http"
	"slices"
	"time"
)

// observer is told of every answered request: its route as the router has it ("unknown" where there is none), its
// method ("other" for one that HTTP does not know), the status, and how long it took.
type observer interface {
	Observe(route, method string, status int, took time.Duration)
}

// answer remembers the status of an answer.
type answer struct {
	http.ResponseWriter
	status int
}

// WriteHeader begins the answer.
func (a *answer) WriteHeader(status int) {
	if a.status == 0 && status >= http.StatusOK {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController reach the connection.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// observed tells the observer of each answer; nil is nobody.
func observed(by observer) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		if by == nil {
			return next
		}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			a, start := answer{ResponseWriter: w}, time.Now()
			next.ServeHTTP(&a, r)
			by.Observe(routeOf(r), methodOf(r), cmp.Or(a.status, http.StatusOK), time.Since(start))
		})
	}
}

// methodOf names the method of a request; those that clients make up are one.
func methodOf(r *http.Request) string {
	if slices.Contains([]string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch, http.MethodOptions}, r.Method) {
		return r.Method
	}
	return "other"
}
