package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// A mutant undoes one mend. Every test in its runs must pass without it and fail with it.
type mutant struct {
	name  string // of its file, without .txt
	row   string // what was mended
	why   string // what money or trust is lost with it
	runs  []runLine
	edits []edit
}

// An edit replaces whole lines of one file.
type edit struct {
	path     string // slash-separated, from the root of the repository
	old, new string // each empty or ending in a newline
}

// loadMutants reads every mutant of a folder. A folder without one is an error: it would mean that nothing is held.
func loadMutants(dir string) ([]*mutant, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%s has no mutants", dir)
	}
	var list []*mutant
	var bad []error
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		m, err := parseMutant(strings.TrimSuffix(filepath.Base(file), ".txt"), string(text))
		if err != nil {
			bad = append(bad, fmt.Errorf("%s: %w", filepath.Base(file), err))
			continue
		}
		list = append(list, m)
	}
	return list, errors.Join(bad...)
}

// parseMutant reads "key: value" lines, then pairs of sections: "-- path --" with the old text, "-- with --" with the new.
func parseMutant(name, text string) (*mutant, error) {
	m := &mutant{name: name}
	if !strings.HasSuffix(text, "\n") {
		return nil, errors.New("the last line has no end")
	}
	lines := strings.SplitAfter(text, "\n")
	lines = lines[:len(lines)-1]
	at := slices.IndexFunc(lines, func(l string) bool { return marker(l) != "" })
	if at < 0 {
		return nil, errors.New(`no "-- path --" section`)
	}
	for i, line := range lines[:at] {
		if err := m.header(strings.TrimSpace(line)); err != nil {
			return nil, fmt.Errorf("line %d: %w", i+1, err)
		}
	}
	if m.row == "" || m.why == "" || len(m.runs) == 0 {
		return nil, errors.New("row, run and why are needed")
	}
	return m, m.sections(lines[at:])
}

func (m *mutant) header(line string) error {
	if line == "" {
		return nil
	}
	key, value, found := strings.Cut(line, ":")
	value = strings.TrimSpace(value)
	if !found || value == "" {
		return fmt.Errorf("%q is no \"key: value\"", line)
	}
	switch {
	case key == "row" && m.row == "":
		m.row = value
	case key == "why" && m.why == "":
		m.why = value
	case key == "run" && len(m.runs) == 0, key == "also" && len(m.runs) > 0:
		run, err := parseRun(value)
		if err != nil {
			return err
		}
		m.runs = append(m.runs, run)
	default:
		return fmt.Errorf("%q is unknown, twice there or out of order: the keys are row, run, also (after run, any number) and why", key)
	}
	return nil
}

func (m *mutant) sections(lines []string) error {
	var path string
	var texts []string // of the sections so far, two for each edit
	for _, line := range lines {
		name := marker(line)
		switch {
		case name == "":
			texts[len(texts)-1] += line
			continue
		case len(texts)%2 == 1 && name != "with":
			return fmt.Errorf("the section %q comes where \"-- with --\" must", name)
		case len(texts)%2 == 0 && !filepath.IsLocal(name):
			return fmt.Errorf("%q is no path in the repository", name)
		case len(texts)%2 == 0:
			path = filepath.ToSlash(filepath.Clean(name))
			m.edits = append(m.edits, edit{path: path})
		}
		texts = append(texts, "")
	}
	if len(texts)%2 == 1 {
		return fmt.Errorf("the section of %s has no \"-- with --\"", path)
	}
	for i := range m.edits {
		m.edits[i].old, m.edits[i].new = texts[2*i], texts[2*i+1]
		if m.edits[i].old == m.edits[i].new {
			return fmt.Errorf("the edit of %s changes nothing", m.edits[i].path)
		}
	}
	return nil
}

// marker is the name in "-- name --", or empty.
func marker(line string) string {
	name, ok := strings.CutPrefix(strings.TrimRight(line, "\r\n"), "-- ")
	name, end := strings.CutSuffix(name, " --")
	if !ok || !end {
		return ""
	}
	return strings.TrimSpace(name)
}

// apply gives the changed files of a mutant by their paths. The tree under root is not touched.
func (m *mutant) apply(root string) (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, e := range m.edits {
		text, ok := files[e.path]
		if !ok {
			var err error
			if text, err = os.ReadFile(filepath.Join(root, filepath.FromSlash(e.path))); err != nil {
				return nil, err
			}
		}
		at, err := place(text, e.old)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.path, err)
		}
		files[e.path] = slices.Concat(text[:at], []byte(e.new), text[at+len(e.old):])
	}
	return files, nil
}

// place finds old, which must be whole lines that occur once.
func place(text []byte, old string) (int, error) {
	if old == "" {
		return 0, errors.New("the old text is empty")
	}
	at, count := -1, 0
	for line := 0; line < len(text); {
		if bytes.HasPrefix(text[line:], []byte(old)) {
			at, count = line, count+1
		}
		next := bytes.IndexByte(text[line:], '\n')
		if next < 0 {
			break
		}
		line += next + 1
	}
	if count != 1 {
		return 0, fmt.Errorf("the old text occurs %d times, not once: the list of mutants moves with the code", count)
	}
	return at, nil
}
