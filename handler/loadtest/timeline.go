package loadtest

import (
	"fmt"
	"slices"
	"time"
)

// timeline divides the time of a test into equal bins, for the charts.
type timeline struct {
	bin time.Duration
	n   int
}

// A chart has up to maxLabels labels on its time axis, after the first one, and binsPerLabel bins between two.
const (
	maxLabels    = 7
	binsPerLabel = 5
)

// newTimeline returns the timeline of the longest of the results.
func newTimeline(results ...*Result) timeline {
	var longest time.Duration
	for _, r := range results {
		longest = max(longest, r.Took)
	}
	label := time.Second
	for _, seconds := range []time.Duration{2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600} {
		if longest > maxLabels*label {
			label = seconds * time.Second
		}
	}
	for longest > maxLabels*label {
		label *= 2
	}
	return timeline{bin: label / binsPerLabel, n: int(longest/label+1)*binsPerLabel + 1}
}

// labels are the times at which the bins begin, their unit, and how many of them are to be shown.
func (t timeline) labels() (labels []string, unit string, shown int) {
	one, unit := time.Second, "seconds"
	if t.bin*binsPerLabel >= time.Minute {
		one, unit = time.Minute, "minutes"
	}
	for i := range t.n {
		labels = append(labels, fmt.Sprintf("%g", float64(time.Duration(i)*t.bin)/float64(one)))
	}
	return labels, unit, (t.n-1)/binsPerLabel + 1
}

// bins divides the samples of a result by when they were answered, as far as its time goes.
func (t timeline) bins(r *Result, keep func(Sample) bool) [][]time.Duration {
	bins := make([][]time.Duration, min(int(r.Took/t.bin)+1, t.n))
	for _, s := range r.Samples {
		if keep(s) {
			i := min(int((s.At+s.Latency)/t.bin), len(bins)-1)
			bins[i] = append(bins[i], s.Latency)
		}
	}
	return bins
}

// rate is how many samples were answered per second.
func (t timeline) rate(r *Result, keep func(Sample) bool) []float64 {
	var rates []float64
	for i, bin := range t.bins(r, keep) {
		width := min(t.bin, r.Took-time.Duration(i)*t.bin) // the last bin may be a short one
		rates = append(rates, float64(len(bin))/max(width, t.bin/10).Seconds())
	}
	return rates
}

// latency is the p-th percentile of the latency, in milliseconds; a bin without an answer has none.
func (t timeline) latency(r *Result, p int) []float64 {
	var values []float64
	for _, bin := range t.bins(r, func(Sample) bool { return true }) {
		slices.Sort(bin)
		if len(bin) == 0 {
			values = append(values, gap)
			continue
		}
		values = append(values, float64(percentile(bin, p))/float64(time.Millisecond))
	}
	return values
}

// clients is the highest number of connected clients. A bin without a sample has that of the one before.
func (t timeline) clients(r *Result) []float64 {
	values := make([]float64, min(int(r.Took/t.bin)+1, t.n))
	for _, c := range r.Clients {
		if i := int(c.At / t.bin); i < len(values) {
			values[i] = max(values[i], float64(c.N))
		}
	}
	for i := 1; i < len(values); i++ {
		if values[i] == 0 {
			values[i] = values[i-1]
		}
	}
	return values
}
