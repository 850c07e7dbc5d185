package triggers

import (
	"net/http"
	"strconv"
)

// meter measures the app. It answers from memory: it waits for no other part.
type meter interface {
	// Metrics returns the numbers in the text format of Prometheus, version 0.0.4.
	Metrics() []byte
}

// metricsType is the content type of that format.
const metricsType = "text/plain; version=0.0.4; charset=utf-8"

// metrics is GET /api/metrics: the numbers of this process, for a monitor.
func metrics(m meter) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		text := m.Metrics()
		w.Header().Set("Content-Type", metricsType)
		w.Header().Set("Content-Length", strconv.Itoa(len(text)))
		_, _ = w.Write(text) // the caller has gone: nobody is left to tell
	}
}
