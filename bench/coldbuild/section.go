// Package coldbuild measures what somebody waits for who has just cloned the repository: the first build of the quickstart,
// with nothing compiled before, and then the quickstart itself.
package coldbuild

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/gpupay/gpupay/bench"
)

// Section is the quickstart's part of the page.
type Section struct{}

// Name is the section's name.
func (Section) Name() string { return "quickstart" }

const quickstart = "./examples/quickstart"

// Measure builds once, since that takes minutes, and runs once. The least work builds next to nothing and runs nothing.
func (Section) Measure(ctx context.Context, s bench.Settings) (r bench.Report, err error) {
	program := quickstart
	if s.Span < time.Millisecond {
		program = "unicode/utf8"
	}
	dir, err := os.MkdirTemp(s.Scratch, "quickstart-")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(dir)
	if dir, err = filepath.Abs(dir); err != nil {
		return r, err
	}
	t := tool{env: append(os.Environ(), "GOCACHE="+filepath.Join(dir, "cache"))}
	if t.root, err = t.output(ctx, "go", "list", "-m", "-f", "{{.Dir}}"); err != nil {
		return r, err
	}
	var m measured
	if m.packages, err = t.packages(ctx, program); err != nil {
		return r, err
	}
	if m.build, m.actions, err = t.build(ctx, program, dir); err != nil {
		return r, err
	}
	if program == quickstart {
		m.run, err = t.timed(ctx, "./quickstart.sh")
	}
	return m.page(), err
}

// used is what a command took.
type used struct {
	wall      time.Duration
	processor time.Duration // of all its processes
}

// tool runs commands in the repository, with a build cache of their own.
type tool struct {
	root string
	env  []string
}

func (t tool) timed(ctx context.Context, name string, args ...string) (used, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = t.root, t.env
	begun := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return used{}, fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return used{time.Since(begun), cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}, nil
}

func (t tool) output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Env = t.root, t.env
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w", cmd, err)
	}
	return strings.TrimSpace(string(out)), nil
}
