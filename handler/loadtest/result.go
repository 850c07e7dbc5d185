package loadtest

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Sample is one invocation.
type Sample struct {
	Function Function
	At       time.Duration // since the load began
	Latency  time.Duration
	Error    string // its kind, "" when it succeeded
}

// Result is what one design did under the load.
type Result struct {
	Design  string
	Samples []Sample
	// Took is the time from the first request to the last answer.
	Took time.Duration
	// Drained is how long after that the last message was processed.
	Drained time.Duration
	// Faults are those that no sample shows: messages that were not processed.
	Faults []string

	// Clients are the connected clients of Redis over time; empty when its URL is not known.
	Clients []ClientCount
	// MaxClients is the server's limit, 0 when it does not tell.
	MaxClients int
	// Opened and Refused count the connections that Redis accepted and refused during the test.
	Opened, Refused int64
}

// Stats sums up the invocations of a function.
type Stats struct {
	Invocations, Errors int
	Rate                float64 // successful ones per second
	P50, P95, P99, Max  time.Duration
}

// Of returns the stats of the given functions, of all without one.
func (r *Result) Of(functions ...Function) Stats {
	var s Stats
	var latencies []time.Duration
	for _, sample := range r.Samples {
		if len(functions) > 0 && !slices.Contains(functions, sample.Function) {
			continue
		}
		s.Invocations++
		if sample.Error != "" {
			s.Errors++
		}
		latencies = append(latencies, sample.Latency)
	}
	if r.Took > 0 {
		s.Rate = float64(s.Invocations-s.Errors) / r.Took.Seconds()
	}
	slices.Sort(latencies)
	s.P50, s.P95, s.P99, s.Max = percentile(latencies, 50), percentile(latencies, 95), percentile(latencies, 99), percentile(latencies, 100)
	return s
}

// percentile returns the p-th percentile of sorted values by nearest rank, 0 of none.
func percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[max((len(sorted)*p+99)/100, 1)-1]
}

// MostClients is the highest number of connected clients.
func (r *Result) MostClients() int {
	most := 0
	for _, c := range r.Clients {
		most = max(most, c.N)
	}
	return most
}

// ErrorCount is how often an error occurred.
type ErrorCount struct {
	Kind string
	N    int
}

// Errors returns the kinds of errors, the most frequent first.
func (r *Result) Errors() []ErrorCount {
	counts := map[string]int{}
	for _, s := range r.Samples {
		if s.Error != "" {
			counts[s.Error]++
		}
	}
	var errors []ErrorCount
	for kind, n := range maps.All(counts) {
		errors = append(errors, ErrorCount{kind, n})
	}
	slices.SortFunc(errors, func(a, b ErrorCount) int { return cmp.Or(b.N-a.N, cmp.Compare(a.Kind, b.Kind)) })
	return errors
}

// Problems returns what is not as it must be: any error, and any connection beyond the limit.
func (r *Result) Problems() []string {
	problems := slices.Clone(r.Faults)
	if s := r.Of(); s.Errors > 0 {
		problems = append(problems, fmt.Sprintf("%d of %d invocations failed: %s", s.Errors, s.Invocations, r.Errors()[0].Kind))
	}
	if r.Refused > 0 {
		problems = append(problems, fmt.Sprintf("Redis refused %d connections", r.Refused))
	}
	if most := r.MostClients(); r.MaxClients > 0 && most > r.MaxClients {
		problems = append(problems, fmt.Sprintf("%d clients were connected, the limit is %d", most, r.MaxClients))
	}
	return problems
}
