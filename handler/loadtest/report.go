package loadtest

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"regexp"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
)

// Report is what a test found.
type Report struct {
	Options Options
	When    time.Time
	// Runs are the results of the designs, that of this app first.
	Runs []*Result
}

// Problems returns what is not as it must be in the run of this app. The naive designs are there to fail.
func (r *Report) Problems() []string { return r.Runs[0].Problems() }

// cell is a field of a table; a bad one is shown so.
type cell struct {
	Text string
	Bad  bool
}

// row is a line of a table.
type row struct {
	Name  string
	Cells []cell
}

// table has a column for each of the heads.
type table struct {
	Heads []string
	Rows  []row
}

func (t *table) add(name string, cells ...cell) { t.Rows = append(t.Rows, row{name, cells}) }

// designs puts the designs side by side.
func (r *Report) designs() table {
	var t table
	var stats []Stats
	for _, run := range r.Runs {
		t.Heads, stats = append(t.Heads, run.Design), append(stats, run.Of())
	}
	each := func(name string, text func(i int) string, bad func(i int) bool) {
		var cells []cell
		for i := range r.Runs {
			cells = append(cells, cell{text(i), bad != nil && bad(i)})
		}
		t.add(name, cells...)
	}
	each("invocations", func(i int) string { return count(stats[i].Invocations) }, nil)
	each("errors", func(i int) string { return share(stats[i].Errors, stats[i].Invocations) }, func(i int) bool { return stats[i].Errors > 0 })
	each("duration", func(i int) string { return seconds(r.Runs[i].Took) }, nil)
	each("successful/s", func(i int) string { return humanize.CommafWithDigits(stats[i].Rate, 1) }, nil)
	each("latency p50", func(i int) string { return ms(stats[i].P50) }, nil)
	each("latency p95", func(i int) string { return ms(stats[i].P95) }, nil)
	each("latency p99", func(i int) string { return ms(stats[i].P99) }, nil)
	each("latency max", func(i int) string { return ms(stats[i].Max) }, nil)
	if len(r.Runs[0].Clients) == 0 {
		return t
	}
	each("Redis clients, max", func(i int) string { return clients(r.Runs[i]) }, func(i int) bool { return r.Runs[i].MaxClients > 0 && r.Runs[i].MostClients() >= r.Runs[i].MaxClients })
	each("opened under load", func(i int) string { return count(int(r.Runs[i].Opened)) }, nil)
	each("refused connections", func(i int) string { return count(int(r.Runs[i].Refused)) }, func(i int) bool { return r.Runs[i].Refused > 0 })
	return t
}

// functions puts the functions of this app side by side.
func (r *Report) functions() table {
	run := r.Runs[0]
	var t table
	var stats []Stats
	for f := range functions {
		if s := run.Of(f); s.Invocations > 0 {
			t.Heads, stats = append(t.Heads, f.String()), append(stats, s)
		}
	}
	each := func(name string, text func(s Stats) string, bad func(s Stats) bool) {
		var cells []cell
		for _, s := range stats {
			cells = append(cells, cell{text(s), bad != nil && bad(s)})
		}
		t.add(name, cells...)
	}
	each("invocations", func(s Stats) string { return count(s.Invocations) }, nil)
	each("errors", func(s Stats) string { return share(s.Errors, s.Invocations) }, func(s Stats) bool { return s.Errors > 0 })
	each("successful/s", func(s Stats) string { return humanize.CommafWithDigits(s.Rate, 1) }, nil)
	each("latency p50", func(s Stats) string { return ms(s.P50) }, nil)
	each("latency p95", func(s Stats) string { return ms(s.P95) }, nil)
	each("latency p99", func(s Stats) string { return ms(s.P99) }, nil)
	each("latency max", func(s Stats) string { return ms(s.Max) }, nil)
	return t
}

// maxKinds is how many kinds of errors of a design are listed.
const maxKinds = 6

// errorKinds lists the errors of all designs, empty when there were none.
func (r *Report) errorKinds() table {
	t := table{Heads: []string{"error", "count"}}
	for _, run := range r.Runs {
		others := 0
		for i, e := range run.Errors() {
			if i >= maxKinds {
				others += e.N
				continue
			}
			t.add(run.Design, cell{Text: e.Kind}, cell{Text: count(e.N)})
		}
		if others > 0 {
			t.add(run.Design, cell{Text: "others"}, cell{Text: count(others)})
		}
		for _, fault := range run.Faults {
			t.add(run.Design, cell{Text: fault}, cell{})
		}
	}
	return t
}

// Print writes the tables to a terminal.
func (r *Report) Print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, t := range []table{r.designs(), r.functions(), r.errorKinds()} {
		if len(t.Rows) == 0 {
			continue
		}
		fmt.Fprintf(w, "\n\t%s\n", strings.Join(t.Heads, "\t"))
		for _, row := range t.Rows {
			fmt.Fprint(w, "  ", row.Name)
			for _, c := range row.Cells {
				fmt.Fprint(w, "\t", c.Text)
			}
			fmt.Fprintln(w)
		}
		w.Flush()
	}
	_, err := fmt.Fprintf(out, "\n%s\n", r.verdict())
	return err
}

// verdict is the result in one sentence.
func (r *Report) verdict() string {
	run := r.Runs[0]
	s := run.Of()
	text := fmt.Sprintf("%s invocations of %s users with %s in %s", count(s.Invocations), count(r.Options.Users), errorsText(s.Errors),
		seconds(run.Took))
	if len(run.Clients) > 0 {
		text += ", with at most " + clients(run) + " connections to Redis"
	}
	return text + "."
}

// clients is the highest number of connected clients, beside the limit where it is known.
func clients(run *Result) string {
	if run.MaxClients == 0 {
		return count(run.MostClients())
	}
	return count(run.MostClients()) + " of " + count(run.MaxClients)
}

func errorsText(n int) string {
	if n == 1 {
		return "1 error"
	}
	return count(n) + " errors"
}

// The colours of the designs in their order, and of the functions.
var (
	designColors   = []string{blue, orange, red}
	functionColors = [functions]string{blue, green, orange}
)

// comparison draws the designs over one another.
func (r *Report) comparison() ([]figure, error) {
	t := newTimeline(r.Runs...)
	each := func(values func(run *Result) []float64) (lines []line) {
		for i, run := range r.Runs {
			lines = append(lines, line{run.Design, values(run), designColors[i]})
		}
		return lines
	}
	return draw(t,
		drawing{title: "Successful invocations per second", unit: "1/s", lines: each(func(run *Result) []float64 { return t.rate(run, succeeded) })},
		drawing{title: "Errors per second", unit: "1/s", lines: each(func(run *Result) []float64 { return t.rate(run, failed) })},
		drawing{title: "Clients connected to Redis", unit: "clients", lines: append(r.limit(t), each(t.clients)...)},
		drawing{title: "Latency, 99th percentile", unit: "ms", lines: each(func(run *Result) []float64 { return t.latency(run, 99) })},
	)
}

// details draws this app alone.
func (r *Report) details() ([]figure, error) {
	run := r.Runs[0]
	t := newTimeline(run)
	rates := []line{{"all", t.rate(run, func(Sample) bool { return true }), grey}}
	for f := range functions {
		if run.Of(f).Invocations > 0 {
			rates = append(rates, line{f.String(), t.rate(run, func(s Sample) bool { return s.Function == f }), functionColors[f]})
		}
	}
	drawings := []drawing{
		{title: "Invocations per second", unit: "1/s", lines: rates},
		{title: "Latency", unit: "ms", lines: []line{{"p50", t.latency(run, 50), green}, {"p95", t.latency(run, 95), orange}, {"p99", t.latency(run, 99), red}}},
		{title: "Errors per second", unit: "1/s", lines: []line{{"errors", t.rate(run, failed), red}}},
	}
	if len(run.Clients) > 0 {
		drawings = append(drawings, drawing{
			title: "Clients connected to Redis", unit: "clients",
			lines: append(r.limit(t), line{"connected clients", t.clients(run), blue}),
		})
	}
	return draw(t, drawings...)
}

func succeeded(s Sample) bool { return s.Error == "" }
func failed(s Sample) bool    { return s.Error != "" }

// limit is the line of the connection limit, none when it is not known.
func (r *Report) limit(t timeline) []line {
	limit := r.Runs[0].MaxClients
	if limit == 0 {
		return nil
	}
	values := make([]float64, t.n)
	for i := range values {
		values[i] = float64(limit)
	}
	return []line{{fmt.Sprintf("limit %d", limit), values, grey}}
}

//go:embed report.html
var page string

var pageTemplate = template.Must(template.New("report").Funcs(template.FuncMap{"count": count, "ms": ms, "breakable": breakable}).Parse(page))

// WriteHTML writes the report as one HTML page that needs no script, no network and no other file.
func (r *Report) WriteHTML(w io.Writer) error {
	view := struct {
		*Report
		Verdict, Machine           string
		Problems                   []string
		Designs, Functions, Errors table
		Comparison, Details        []figure
		PublishedRate              int
	}{
		Report: r, Verdict: r.verdict(), Problems: r.Problems(), Designs: r.designs(), Functions: r.functions(), Errors: r.errorKinds(),
		Machine:       fmt.Sprintf("%d cores, %s/%s, load generator included", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH),
		PublishedRate: PublishedRate,
	}
	var err error
	if view.Details, err = r.details(); err != nil {
		return err
	}
	if len(r.Runs) > 1 {
		if view.Comparison, err = r.comparison(); err != nil {
			return err
		}
	}
	return pageTemplate.Execute(w, view)
}

var humps = regexp.MustCompile(`([a-z])([A-Z])`)

// breakable lets the name of a function break between its words, for narrow screens.
func breakable(name string) template.HTML {
	return template.HTML(humps.ReplaceAllString(template.HTMLEscapeString(name), "$1<wbr>$2"))
}

func count(n int) string { return humanize.Comma(int64(n)) }

func ms(d time.Duration) string {
	digits := 0
	if d < 100*time.Millisecond {
		digits = 2
	}
	return humanize.CommafWithDigits(float64(d)/float64(time.Millisecond), digits) + " ms"
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// share is a number with its part of the whole.
func share(n, of int) string {
	if n == 0 || of == 0 {
		return "0"
	}
	return fmt.Sprintf("%s (%.1f %%)", count(n), 100*float64(n)/float64(of))
}
