package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// kind orders the rows of the report: ratios travel between machines, so they come first.
type kind int

const (
	ratio  kind = iota // of two figures of the same run
	bound              // an absolute figure with a bar
	figure             // an absolute figure without one
)

// row is one line of the report.
type row struct {
	section string
	kind    kind
	name    string
	value   string
	bar     string // as it is printed, "" for none
	missed  bool
}

// report collects what the sections found.
type report struct{ rows []row }

// ratio adds a quotient that must be at least bar; aim is what is hoped for, 0 for nothing more than the bar.
func (r *report) ratio(section, name string, ours, theirs, bar, aim float64) {
	q := quotient(ours, theirs)
	text := fmt.Sprintf(">= %.2f", bar)
	if aim > 0 {
		text += fmt.Sprintf(" (aim %.2f)", aim)
	}
	r.rows = append(r.rows, row{section, ratio, name, fmt.Sprintf("%.2f", q), text, !(q >= bar)})
}

// ratioAtMost adds a quotient that must not be over bar.
func (r *report) ratioAtMost(section, name string, ours, theirs, bar float64) {
	q := quotient(ours, theirs)
	r.rows = append(r.rows, row{section, ratio, name, fmt.Sprintf("%.2f", q), fmt.Sprintf("<= %.2f", bar), !(q <= bar)})
}

// quotient of nothing is 0/0, which meets no bar.
func quotient(a, b float64) float64 { return a / b }

// atMost adds a duration that must not be over bar.
func (r *report) atMost(section, name string, d, bar time.Duration) {
	r.rows = append(r.rows, row{section, bound, name, readable(d), "<= " + bar.String(), d > bar})
}

// numberAtMost adds a number that must not be over bar.
func (r *report) numberAtMost(section, name string, n, bar float64, unit string) {
	r.rows = append(r.rows, row{section, bound, name, fmt.Sprintf("%.1f%s", n, unit), fmt.Sprintf("<= %g%s", bar, unit), !(n <= bar)})
}

// figure adds what has no bar.
func (r *report) figure(section, name, format string, args ...any) {
	r.rows = append(r.rows, row{section, figure, name, fmt.Sprintf(format, args...), "", false})
}

// missed returns how many bars there are and the rows that did not meet theirs.
func (r *report) missed() (bars int, missed []row) {
	for _, row := range r.rows {
		if row.bar == "" {
			continue
		}
		bars++
		if row.missed {
			missed = append(missed, row)
		}
	}
	return bars, missed
}

// print writes the table and, after it, clearly, what was not met.
func (r *report) print(out io.Writer) error {
	rows := slices.Clone(r.rows)
	slices.SortStableFunc(rows, func(a, b row) int { return int(a.kind) - int(b.kind) })
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\twhat\tmeasured\tbar\t")
	for _, row := range rows {
		verdict := ""
		switch {
		case row.missed:
			verdict = "NOT met"
		case row.bar != "":
			verdict = "met"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", row.section, row.name, row.value, row.bar, verdict)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write the table: %w", err)
	}
	bars, missed := r.missed()
	if len(missed) == 0 {
		_, err := fmt.Fprintf(out, "\nAll %d bars are met.\n", bars)
		return err
	}
	fmt.Fprintf(out, "\n%d of %d bars are NOT met:\n", len(missed), bars)
	for _, row := range missed {
		fmt.Fprintf(out, "  %s  %s: %s, the bar is %s\n", row.section, row.name, row.value, row.bar)
	}
	return nil
}

// readable rounds a duration to three figures or so.
func readable(d time.Duration) string {
	switch {
	case d >= time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d >= time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	}
	return d.Round(time.Microsecond).String()
}

// thousands writes a rate or count as 46.9 k.
func thousands(n float64) string {
	switch {
	case n >= 1e6:
		return fmt.Sprintf("%.2f M", n/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%.1f k", n/1e3)
	}
	return fmt.Sprintf("%.0f", n)
}

// median returns the middle value, the lower one of two, and 0 of nothing.
func median(of []float64) float64 {
	if len(of) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(of))[(len(of)-1)/2]
}
