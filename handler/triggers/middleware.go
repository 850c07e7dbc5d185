package triggers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/go-chi/chi/v5"
)

type requestKey struct{}

// requestInfo is what the log tells of a request: the logger is made when there is something to tell.
type requestInfo struct {
	log *slog.Logger
	id  string
}

// logger returns the logger of the invocation.
func logger(ctx context.Context) *slog.Logger {
	in, ok := ctx.Value(requestKey{}).(requestInfo)
	switch {
	case !ok:
		return slog.Default()
	case in.id == "":
		return in.log
	}
	return in.log.With("invocation_id", in.id)
}

// invocationHeader carries the host's id of an invocation.
const invocationHeader = "X-Azure-Functions-Invocationid"

// withLogger puts the invocation into the context.
func withLogger(base *slog.Logger) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			in := requestInfo{base, r.Header.Get(invocationHeader)}
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), requestKey{}, in)))
		})
	}
}

var errPanicked = errors.New("request panicked")

// recovered answers 500 to a request that panicked: no request may end the process, since the host would send
// a GET again to each new one until it stops the whole app (design D10).
func recovered(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			switch p := recover(); p {
			case nil:
			case http.ErrAbortHandler:
				panic(p) // net/http closes the connection and goes on
			default:
				logger(r.Context()).ErrorContext(r.Context(), "request panicked", "method", r.Method, "route", routeOf(r), "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				answer, _ := problemOf(errPanicked)
				write(w, answer.Status, "application/problem+json", answer)
			}
		}()
		next.ServeHTTP(w, r)
	})
}

// within bounds the time of a request: the host does not cancel what its caller has given up.
func within(d time.Duration) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), d)
			defer cancel()
			next.ServeHTTP(w, r.WithContext(ctx))
		})
	}
}

// sharedTimeout bounds the time of requests as within does, at a fraction of its cost: those that begin in the same
// tick share a timer. A request gets up to a tick less than the timeout. That its caller has gone does not end it.
type sharedTimeout struct {
	timeout, tick time.Duration
	newest        atomic.Pointer[tickEnd]
}

// tickEnd is the end of the requests that begin before until.
type tickEnd struct {
	context.Context //nolint:containedctx // it is one
	until           time.Time
}

// of returns the context of a request that begins now: the values are those of parent, the end is the tick's.
func (s *sharedTimeout) of(parent context.Context, now time.Time) context.Context {
	end := s.newest.Load()
	if end == nil || !now.Before(end.until) {
		ctx, cancel := context.WithDeadline(context.Background(), now.Add(s.timeout))
		context.AfterFunc(ctx, cancel) // the timer is all there is to release
		end = &tickEnd{ctx, now.Add(s.tick)}
		s.newest.Store(end) // whoever stores at the same moment has one as good
	}
	return bounded{end, parent}
}

// bounded is a context with the end of one and the values of another.
type bounded struct {
	context.Context //nolint:containedctx // it is one
	values          context.Context
}

func (b bounded) Value(key any) any { return b.values.Value(key) }

// atMost bounds the requests under way at once, and with them their memory. One more gets 503 at once.
func atMost(n int64) func(http.Handler) http.Handler {
	var taken atomic.Int64
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			defer taken.Add(-1)
			if taken.Add(1) > n {
				fail(w, r, busy(n))
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

// routeOf names the route of a request without its ids, for logs.
func routeOf(r *http.Request) string {
	if c := chi.RouteContext(r.Context()); c != nil && c.RoutePattern() != "" {
		return c.RoutePattern()
	}
	return "unknown"
}
