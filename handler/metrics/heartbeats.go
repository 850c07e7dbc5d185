package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"userconnectivity/handler/presence"
)

// Source is how heartbeats come in: the label source of their metrics.
type Source string

// The sources of heartbeats. Leaves come over HTTP alone.
const (
	OverHTTP  Source = "http"
	OverQueue Source = "queue"
)

// Heartbeats tells what the heartbeats and leaves of this process did, by the tracker of each source. It is here and not
// in presence, which knows no Prometheus.
type Heartbeats map[Source]*presence.Tracker

// Describe implements prometheus.Collector. Which metrics there are may depend on the state.
func (Heartbeats) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (h Heartbeats) Collect(ch chan<- prometheus.Metric) {
	for source, tracker := range h {
		tally := tracker.Tally()
		for change, n := range tally.Beats {
			Counter(ch, "heartbeats_total", "Heartbeats by where they came from and what they did.", n, "source", string(source), "change", string(change))
		}
		Counter(ch, "heartbeats_failed_total", "Heartbeats that were refused because Redis could not be reached or failed.", tally.BeatsFailed, "source", string(source))
		if source != OverHTTP {
			continue
		}
		for outcome, n := range tally.Leaves {
			Counter(ch, "leaves_total", "Leaves by what they did.", n, "change", string(outcome))
		}
		Counter(ch, "leaves_failed_total", "Leaves that were refused because Redis could not be reached or failed.", tally.LeavesFailed)
	}
}
