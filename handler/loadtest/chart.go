package loadtest

import (
	"fmt"
	"html/template"

	"github.com/dustin/go-humanize"
	"github.com/go-analyze/charts"
)

// The charts are drawn by go-analyze/charts as SVG: it is the maintained successor of go-chart, draws without a
// browser, and what it draws stands in the page itself. So the report is one file that needs no script and no
// network.

// line is one line of a chart.
type line struct {
	name   string
	values []float64
	color  string // #rrggbb
}

// gap is where a line is interrupted.
var gap = charts.GetNullValue()

// Colours that can be told apart also by the colour-blind.
const (
	blue   = "#0072B2"
	orange = "#E69F00"
	red    = "#CC3311"
	green  = "#009E73"
	grey   = "#94A3B8"
	faint  = "#E2E8F0"
	ink    = "#334155"
)

// Size of a chart in pixels. It is scaled to the page; this small, its text can be read on a phone too.
const (
	chartWidth  = 480
	chartHeight = 260
)

// drawing is a chart that is to be drawn: lines over a timeline.
type drawing struct {
	title, unit string
	lines       []line
}

// figure is a chart with its title.
type figure struct {
	Title  string
	Legend []key
	SVG    template.HTML
}

// key is an entry of a legend. The legend stands in the page, where it wraps and keeps its size on a phone.
type key struct{ Name, Color string }

// draw draws charts over one timeline.
func draw(t timeline, drawings ...drawing) ([]figure, error) {
	var figures []figure
	for _, d := range drawings {
		svg, err := d.svg(t)
		if err != nil {
			return nil, fmt.Errorf("draw %s: %w", d.title, err)
		}
		f := figure{Title: d.title, SVG: template.HTML(svg)}
		for _, l := range d.lines {
			f.Legend = append(f.Legend, key{l.name, l.color})
		}
		figures = append(figures, f)
	}
	return figures, nil
}

func (d drawing) svg(t timeline) ([]byte, error) {
	var values [][]float64
	var colors []charts.Color
	for _, l := range d.lines {
		padded := make([]float64, t.n)
		for i := range padded {
			padded[i] = gap
		}
		copy(padded, l.values)
		values, colors = append(values, padded), append(colors, charts.ColorFromHex(l.color))
	}
	options := charts.NewLineChartOptionWithData(values)
	options.Theme = charts.MakeTheme(charts.ThemeOption{
		SeriesColors: colors, BackgroundColor: charts.ColorWhite, TextColor: charts.ColorFromHex(ink),
		AxisStrokeColor: charts.ColorFromHex(grey), AxisSplitLineColor: charts.ColorFromHex(faint),
	})
	options.Padding = charts.NewBox(0, 8, 14, 4)
	options.Symbol.Shape = charts.SymbolNone
	options.LineStrokeWidth = 2
	options.XAxis.Labels, options.XAxis.Title, options.XAxis.LabelCount = t.labels()
	options.XAxis.BoundaryGap = charts.Ptr(false)
	options.XAxis.LabelFontStyle = charts.FontStyle{FontSize: 11}
	options.XAxis.TitleFontStyle = charts.FontStyle{FontSize: 11}
	options.YAxis[0].Title = d.unit
	options.YAxis[0].TitleFontStyle = charts.FontStyle{FontSize: 11}
	options.YAxis[0].PreferNiceIntervals = charts.Ptr(true)
	options.YAxis[0].Min = charts.Ptr(0.0)
	options.YAxis[0].LabelFontStyle = charts.FontStyle{FontSize: 11}
	options.ValueFormatter = humanize.Ftoa
	p := charts.NewPainter(charts.PainterOptions{OutputFormat: charts.ChartOutputSVG, Width: chartWidth, Height: chartHeight})
	if err := p.LineChart(options); err != nil {
		return nil, err
	}
	return p.Bytes()
}
