package bench

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/pprof/profile"
)

// Parts divide the processors' time; a sample of a profile is of the first part whose word is in a function of its stack.
type Parts []struct{ Name, Word string }

// Table divides a profile among parts and what is left, for pieces of work that take each microseconds of a processor. It also
// returns the profile without where on this machine sources and programs are.
func (parts Parts) Table(data []byte, each float64, piece string) (Table, []byte, error) {
	p, err := profile.ParseData(data)
	if err != nil {
		return Table{}, nil, err
	}
	spent, total := make(map[string]int64), int64(0)
	for _, sample := range p.Sample {
		spent[parts.of(sample)] += sample.Value[1]
		total += sample.Value[1]
	}
	t := Table{Head: []string{"part", "share", "of " + piece}}
	for _, part := range append(slices.Clone(parts), struct{ Name, Word string }{Name: other}) {
		if spent[part.Name] > 0 {
			share := float64(spent[part.Name]) / float64(total)
			t.Rows = append(t.Rows, []string{part.Name, fmt.Sprintf("%.0f%%", 100*share), Number(share*each) + " us"})
		}
	}
	for _, f := range p.Function {
		f.Filename = filepath.Base(f.Filename)
	}
	for _, m := range p.Mapping {
		m.File = filepath.Base(m.File)
	}
	var out bytes.Buffer
	err = p.Write(&out)
	return t, out.Bytes(), err
}

const other = "other"

func (parts Parts) of(s *profile.Sample) string {
	for _, part := range parts {
		if slices.ContainsFunc(s.Location, func(l *profile.Location) bool {
			return slices.ContainsFunc(l.Line, func(line profile.Line) bool { return strings.Contains(line.Function.Name, part.Word) })
		}) {
			return part.Name
		}
	}
	return other
}
