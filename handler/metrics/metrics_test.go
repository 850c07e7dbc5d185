package metrics_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"userconnectivity/handler/metrics"
)

// text returns what collectors tell, and what Prometheus's linter says of ours.
func text(t *testing.T, parts ...prometheus.Collector) string {
	t.Helper()
	got, err := metrics.NewRegistry(parts...).Text()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.New(strings.NewReader(string(got))).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, metrics.Prefix) {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	return string(got)
}

func TestRegistry(t *testing.T) {
	t.Parallel()
	got := text(t, metrics.Func(func(ch chan<- prometheus.Metric) {
		metrics.Gauge(ch, "open", "1 while it is open.", metrics.Bool(true), "node", "a\"b\\c\nd}")
		metrics.Gauge(ch, "open", "1 while it is open.", metrics.Bool(false), "node", "")
		metrics.Counter(ch, "rings_total", "Rings.", 12345678901)
	}))
	for _, line := range []string{
		`userconnectivity_open{node="a\"b\\c\nd}"} 1`, `userconnectivity_open{node=""} 0`, "userconnectivity_rings_total 1.2345678901e+10",
		"# TYPE userconnectivity_rings_total counter", "# HELP userconnectivity_open 1 while it is open.", "go_goroutines ", "process_start_time_seconds ",
	} {
		if !strings.Contains(got, line) {
			t.Errorf("%s is not in\n%s", line, got)
		}
	}
}

// TestRegistryTellsTheRest: a collector that contradicts itself takes no other number with it.
func TestRegistryTellsTheRest(t *testing.T) {
	t.Parallel()
	got, err := metrics.NewRegistry(
		metrics.Func(func(ch chan<- prometheus.Metric) {
			metrics.Gauge(ch, "twice", "Told twice.", 1)
			metrics.Gauge(ch, "twice", "Told twice.", 2)
		}),
		metrics.Func(func(ch chan<- prometheus.Metric) { metrics.Gauge(ch, "once", "Told once.", 1) }),
	).Text()
	if err == nil || !strings.Contains(err.Error(), "twice") || !strings.Contains(string(got), "userconnectivity_once 1") {
		t.Errorf("%v in\n%s", err, got)
	}
}

func TestHTTP(t *testing.T) {
	t.Parallel()
	h := metrics.NewHTTP()
	var all sync.WaitGroup
	for i := range 40 {
		all.Go(func() { h.Observe("/api/users/{user}", "GET", 200+100*(i%4), time.Duration(i)*time.Millisecond) })
	}
	all.Wait()
	h.Observe("unknown", "other", 404, time.Hour)
	got := text(t, h)
	want := []string{
		`userconnectivity_http_request_duration_seconds_count{method="GET",route="/api/users/{user}"} 40`,
		`userconnectivity_http_request_duration_seconds_bucket{method="GET",route="/api/users/{user}",le="0.025"} 26`,
		`userconnectivity_http_requests_total{method="other",route="unknown",status="404"} 1`,
	}
	for status := 200; status <= 500; status += 100 {
		want = append(want, fmt.Sprintf(`userconnectivity_http_requests_total{method="GET",route="/api/users/{user}",status="%d"} 10`, status))
	}
	for _, line := range want {
		if !strings.Contains(got, line) {
			t.Errorf("%s is not in\n%s", line, got)
		}
	}
}

// TestObserveTakesNoMemory: it is on the way of every heartbeat.
func TestObserveTakesNoMemory(t *testing.T) {
	h := metrics.NewHTTP()
	observe := func() { h.Observe("/api/heartbeat", "POST", 200, time.Millisecond) }
	if n := testing.AllocsPerRun(1000, observe); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkObserve(b *testing.B) {
	h := metrics.NewHTTP()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			h.Observe("/api/heartbeat", "POST", 200, time.Millisecond)
		}
	})
}
