package loadtest

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/html"
)

// run makes a result of n invocations, one every 10 ms, of which the first ones fail.
func run(design string, n, failed, clients int) *Result {
	r := &Result{Design: design, MaxClients: 250}
	for i := range n {
		s := Sample{Function: round[i%len(round)], At: time.Duration(i) * 10 * time.Millisecond, Latency: time.Duration(i%100+1) * time.Millisecond}
		if i < failed {
			s.Error = "<b>no connection</b>"
		}
		r.Samples = append(r.Samples, s)
		r.Took = max(r.Took, s.At+s.Latency)
		r.Clients = append(r.Clients, ClientCount{s.At, min(i, clients)})
	}
	return r
}

// page is what a reader sees of a report.
type seen struct {
	tables [][][]string
	texts  []string
	tags   map[string]int
	values []string // of all attributes
}

func read(t *testing.T, report *Report) seen {
	t.Helper()
	var out bytes.Buffer
	if err := report.WriteHTML(&out); err != nil {
		t.Fatal(err)
	}
	doc, err := html.Parse(&out)
	if err != nil {
		t.Fatal(err)
	}
	s := seen{tags: map[string]int{}}
	for n := range doc.Descendants() {
		switch {
		case n.Type == html.TextNode && strings.TrimSpace(n.Data) != "":
			s.texts = append(s.texts, strings.TrimSpace(n.Data))
		case n.Type != html.ElementNode:
			continue
		case n.Data == "table":
			s.tables = append(s.tables, nil)
		case n.Data == "tr":
			last := len(s.tables) - 1
			var cells []string
			for c := range n.ChildNodes() {
				if c.Type == html.ElementNode {
					cells = append(cells, text(c))
				}
			}
			s.tables[last] = append(s.tables[last], cells)
		}
		s.tags[n.Data]++
		for _, a := range n.Attr {
			s.values = append(s.values, a.Val)
		}
	}
	return s
}

func text(n *html.Node) string {
	var b strings.Builder
	for d := range n.Descendants() {
		if d.Type == html.TextNode {
			b.WriteString(d.Data)
		}
	}
	return strings.TrimSpace(b.String())
}

// rowOf returns the cells of the row with a name.
func rowOf(t *testing.T, table [][]string, name string) []string {
	t.Helper()
	for _, row := range table {
		if row[0] == name {
			return row[1:]
		}
	}
	t.Fatalf("no row %q in %q", name, table)
	return nil
}

func TestReportShowsTheDesignsSideBySide(t *testing.T) {
	t.Parallel()
	ours := run("this app", 1200, 0, 4)
	leaking, quitting := run("client per invocation", 2400, 1500, 250), run("connect and quit", 1800, 0, 200)
	ours.Drained, leaking.Opened, leaking.Refused, quitting.Opened = 12*time.Millisecond, 249, 6000, 1800
	s := read(t, &Report{Options: Options{Users: 10_000, Invocations: 1000, Workers: 200}, When: time.Now(), Runs: []*Result{ours, leaking, quitting}})

	for name, want := range map[string][]string{
		"":                    {"this app", "client per invocation", "connect and quit"},
		"invocations":         {"1,200", "2,400", "1,800"},
		"errors":              {"0", "1,500 (62.5 %)", "0"},
		"duration":            {"12.1 s", "24.1 s", "18.1 s"},
		"latency p50":         {"50.00 ms", "50.00 ms", "50.00 ms"},
		"latency p99":         {"99.00 ms", "99.00 ms", "99.00 ms"},
		"latency max":         {"100 ms", "100 ms", "100 ms"},
		"Redis clients, max":  {"4 of 250", "250 of 250", "200 of 250"},
		"opened under load":   {"0", "249", "1,800"},
		"refused connections": {"0", "6,000", "0"},
	} {
		if diff := cmp.Diff(want, rowOf(t, s.tables[0], name)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	if diff := cmp.Diff([]string{"500", "500", "200"}, rowOf(t, s.tables[1], "invocations")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"<b>no connection</b>", "1,500"}, rowOf(t, s.tables[2], "client per invocation")); diff != "" {
		t.Error(diff)
	}
	if s.tags["figure"] != 8 || s.tags["svg"] != 8 {
		t.Errorf("%d figures with %d drawings, want 8", s.tags["figure"], s.tags["svg"])
	}
	for _, want := range []string{"1,200 invocations of 10,000 users with 0 errors in 12.1 s, with at most 4 of 250 connections to Redis.", "limit 250", "seconds", "p99", "HeartbeatMessages"} {
		if !slices.Contains(s.texts, want) {
			t.Errorf("nobody can read %q", want)
		}
	}
}

func TestReportIsOneFileWithoutScripts(t *testing.T) {
	t.Parallel()
	s := read(t, &Report{Runs: []*Result{run("this app", 1200, 3, 4)}})
	for _, tag := range []string{"script", "link", "img", "iframe", "object"} {
		if s.tags[tag] > 0 {
			t.Errorf("%d elements %s", s.tags[tag], tag)
		}
	}
	for _, value := range s.values {
		if strings.Contains(value, "//") && !strings.HasPrefix(value, "http://www.w3.org/") { // the names of SVG
			t.Errorf("an attribute points elsewhere: %q", value)
		}
	}
	if s.tags["figure"] != 4 || s.tags["svg"] != 4 || len(s.tables) != 3 {
		t.Errorf("%d figures, %d drawings, %d tables", s.tags["figure"], s.tags["svg"], len(s.tables))
	}
}

func TestReportWithoutRedisAndMessages(t *testing.T) {
	t.Parallel()
	r := run("this app", 1200, 0, 0)
	r.Clients, r.MaxClients = nil, 0
	r.Samples = slices.DeleteFunc(r.Samples, func(s Sample) bool { return s.Function == HeartbeatMessages })
	s := read(t, &Report{Runs: []*Result{r}})
	if diff := cmp.Diff([]string{"", "Heartbeat", "User"}, s.tables[1][0]); diff != "" {
		t.Error(diff)
	}
	if s.tags["figure"] != 3 {
		t.Errorf("%d figures, want 3", s.tags["figure"])
	}
}

func TestPrint(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	if err := (&Report{Options: Options{Users: 7}, Runs: []*Result{run("this app", 1200, 1, 4)}}).Print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"this app", "1 (0.1 %)", "4 of 250", "HeartbeatMessages", "no connection", "1,200 invocations of 7 users with 1 error in 12.1 s"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, &out)
		}
	}
}

func TestProblems(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		change func(r *Result)
		want   []string
	}{
		{"none", func(*Result) {}, nil},
		{"at the limit", func(r *Result) { r.MaxClients = 4 }, nil},
		{"error", func(r *Result) { r.Samples[5].Error = "late" }, []string{"1 of 100 invocations failed: late"}},
		{"refused", func(r *Result) { r.Refused = 3 }, []string{"Redis refused 3 connections"}},
		{"too many", func(r *Result) { r.MaxClients = 3 }, []string{"4 clients were connected, the limit is 3"}},
		{"messages", func(r *Result) { r.Faults = []string{"2 messages are dead"} }, []string{"2 messages are dead"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := run("this app", 100, 0, 4)
			c.change(r)
			if diff := cmp.Diff(c.want, (&Report{Runs: []*Result{r, run("naive", 100, 50, 250)}}).Problems()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestTimeline(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		took  time.Duration
		bin   time.Duration
		last  string
		shown int
	}{
		{0, 200 * time.Millisecond, "1 seconds", 2},
		{6900 * time.Millisecond, 200 * time.Millisecond, "7 seconds", 8},
		{19200 * time.Millisecond, time.Second, "20 seconds", 5},
		{162 * time.Second, 6 * time.Second, "180 seconds", 7},
		{1842 * time.Second, time.Minute, "35 minutes", 8},
		{30 * time.Hour, 96 * time.Minute, "1920 minutes", 5},
	} {
		t.Run(c.took.String(), func(t *testing.T) {
			tl := newTimeline(&Result{Took: c.took})
			labels, unit, shown := tl.labels()
			if tl.bin != c.bin || labels[len(labels)-1]+" "+unit != c.last || shown != c.shown || labels[(tl.n-1)/(shown-1)] == "" {
				t.Errorf("bin %s, %d labels to %q", tl.bin, shown, labels[len(labels)-1]+" "+unit)
			}
		})
	}
}

func TestSeries(t *testing.T) {
	t.Parallel()
	r := &Result{Took: 900 * time.Millisecond, Samples: []Sample{
		{At: 0, Latency: 10 * time.Millisecond},
		{At: 100 * time.Millisecond, Latency: 30 * time.Millisecond, Error: "late"},
		{At: 100 * time.Millisecond, Latency: 150 * time.Millisecond},
		{At: 850 * time.Millisecond, Latency: 50 * time.Millisecond},
	}, Clients: []ClientCount{{0, 2}, {100 * time.Millisecond, 5}, {700 * time.Millisecond, 3}, {time.Minute, 9}}}
	tl := newTimeline(r)
	for _, c := range []struct {
		name      string
		got, want []float64
	}{
		{"rate", tl.rate(r, succeeded), []float64{5, 5, 0, 0, 10}}, // the last bin is half as wide
		{"errors", tl.rate(r, failed), []float64{5, 0, 0, 0, 0}},
		{"p50", tl.latency(r, 50), []float64{10, 150, gap, gap, 50}},
		{"max", tl.latency(r, 100), []float64{30, 150, gap, gap, 50}},
		{"clients", tl.clients(r), []float64{5, 5, 5, 3, 3}},
	} {
		if got, want := fmt.Sprintf("%.3g", c.got), fmt.Sprintf("%.3g", c.want); got != want {
			t.Errorf("%s: got %s, want %s", c.name, got, want)
		}
	}
}

func TestErrorsAreCountedByKind(t *testing.T) {
	t.Parallel()
	r := &Result{}
	for _, kind := range []string{"b", "a", "", "c", "c"} {
		r.Samples = append(r.Samples, Sample{Error: kind})
	}
	if diff := cmp.Diff([]ErrorCount{{"c", 2}, {"a", 1}, {"b", 1}}, r.Errors()); diff != "" {
		t.Error(diff)
	}
}
