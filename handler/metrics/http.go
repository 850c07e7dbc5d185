package metrics

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// HTTP counts and times requests. It is safe for concurrent use.
type HTTP struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	// known has what a request is counted in by its answered: to look it up takes no memory.
	known sync.Map
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
	return &HTTP{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "http_requests_total", Help: "Requests of the host by route, method and status of the answer.",
		}, []string{"route", "method", "status"}),
		seconds: Histogram("http_request_duration_seconds", "From the head of a request to the end of its answer, by route and method.", "route", "method"),
	}
}

// Observe counts an answered request. route is the pattern of its route, without ids, and method one of HTTP's: their
// values must be few.
func (h *HTTP) Observe(route, method string, status int, took time.Duration) {
	of := answered{route, method, status}
	c, ok := h.known.Load(of)
	if !ok {
		c, _ = h.known.LoadOrStore(of, counted{
			h.requests.WithLabelValues(route, method, strconv.Itoa(status)), h.seconds.WithLabelValues(route, method),
		})
	}
	in := c.(counted)
	in.requests.Inc()
	in.seconds.Observe(took.Seconds())
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
