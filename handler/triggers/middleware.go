package triggers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-chi/chi/v5"
)

// observer is told of every answered request: its route as the router has it ("unknown" where there is none), its
// method ("other" for one that HTTP does not know), the status, and how long it took.
type observer interface {
	Observe(route, method string, status int, took time.Duration)
}

type requestKey struct{}

// request is what the handler knows of a request under way, and how it is answered.
type request struct {
	http.ResponseWriter
	conn   http.ResponseController
	log    *slog.Logger
	id     string // of the invocation, "" where the host did not send it
	status int    // of the answer, 0 before there is one
	body   []byte // nil before it has been read
	held   int64  // of the room for bodies, in bytes
}

// WriteHeader begins the answer.
func (q *request) WriteHeader(status int) {
	if q.status == 0 && status >= http.StatusOK {
		q.status = status
	}
	q.ResponseWriter.WriteHeader(status)
}

// Write begins an answer with 200, too.
func (q *request) Write(p []byte) (int, error) {
	if q.status == 0 {
		q.status = http.StatusOK
	}
	return q.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach the connection.
func (q *request) Unwrap() http.ResponseWriter { return q.ResponseWriter }

// answerWithin bounds the time until the caller has taken the answer.
func (q *request) answerWithin(d time.Duration) {
	_ = q.conn.SetWriteDeadline(time.Now().Add(d)) // there is none where the request did not come over a network
}

// arrivesWithin bounds the time until the body of the request is here. It holds for a body that nobody reads, too: the
// server waits for its end before it takes the next request.
func (q *request) arrivesWithin(d time.Duration) {
	_ = q.conn.SetReadDeadline(time.Now().Add(d))
}

// endsConnection makes the answer the last one of its connection: it does not wait for the rest of the body.
func (q *request) endsConnection() {
	if q.ResponseWriter != nil {
		q.Header().Set("Connection", "close")
	}
}

// requestOf returns what is known of a request: nothing when it did not come through Routes.
func requestOf(r *http.Request) *request {
	if q, ok := r.Context().Value(requestKey{}).(*request); ok {
		return q
	}
	return &request{}
}

// logger returns the logger of the invocation; it is made when there is something to tell.
func logger(ctx context.Context) *slog.Logger {
	q, ok := ctx.Value(requestKey{}).(*request)
	switch {
	case !ok:
		return slog.Default()
	case q.id == "":
		return q.log
	}
	return q.log.With("invocation_id", q.id)
}

// invocationHeader carries the host's id of an invocation. It is answered, too, so that a caller can name it.
const invocationHeader = "X-Azure-Functions-Invocationid"

// begun puts what is known of a request into its context, and tells the observer of its answer.
func begun(log *slog.Logger, seen observer) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			q := &request{ResponseWriter: w, conn: *http.NewResponseController(w), log: log}
			if r.ContentLength != 0 {
				q.arrivesWithin(bodyTimeout)
			}
			q.answerWithin(bodyTimeout + requestTimeout + answerTimeout) // each request sets its own: it lasts until the next does
			if id := r.Header[invocationHeader]; len(id) > 0 {
				q.id = id[0]
				w.Header()[invocationHeader] = id[:1:1]
			}
			r = r.WithContext(context.WithValue(r.Context(), requestKey{}, q))
			if seen == nil {
				next.ServeHTTP(q, r)
				return
			}
			start := time.Now()
			next.ServeHTTP(q, r)
			seen.Observe(routeOf(r), methodOf(r), cmp.Or(q.status, http.StatusOK), time.Since(start))
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
				answer.Instance = instanceOf(r)
				write(w, answer.Status, problemType, answer)
			}
		}()
		next.ServeHTTP(w, r)
	})
}

// within bounds the time of a request: the host does not cancel what its caller has given up.
func within(d time.Duration) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			requestOf(r).answerWithin(d + answerTimeout)
			ctx, cancel := context.WithTimeout(r.Context(), d)
			defer cancel()
			next.ServeHTTP(w, r.WithContext(ctx))
		})
	}
}

// answerTimeout bounds how long the caller takes an answer that is ready: one who does not read holds no place for ever.
const answerTimeout = 10 * time.Second

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
				fail(w, r, busy(strconv.FormatInt(n, 10)+" requests"))
				return
			}
			next.ServeHTTP(w, r)
		})
	}
}

// anyCase lets the literals of a route be written in any case, as the host does. Ids keep theirs.
func anyCase(routes *routeList) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if path := cmp.Or(r.URL.RawPath, r.URL.Path); strings.ContainsFunc(path, isUpper) {
				if _, path = routes.find(path); path != "" {
					chi.RouteContext(r.Context()).RoutePath = path
				}
			}
			next.ServeHTTP(w, r)
		})
	}
}

func isUpper(c rune) bool { return 'A' <= c && c <= 'Z' }

// routeList is the patterns of the HTTP API, cut at their slashes.
type routeList [][]string

// find returns the pattern that a path has, of several the one with most literals, and the path with the literals as
// the pattern has them; "" where there is none.
func (l routeList) find(path string) (pattern, canonical string) {
	segments := strings.Split(path, "/")
	most := -1
	for _, route := range l {
		if literals, ok := fits(route, segments); ok && literals > most {
			most = literals
			exact := slices.Clone(segments)
			for i, s := range route {
				if !isParameter(s) {
					exact[i] = s
				}
			}
			pattern, canonical = strings.Join(route, "/"), strings.Join(exact, "/")
		}
	}
	return pattern, canonical
}

// fits reports whether a path has a pattern, and how many literals that has.
func fits(route, path []string) (literals int, ok bool) {
	if len(route) != len(path) {
		return 0, false
	}
	for i, s := range route {
		if isParameter(s) {
			continue
		}
		if !strings.EqualFold(s, path[i]) {
			return 0, false
		}
		literals++
	}
	return literals, true
}

func isParameter(segment string) bool { return strings.HasPrefix(segment, "{") }

// methods are those that routes may take; methodOf names any other one.
var methods = []string{
	http.MethodDelete, http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPatch, http.MethodPost, http.MethodPut,
}

// methodOf names the method of a request, "other" for one that HTTP does not know: what counts by it stays bounded.
func methodOf(r *http.Request) string {
	if slices.Contains(methods, r.Method) {
		return r.Method
	}
	return "other"
}

// routeOf names the route of a request without its ids, for logs and metrics: "unknown" where there is none.
func routeOf(r *http.Request) string {
	if c := chi.RouteContext(r.Context()); c != nil {
		return cmp.Or(c.RoutePattern(), "unknown")
	}
	return "unknown"
}
