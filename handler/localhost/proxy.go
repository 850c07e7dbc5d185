package localhost

import (
	"bytes"
	"context"
	"crypto/subtle"
	"errors"
	"io"
	"log"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"
)

// How the Functions host passes HTTP requests on.
const (
	maxRequestBytes = 100 << 20
	maxTries        = 10
	firstRetryPause = 50 * time.Millisecond
	lastRetryPause  = 250 * time.Millisecond
	headerMSID      = "X-Ms-Invocation-Id"
)

// exchange is what the proxy needs to know of one request; it travels in the request's context.
type exchange struct {
	path   []string    // decoded
	body   *steadyBody // nil when there is none
	cancel context.CancelFunc
	forget func() bool
}

type exchangeKey struct{}

// serveFunction routes a request to its HTTP function and passes it on to the handler.
func (h *Host) serveFunction(w http.ResponseWriter, r *http.Request) {
	if !h.inFlight.TryRLock() { // the host is stopping
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	defer h.inFlight.RUnlock()
	path, err := decodePath(r.URL)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	f := h.router.find(r.Method, path)
	switch {
	case strings.EqualFold(path[0], "admin"), strings.EqualFold(path[0], "runtime"):
		w.WriteHeader(http.StatusForbidden)
	case f == nil && r.URL.Path == "/":
		h.serveHomepage(w)
	case f == nil:
		w.WriteHeader(http.StatusNotFound)
	case !authorized(r, f, h.options.AuthKey):
		w.WriteHeader(http.StatusUnauthorized)
	case !ascii(r.Header), r.ContentLength > maxRequestBytes, r.Host == "":
		w.WriteHeader(http.StatusInternalServerError)
	default:
		h.passOn(w, r, path)
	}
}

// serveHomepage is what the Functions host answers to GET / when no function does.
func (h *Host) serveHomepage(w http.ResponseWriter) {
	if h.app.isTrue("AzureWebJobsDisableHomepage") {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.Header().Set("Content-Type", "text/html")
	_, _ = io.WriteString(w, homepage) // the client may have gone
}

const homepage = `<!DOCTYPE html>
<html lang="en"><head><title>Local host</title></head>
<body><h1>The function app is up and running</h1><p>This is the local host. Its output lists the functions.</p></body></html>
`

// passOn passes a request on to the handler. One that takes longer than functionTimeout has the handler killed, and
// all its other requests with it.
func (h *Host) passOn(w http.ResponseWriter, r *http.Request, path []string) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	x := &exchange{path: path, cancel: cancel, forget: func() bool { return false }}
	defer func() { x.forget() }()
	r = r.WithContext(context.WithValue(ctx, exchangeKey{}, x))
	if r.ContentLength != 0 {
		x.body = &steadyBody{ReadCloser: r.Body, conn: http.NewResponseController(w), began: time.Now()}
	}
	switch {
	case r.ContentLength > 0: // the handler gets it when all of it is there
		body, err := io.ReadAll(x.body)
		if err != nil {
			w.WriteHeader(x.body.fault())
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
	case r.ContentLength < 0:
		_ = x.body.conn.EnableFullDuplex() // an answer that does not wait for the body goes to the client at once
		r.Body = http.MaxBytesReader(w, x.body, maxRequestBytes)
	}
	if timeout := h.app.functionTimeout; timeout > 0 {
		defer time.AfterFunc(timeout, func() {
			if generation, err := h.process.waitReady(ctx); err == nil {
				h.log.Error("request timed out: the handler is killed", "method", r.Method, "path", r.URL.Path, "timeout", timeout)
				h.process.restart(generation)
			}
		}).Stop()
	}
	h.proxy.ServeHTTP(w, r)
}

// newProxy returns the proxy to the handler. It streams both ways and sets the headers that the host sets.
// Event streams, which would never end by themselves, end when stopping is done.
func newProxy(p *process, transport http.RoundTripper, stopping context.Context, logger *slog.Logger) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Transport:     &retryTransport{process: p, base: transport},
		FlushInterval: -1,
		ErrorLog:      log.New(io.Discard, "", 0), // what matters comes through ErrorHandler
		Rewrite: func(r *httputil.ProxyRequest) {
			path := r.In.Context().Value(exchangeKey{}).(*exchange).path
			target, _ := url.Parse(p.url())
			target.Path, target.RawPath = encodePath(path)
			target.RawQuery, target.ForceQuery = r.In.URL.RawQuery, r.In.URL.ForceQuery
			r.Out.URL, r.Out.Host = target, ""
			r.SetXForwarded()
			id := uuid.NewString()
			r.Out.Header.Set(headerInvocationID, id)
			r.Out.Header.Set(headerMSID, id)
			r.Out.Header.Set(headerHostVersion, hostVersion)
			r.Out.Header.Del("Te")
		},
		ModifyResponse: func(resp *http.Response) error {
			if media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); media == "text/event-stream" {
				x := resp.Request.Context().Value(exchangeKey{}).(*exchange)
				x.forget = context.AfterFunc(stopping, x.cancel)
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			x := r.Context().Value(exchangeKey{}).(*exchange)
			if status := x.body.fault(); status != 0 {
				w.WriteHeader(status)
				return
			}
			if r.Context().Err() == nil {
				logger.Error("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
			}
			w.WriteHeader(http.StatusInternalServerError)
		},
	}
}

// retryTransport sends a request again while it is sure that nothing is lost or doubled by it: one without a
// body whenever the connection drops, one with a body only when no connection was made. It waits for a
// handler that is down.
type retryTransport struct {
	process *process
	base    http.RoundTripper
}

func (t *retryTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	body := r.Body
	if body != nil {
		r = r.Clone(r.Context())
		// The transport closes the body also when it could not connect. The proxy closes it in the end, not this: the
		// transport may still look for its end when the answer has begun, and would break the connection.
		r.Body = io.NopCloser(body)
	}
	for try, pause := 1, firstRetryPause; ; try, pause = try+1, min(2*pause, lastRetryPause) {
		ctx, cancel := context.WithTimeout(r.Context(), startTimeout)
		_, err := t.process.waitReady(ctx)
		cancel()
		if err != nil {
			return nil, err
		}
		resp, err := t.base.RoundTrip(r)
		again := isDialError(err) || (body == nil && connectionDropped(err))
		if !again || try == maxTries || !wait(r.Context(), pause) {
			return resp, err
		}
	}
}

// connectionDropped reports whether err says that the handler broke the connection.
func connectionDropped(err error) bool {
	var op *net.OpError
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &op)
}

// ascii reports whether all header values are ASCII: the Functions host answers 500 to others.
func ascii(header http.Header) bool {
	for _, values := range header {
		for _, v := range values {
			for _, c := range []byte(v) {
				if c >= 0x80 {
					return false
				}
			}
		}
	}
	return true
}

func equalSecrets(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
