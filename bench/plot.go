package bench

import (
	"image/color"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// palette is told apart also without colours: by lightness, and by the marks.
var (
	palette = []color.RGBA{
		{0, 90, 160, 255}, {220, 120, 0, 255}, {0, 140, 100, 255}, {180, 60, 120, 255},
		{100, 100, 100, 255}, {90, 170, 220, 255}, {150, 120, 20, 255}, {60, 40, 120, 255},
	}
	marks = []draw.GlyphDrawer{
		draw.CircleGlyph{}, draw.SquareGlyph{}, draw.TriangleGlyph{}, draw.CrossGlyph{}, draw.PlusGlyph{}, draw.RingGlyph{},
	}
)

// Draw writes the plot to an SVG file.
func (p Plot) Draw(path string) error {
	g := plot.New()
	g.Title.Text, g.X.Label.Text, g.Y.Label.Text = p.Title, p.X, p.Y
	lines := p.Lines
	if !p.Linear {
		lines = drawable(p.Lines)
	}
	if !p.Linear && len(lines) > 0 {
		g.X.Scale, g.Y.Scale = plot.LogScale{}, plot.LogScale{}
		g.X.Tick.Marker, g.Y.Tick.Marker = p.ticks(), plot.LogTicks{Prec: -1}
	}
	g.BackgroundColor = color.White
	g.Add(plotter.NewGrid())
	for i, l := range lines {
		if p.Linear {
			if err := l.trace(g, palette[i%len(palette)]); err != nil {
				return err
			}
			continue
		}
		if err := l.add(g, palette[i%len(palette)], marks[i%len(marks)]); err != nil {
			return err
		}
	}
	if !p.Linear && len(lines) > 0 {
		widen(&g.X)
		widen(&g.Y)
	}
	g.Legend.Top, g.Legend.Left = false, false
	g.Legend.YOffs, g.Legend.XOffs = vg.Points(4), -vg.Points(4)
	return g.Save(20*vg.Centimeter, 12*vg.Centimeter, path)
}

// widen gives a single value a place on a logarithmic axis. The library would subtract one from it.
func widen(a *plot.Axis) {
	if a.Min == a.Max {
		a.Min, a.Max = a.Min/2, a.Max*2
	}
}

// ticks are where something was measured.
func (p Plot) ticks() plot.ConstantTicks {
	var ticks plot.ConstantTicks
	seen := make(map[float64]bool)
	for _, l := range p.Lines {
		for _, at := range l.Points {
			if !seen[at.X] {
				seen[at.X] = true
				ticks = append(ticks, plot.Tick{Value: at.X, Label: Count(int(at.X))})
			}
		}
	}
	return ticks
}

// drawable is what logarithmic axes have a place for. A figure may be too small to be measured.
func drawable(lines []Line) (some []Line) {
	for _, l := range lines {
		all := l.Points
		l.Points = nil
		for _, at := range all {
			if at.X > 0 && at.Y.Low > 0 {
				l.Points = append(l.Points, at)
			}
		}
		if len(l.Points) > 0 {
			some = append(some, l)
		}
	}
	return some
}

// spans are points with their spread, as plotter takes them.
type spans []Point

func (s spans) Len() int                    { return len(s) }
func (s spans) XY(i int) (float64, float64) { return s[i].X, s[i].Y.Median }
func (s spans) YError(i int) (low, high float64) {
	return s[i].Y.Median - s[i].Y.Low, s[i].Y.High - s[i].Y.Median
}

func (l Line) add(g *plot.Plot, c color.RGBA, mark draw.GlyphDrawer) error {
	line, points, err := plotter.NewLinePoints(spans(l.Points))
	if err != nil {
		return err
	}
	bars, err := plotter.NewYErrorBars(spans(l.Points))
	if err != nil {
		return err
	}
	line.Color, points.Color, bars.Color = c, c, c
	points.Shape, points.Radius = mark, vg.Points(3)
	g.Add(line, points, bars)
	g.Legend.Add(l.Name, line, points)
	return nil
}

// trace adds the line alone.
func (l Line) trace(g *plot.Plot, c color.RGBA) error {
	line, err := plotter.NewLine(spans(l.Points))
	if err != nil {
		return err
	}
	line.Color = c
	g.Add(line)
	g.Legend.Add(l.Name, line)
	return nil
}
