// Command plot draws a figure that go test -bench printed, from its standard input to an SVG file: the median of the rounds,
// with the least and the most of them, both axes logarithmic.
//
//	go run ./plot -match Accept/inflight=8 -x channels -line payee -figure vouchers/s -o received.svg < results.txt
package main

import (
	"bufio"
	"cmp"
	"flag"
	"fmt"
	"image/color"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

func main() {
	var w want
	flag.StringVar(&w.match, "match", "", "the benchmarks whose names match (`regexp`)")
	flag.StringVar(&w.x, "x", "", "the part of a name, as in channels=64, that is the horizontal axis")
	flag.StringVar(&w.line, "line", "", "the part that tells lines apart")
	flag.StringVar(&w.figure, "figure", "", "what is drawn, by its unit")
	out := flag.String("o", "", "the SVG file")
	flag.Parse()
	lines, err := w.read(os.Stdin)
	if err == nil {
		err = w.draw(lines, *out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "plot:", err)
		os.Exit(1)
	}
}

type want struct{ match, x, line, figure string }

// lines are the rounds' figures, by line and place on the axis.
type lines map[string]map[float64][]float64

// cores is what go test puts behind a name.
var cores = regexp.MustCompile(`-\d+$`)

func (w want) read(in io.Reader) (lines, error) {
	match, err := regexp.Compile(w.match)
	if err != nil {
		return nil, err
	}
	all := make(lines)
	scanner := bufio.NewScanner(in)
	for scanner.Scan() {
		fields := strings.Fields(scanner.Text())
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") || !match.MatchString(fields[0]) {
			continue
		}
		parts := make(map[string]string)
		for _, part := range strings.Split(cores.ReplaceAllString(fields[0], ""), "/") {
			key, value, _ := strings.Cut(part, "=")
			parts[key] = value
		}
		x, err := strconv.ParseFloat(parts[w.x], 64)
		at := slices.Index(fields, w.figure)
		if err != nil || at < 0 {
			continue
		}
		y, err := strconv.ParseFloat(fields[at-1], 64)
		if err != nil || x <= 0 || y <= 0 { // a logarithmic axis has no place for it
			continue
		}
		name := parts[w.line]
		if all[name] == nil {
			all[name] = make(map[float64][]float64)
		}
		all[name][x] = append(all[name][x], y)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("no benchmark of %q has %s and %s", w.match, w.x, w.figure)
	}
	return all, scanner.Err()
}

// points are medians with their spread, as plotter takes them.
type points []point

type point struct{ x, median, least, most float64 }

func (p points) Len() int                    { return len(p) }
func (p points) XY(i int) (float64, float64) { return p[i].x, p[i].median }
func (p points) YError(i int) (low, high float64) {
	return p[i].median - p[i].least, p[i].most - p[i].median
}
func (p *points) add(x float64, rounds []float64) {
	slices.Sort(rounds)
	n := len(rounds)
	*p = append(*p, point{x, (rounds[(n-1)/2] + rounds[n/2]) / 2, rounds[0], rounds[n-1]})
}

// palette is told apart also without colours: by lightness, and by the marks.
var palette = []color.RGBA{{0, 90, 160, 255}, {220, 120, 0, 255}, {0, 140, 100, 255}, {180, 60, 120, 255},
	{100, 100, 100, 255}, {90, 170, 220, 255}, {150, 120, 20, 255}, {60, 40, 120, 255}, {0, 0, 0, 255}}
var marks = []draw.GlyphDrawer{draw.CircleGlyph{}, draw.SquareGlyph{}, draw.TriangleGlyph{}, draw.CrossGlyph{}, draw.PlusGlyph{}, draw.RingGlyph{}}

func (w want) draw(all lines, path string) error {
	g := plot.New()
	g.X.Label.Text, g.Y.Label.Text = w.x, w.figure
	g.X.Scale, g.Y.Scale = plot.LogScale{}, plot.LogScale{}
	g.BackgroundColor = color.White
	g.Add(plotter.NewGrid())
	labels := make(map[float64]string)
	names := make([]string, 0, len(all))
	for name := range all {
		names = append(names, name)
	}
	slices.Sort(names)
	for i, name := range names {
		var p points
		for x, rounds := range all[name] {
			p.add(x, rounds)
			labels[x] = fmt.Sprint(x)
		}
		slices.SortFunc(p, func(a, b point) int { return cmp.Compare(a.x, b.x) })
		line, glyphs, err := plotter.NewLinePoints(p)
		if err != nil {
			return err
		}
		bars, err := plotter.NewYErrorBars(p)
		if err != nil {
			return err
		}
		c := palette[i%len(palette)]
		line.Color, glyphs.Color, bars.Color = c, c, c
		glyphs.Shape, glyphs.Radius = marks[i%len(marks)], vg.Points(3)
		g.Add(line, glyphs, bars)
		g.Legend.Add(name, line, glyphs)
	}
	var ticks plot.ConstantTicks // where something was measured
	for x, label := range labels {
		ticks = append(ticks, plot.Tick{Value: x, Label: label})
	}
	g.X.Tick.Marker, g.Y.Tick.Marker = ticks, plot.LogTicks{Prec: -1}
	for _, axis := range []*plot.Axis{&g.X, &g.Y} {
		if axis.Min == axis.Max { // the library would subtract one
			axis.Min, axis.Max = axis.Min/2, axis.Max*2
		}
	}
	return g.Save(20*vg.Centimeter, 12*vg.Centimeter, path)
}
