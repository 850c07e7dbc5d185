// Package metrics gives the numbers of this process to Prometheus. Each part is a collector of its own numbers; here
// are only what they share, the requests over HTTP, and the heartbeats, whose own package knows no Prometheus.
package metrics

import (
	"bytes"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"
)

// Prefix begins the name of each metric of ours. Those of the Go runtime and of the process have their usual names.
const Prefix = "userconnectivity_"

// Seconds are the bounds of histograms of durations: finest where the promises are (50 ms from a deadline to its
// claim), and up to the time after which a batch is given up.
var Seconds = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 150}

// Registry has the collectors of a process. It is safe for concurrent use.
type Registry struct{ all *prometheus.Registry }

// NewRegistry returns a Registry with the collectors of the Go runtime and of the process, and adds others. Two that
// tell the same number are a mistake of the program: it panics.
func NewRegistry(parts ...prometheus.Collector) *Registry {
	r := &Registry{prometheus.NewRegistry()}
	r.all.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	prometheus.WrapRegistererWithPrefix(Prefix, r.all).MustRegister(parts...)
	return r
}

// Text returns all numbers in the text format of Prometheus, version 0.0.4. With an error it is what could be read.
func (r *Registry) Text() ([]byte, error) {
	families, fault := r.all.Gather()
	var text bytes.Buffer
	encode := expfmt.NewEncoder(&text, expfmt.NewFormat(expfmt.TypeTextPlain))
	for _, f := range families {
		if err := encode.Encode(f); err != nil {
			return nil, fmt.Errorf("write metric %s: %w", f.GetName(), err)
		}
	}
	if fault != nil {
		return text.Bytes(), fmt.Errorf("read the metrics: %w", fault)
	}
	return text.Bytes(), nil
}

// Func is a collector that reads a state at each scrape and sends what it tells, by Gauge and Counter.
type Func func(chan<- prometheus.Metric)

// Describe implements prometheus.Collector. Which metrics there are may depend on the state.
func (Func) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (f Func) Collect(ch chan<- prometheus.Metric) { f(ch) }

// Gauge sends a number that may rise and fall. labels are names and values in turn.
func Gauge(ch chan<- prometheus.Metric, name, help string, value float64, labels ...string) {
	send(ch, prometheus.GaugeValue, name, help, value, labels)
}

// Counter sends a number that only rises while the process runs. labels are names and values in turn.
func Counter[N int | int64](ch chan<- prometheus.Metric, name, help string, value N, labels ...string) {
	send(ch, prometheus.CounterValue, name, help, float64(value), labels)
}

func send(ch chan<- prometheus.Metric, kind prometheus.ValueType, name, help string, value float64, labels []string) {
	fixed := make(prometheus.Labels, len(labels)/2)
	for i := 0; i+1 < len(labels); i += 2 {
		fixed[labels[i]] = labels[i+1]
	}
	ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, nil, fixed), kind, value)
}

// Bool is 1 for what holds.
func Bool(holds bool) float64 {
	if holds {
		return 1
	}
	return 0
}

// Histogram returns a histogram of seconds, by the given labels.
func Histogram(name, help string, labels ...string) *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: Seconds}, labels)
}
