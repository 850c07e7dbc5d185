package metrics

import (
	"maps"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// HTTP counts and times requests. It is safe for concurrent use.
type HTTP struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	// known has where each kind of request is counted. It is copied to be changed, so that to look at it takes neither
	// a lock nor memory: every heartbeat does.
	known atomic.Pointer[map[answered]counted]
	mu    sync.Mutex // one change at a time
}

// answered is a kind of answered requests. There are as many as routes, methods and statuses.
type answered struct {
	route, method string
	status        int
}

// counted is where such a kind is counted.
type counted struct {
	requests prometheus.Counter
	seconds  prometheus.Observer
}

// NewHTTP returns an HTTP that has seen no request.
func NewHTTP() *HTTP {
	h := &HTTP{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "http_requests_total", Help: "Requests of the host by route, method and status of the answer.",
		}, []string{"route", "method", "status"}),
		seconds: Histogram("http_request_duration_seconds", "From the head of a request to the end of its answer, by route and method.", "route", "method"),
	}
	h.known.Store(&map[answered]counted{})
	return h
}

// Observe counts an answered request. route is the pattern of its route, without ids, and method one of HTTP's: their
// values must be few.
func (h *HTTP) Observe(route, method string, status int, took time.Duration) {
	of := answered{route, method, status}
	c, ok := (*h.known.Load())[of]
	if !ok {
		c = h.add(of)
	}
	c.requests.Inc()
	c.seconds.Observe(took.Seconds())
}

// add makes a kind of requests known.
func (h *HTTP) add(of answered) counted {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := counted{h.requests.WithLabelValues(of.route, of.method, strconv.Itoa(of.status)), h.seconds.WithLabelValues(of.route, of.method)}
	known := maps.Clone(*h.known.Load())
	known[of] = c
	h.known.Store(&known)
	return c
}

// Describe implements prometheus.Collector.
func (h *HTTP) Describe(ch chan<- *prometheus.Desc) {
	h.requests.Describe(ch)
	h.seconds.Describe(ch)
}

// Collect implements prometheus.Collector.
func (h *HTTP) Collect(ch chan<- prometheus.Metric) {
	h.requests.Collect(ch)
	h.seconds.Collect(ch)
}
