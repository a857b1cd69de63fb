package coldbuild

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// pkg is a package that the program is made of.
type pkg struct {
	path   string
	module string // "the standard library" if it is of that
	cgo    bool
}

const standard = "the standard library"

func (t tool) packages(ctx context.Context, program string) (map[string]pkg, error) {
	out, err := t.output(ctx, "go", "list", "-deps", "-f", "{{.ImportPath}} {{if .Standard}}-{{else}}{{.Module.Path}}{{end}} {{len .CgoFiles}}", program)
	if err != nil {
		return nil, err
	}
	all := make(map[string]pkg)
	for line := range strings.Lines(out) {
		var p pkg
		var c int
		if _, err := fmt.Sscan(line, &p.path, &p.module, &c); err != nil {
			return nil, fmt.Errorf("go list says %q: %w", line, err)
		}
		if p.cgo = c > 0; p.module == "-" {
			p.module = standard
		}
		all[p.path] = p
	}
	return all, nil
}

// action is a step of a build, as the go command writes it down.
type action struct {
	Mode, Package       string
	TimeStart, TimeDone time.Time
	CmdUser, CmdSys     time.Duration
}

// build builds a program with the empty cache, and returns what that took and its steps.
func (t tool) build(ctx context.Context, program, dir string) (used, []action, error) {
	graph := filepath.Join(dir, "actions.json")
	took, err := t.timed(ctx, "go", "build", "-debug-actiongraph="+graph, "-o", filepath.Join(dir, "out"), program)
	if err != nil {
		return took, nil, err
	}
	text, err := os.ReadFile(graph)
	if err != nil {
		return took, nil, err
	}
	var actions []action
	if err := json.Unmarshal(text, &actions); err != nil {
		return took, nil, fmt.Errorf("the go command's account of the build: %w", err)
	}
	return took, actions, nil
}
