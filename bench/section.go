package bench

import (
	"context"
	"time"
)

// A Section is one part of the page.
type Section interface {
	// Name selects the section on the command line and names its plots' files.
	Name() string
	// Measure does the work. An aim that the settings left out is in the report all the same, as not measured.
	Measure(ctx context.Context, s Settings) (Report, error)
}

// Settings bound a run.
type Settings struct {
	Rounds  int           // that count, one after the other; the page asks for seven or more
	Span    time.Duration // how long one contender is to work in a round
	Most    int           // leave out what needs more channels than this
	Scratch string        // a directory on the disk that is measured, removed after the run
	Log     func(format string, args ...any)
}

// Report is what a section found.
type Report struct {
	Title  string
	About  []string // paragraphs before the tables: what is measured, against what, and where it is unfair
	Tables []Table
	Aims   []Aim
	Plots  []Plot
	Files  []File
	Notes  []string // paragraphs after the plots
}

// Table is one table of the page.
type Table struct {
	Title string
	Head  []string
	Rows  [][]string
}

// Result says what became of an aim.
type Result string

const (
	Met         Result = "met"
	Missed      Result = "missed"
	NotMeasured Result = "not measured"
)

// Aim is a figure that was set before it was measured.
type Aim struct {
	Text   string
	Result Result
	Figure string // what was measured
}

// Judge marks an aim.
func Judge(text string, met bool, figure string) Aim {
	if met {
		return Aim{text, Met, figure}
	}
	return Aim{text, Missed, figure}
}

// Plot is a picture of the page: lines over whole numbers, both axes logarithmic unless it says otherwise.
type Plot struct {
	Name  string // of its file, without the section's name
	Title string
	X, Y  string // the axes, with units
	Lines []Line

	Linear bool // both axes are linear, and the points too many to mark
}

// File is kept beside the plots: a profile, or raw figures.
type File struct {
	Name string // without the section's name
	Data []byte
}

// Line is one contender in a plot.
type Line struct {
	Name   string
	Points []Point
}

// Point is a median with its spread.
type Point struct {
	X float64
	Y Spread
}
