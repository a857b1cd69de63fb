package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

var (
	errUncompiled = errors.New("it does not compile")           // the end of a run that shows nothing: its code was never run
	errUnclear    = errors.New("what the tests say is unclear") // what they printed has to be read
)

// A workshop is where mutants are compiled and tested. What they share is compiled once.
type workshop struct {
	root, scratch string
	all           *schemata              // the mutants that are compiled together
	overlay       string                 // their files, as go wants them
	contracts     func() (string, error) // the folder where forge has compiled the tree as it is
	mu            sync.Mutex
	binaries      map[string]func() (string, error) // of the tests, by package
}

// newWorkshop keeps what it makes in a folder of its own, which end removes.
func newWorkshop(ctx context.Context, root string, list []*mutant) (*workshop, error) {
	scratch, err := os.MkdirTemp("", "gpupay-mutants-")
	if err != nil {
		return nil, err
	}
	w := &workshop{root: root, scratch: scratch, all: newSchemata(root, list), binaries: map[string]func() (string, error){}}
	w.contracts = sync.OnceValues(func() (string, error) { return w.compiled(ctx) })
	dir := filepath.Join(scratch, "schemata")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	if w.overlay, err = w.all.compiled(ctx, root, dir); err != nil {
		w.end()
	}
	return w, err
}

func (w *workshop) end() { os.RemoveAll(w.scratch) }

// An outcome is what the tests of one run said.
type outcome struct {
	passed, failed int
	log            string
}

// together runs a line with one of the mutants that are compiled together switched on, or with none.
func (w *workshop) together(ctx context.Context, r runLine, name string) (outcome, error) {
	if r.tool == "forge" {
		return w.alone(ctx, r, nil)
	}
	overlay := w.overlay
	if !r.plain() {
		overlay = ""
	}
	binary, err := w.binary(ctx, r, overlay)
	if err != nil {
		return outcome{log: err.Error()}, errUncompiled
	}
	return r.run(ctx, w.root, binary, overlay, name)
}

// alone runs a line over the tree with some of its files changed.
func (w *workshop) alone(ctx context.Context, r runLine, changed map[string][]byte) (outcome, error) {
	scratch, err := os.MkdirTemp(w.scratch, "mutant-")
	if err != nil {
		return outcome{}, err
	}
	defer os.RemoveAll(scratch)
	if r.tool == "forge" {
		return ran(w.forge(ctx, r, scratch, changed))
	}
	for file := range changed {
		if err := r.compiles(file); err != nil {
			return outcome{}, err
		}
	}
	root := w.root
	if embedded := func(file string) bool { return filepath.Ext(file) != ".go" }; slices.ContainsFunc(slices.Collect(maps.Keys(changed)), embedded) {
		root, err = filepath.Join(scratch, "tree"), copyModule(w.root, filepath.Join(scratch, "tree"), changed)
	}
	if err != nil {
		return outcome{}, err
	}
	overlay, err := writeOverlay(root, scratch, changed)
	if err != nil {
		return outcome{}, err
	}
	binary := filepath.Join(scratch, "tests")
	if err := r.compile(ctx, root, binary, overlay); err != nil {
		return outcome{log: err.Error()}, errUncompiled
	}
	return r.run(ctx, root, binary, overlay, "")
}

// copyModule copies what go compiles, with some files changed: an overlay does not reach a file that is embedded with its folder.
func copyModule(root, to string, changed map[string][]byte) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "node_modules"):
			return fs.SkipDir
		case d.IsDir():
			return os.MkdirAll(filepath.Join(to, name), 0o700)
		case !d.Type().IsRegular():
			return nil
		}
		text, replaced := changed[filepath.ToSlash(name)]
		if !replaced {
			if text, err = os.ReadFile(path); err != nil {
				return err
			}
		}
		return os.WriteFile(filepath.Join(to, name), text, 0o600)
	})
}

// compiles is an error for a file that go test does not compile: what a test reads from the disk cannot be replaced.
func (r runLine) compiles(file string) error {
	if ext := filepath.Ext(file); r.tool == "go" && ext != ".go" && ext != ".sql" {
		return fmt.Errorf("go test does not compile %s: only Go and the SQL that it embeds can be replaced", file)
	}
	return nil
}

// writeOverlay writes files and the list by which go compiles them instead of the tree's own.
func writeOverlay(root, dir string, changed map[string][]byte) (string, error) {
	replace := map[string]string{}
	for i, path := range slices.Sorted(maps.Keys(changed)) {
		file := filepath.Join(dir, strconv.Itoa(i)+filepath.Ext(path))
		if err := os.WriteFile(file, changed[path], 0o600); err != nil {
			return "", err
		}
		replace[filepath.Join(root, filepath.FromSlash(path))] = file
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "overlay.json")
	return file, os.WriteFile(file, overlay, 0o600)
}

// compilerMemory lets the compiler take more memory and a third less time.
const compilerMemory = "GOGC=400"

// compile makes the tests of a line's package a program.
func (r runLine) compile(ctx context.Context, root, file, overlay string) error {
	args := slices.Concat([]string{"test", "-c", "-vet=off", "-ldflags=-s -w", "-o", file, "-overlay=" + overlay}, r.build, []string{"./" + filepath.ToSlash(r.folder)})
	if out, err := command(ctx, filepath.Join(root, r.dir), []string{compilerMemory}, "go", args...); err != nil {
		return fmt.Errorf("compiling %s: %w\n%s", r.folder, err, out)
	}
	return nil
}

// run runs a line's tests. What they build has the mutants too.
func (r runLine) run(ctx context.Context, root, binary, overlay, name string) (outcome, error) {
	args := []string{"tool", "test2json", binary, "-test.v=test2json", "-test.paniconexit0"}
	for _, flag := range r.flags {
		args = append(args, "-test."+strings.TrimPrefix(flag, "-"))
	}
	env := []string{activeMutant + "=" + name, strings.TrimSpace("GOFLAGS=" + os.Getenv("GOFLAGS") + " -overlay=" + overlay)}
	out, err := command(ctx, filepath.Join(root, r.dir, r.folder), env, "go", append(args, r.args...)...)
	return ran(goOutcome(out, err))
}

// ran has a line that ran no test be an error.
func ran(o outcome, err error) (outcome, error) {
	if err == nil && o.passed+o.failed == 0 {
		err = errors.New("it ran no test, or skipped all")
	}
	return o, err
}

// binary compiles the tests of a line's package with all mutants in it, where no line before has.
func (w *workshop) binary(ctx context.Context, r runLine, overlay string) (string, error) {
	key := fmt.Sprint(r.dir, " ", r.folder, r.build)
	w.mu.Lock()
	made := w.binaries[key]
	if made == nil {
		file := filepath.Join(w.scratch, fmt.Sprintf("%d.test", len(w.binaries)))
		made = sync.OnceValues(func() (string, error) { return file, r.compile(ctx, w.root, file, overlay) })
		w.binaries[key] = made
	}
	w.mu.Unlock()
	return made()
}

// command gives what a program printed, and as an error whether it failed.
func command(ctx context.Context, dir string, env []string, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return out.Bytes(), err
}

// goOutcome counts the tests in the events of go test -json. A test binary that ends without its test's end (a panic, the
// timeout, os.Exit) failed.
func goOutcome(out []byte, err error) (outcome, error) {
	var o outcome
	var log strings.Builder
	ran := false
	for line := range bytes.Lines(out) {
		var e struct{ Action, Test, Output string }
		if json.Unmarshal(line, &e) != nil {
			log.Write(line) // of go itself
			continue
		}
		log.WriteString(e.Output)
		switch {
		case e.Test == "":
		case e.Action == "run":
			ran = true
		case e.Action == "pass":
			o.passed++
		case e.Action == "fail":
			o.failed++
		}
	}
	o.log = log.String()
	switch {
	case err != nil && !ran:
		return o, fmt.Errorf("%w: go test failed before a test ran: %w", errUnclear, err)
	case err != nil && o.failed == 0:
		o.failed = 1
	case err == nil:
		o.failed = 0
	}
	return o, nil
}

// forgeNeeds is what forge reads; out and cache spare it the compilation of what did not change.
var forgeNeeds = []string{"contracts", "foundry.toml", "channel/testdata", "sdk/wire/testdata", "out", "cache"}

// forge runs forge test in a copy of the tree.
func (w *workshop) forge(ctx context.Context, r runLine, scratch string, changed map[string][]byte) (outcome, error) {
	from, err := w.contracts()
	if err == nil {
		err = os.CopyFS(scratch, os.DirFS(from))
	}
	if err != nil {
		return outcome{}, err
	}
	for path, text := range changed {
		file := filepath.Join(scratch, filepath.FromSlash(path))
		if _, err := os.Stat(file); err != nil {
			return outcome{}, fmt.Errorf("forge does not compile %s", path)
		}
		if err := os.WriteFile(file, text, 0o600); err != nil {
			return outcome{}, err
		}
	}
	out, err := w.runForge(ctx, scratch, append([]string{"test"}, r.flags...))
	return forgeOutcome(string(out), err)
}

// compiled is a copy of what forge reads, compiled as it is: each mutant then compiles what it changes.
func (w *workshop) compiled(ctx context.Context) (string, error) {
	dir := filepath.Join(w.scratch, "contracts")
	for _, path := range forgeNeeds {
		from := filepath.Join(w.root, path)
		if _, err := os.Stat(from); errors.Is(err, os.ErrNotExist) && (path == "out" || path == "cache") {
			continue
		}
		if err := copyTree(from, filepath.Join(dir, path)); err != nil {
			return "", err
		}
	}
	if out, err := w.runForge(ctx, dir, []string{"build"}); err != nil {
		return "", fmt.Errorf("forge build: %w\n%s", err, out)
	}
	return dir, os.Remove(filepath.Join(dir, "node_modules"))
}

// runForge runs the native program, since npm's wrapper exits 0 also when it failed. Gas figures are not compared: a mutant
// has to be found by what it does.
func (w *workshop) runForge(ctx context.Context, dir string, args []string) ([]byte, error) {
	if err := os.Symlink(filepath.Join(w.root, "node_modules"), filepath.Join(dir, "node_modules")); err != nil {
		return nil, err
	}
	binary, err := filepath.Glob(filepath.Join(w.root, "node_modules/@foundry-rs/forge-*/bin/forge"))
	if err != nil || len(binary) != 1 {
		return nil, errors.New("forge is not installed: npm ci")
	}
	env := []string{"FOUNDRY_GAS_SNAPSHOT_CHECK=false", "FOUNDRY_GAS_SNAPSHOT_EMIT=false", "NO_COLOR=1"}
	return command(ctx, dir, env, binary[0], args...)
}

func copyTree(from, to string) error {
	if info, err := os.Stat(from); err != nil {
		return err
	} else if info.IsDir() {
		return os.CopyFS(to, os.DirFS(from))
	}
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, text, 0o600)
}

var (
	suites = regexp.MustCompile(`(\d+) passed; (\d+) failed; \d+ skipped`)
	fails  = regexp.MustCompile(`(?m)^\[FAIL`)
)

// forgeOutcome counts tests by the line that ends each suite, and failures also by their own: forge may end before it
// sums up.
func forgeOutcome(out string, err error) (outcome, error) {
	o := outcome{log: out}
	if strings.Contains(out, "Compiler run failed") {
		return o, errUncompiled
	}
	for _, m := range suites.FindAllStringSubmatch(out, -1) {
		passed, _ := strconv.Atoi(m[1])
		failed, _ := strconv.Atoi(m[2])
		o.passed += passed
		o.failed += failed
	}
	if o.failed == 0 {
		o.failed = len(fails.FindAllString(out, -1))
	}
	if (err != nil) != (o.failed > 0) {
		return o, fmt.Errorf("%w: forge counts %d failures and ends with: %v", errUnclear, o.failed, err)
	}
	return o, nil
}
