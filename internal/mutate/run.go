package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// errUncompiled is the end of a run that shows nothing, since its code was never run.
var errUncompiled = errors.New("it does not compile")

// An outcome is what the tests of one run said.
type outcome struct {
	passed, failed int
	log            string
}

// test runs a line over the tree with some of its files changed.
func (r runLine) test(ctx context.Context, root string, changed map[string][]byte) (outcome, error) {
	scratch, err := os.MkdirTemp("", "gpupay-mutant-")
	if err != nil {
		return outcome{}, err
	}
	defer os.RemoveAll(scratch)
	var o outcome
	if r.tool == "forge" {
		o, err = r.forge(ctx, root, scratch, changed)
	} else {
		o, err = r.gotest(ctx, root, scratch, changed)
	}
	if err == nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	if err == nil && o.passed+o.failed == 0 {
		err = errors.New("it ran no test, or skipped all")
	}
	return o, err
}

// gotest compiles the changed files instead of the tree's own.
func (r runLine) gotest(ctx context.Context, root, scratch string, changed map[string][]byte) (outcome, error) {
	replace := map[string]string{}
	for i, path := range slices.Sorted(maps.Keys(changed)) {
		if ext := filepath.Ext(path); ext != ".go" && ext != ".sql" {
			return outcome{}, fmt.Errorf("go test does not compile %s: only Go and the SQL that it embeds can be replaced", path)
		}
		file := filepath.Join(scratch, strconv.Itoa(i)+filepath.Ext(path))
		if err := os.WriteFile(file, changed[path], 0o600); err != nil {
			return outcome{}, err
		}
		replace[filepath.Join(root, filepath.FromSlash(path))] = file
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return outcome{}, err
	}
	file := filepath.Join(scratch, "overlay.json")
	if err := os.WriteFile(file, overlay, 0o600); err != nil {
		return outcome{}, err
	}
	args := slices.Concat([]string{"test", "-json", "-vet=off", "-count=1", "-overlay=" + file}, r.flags, local(r.packages))
	if len(r.args) > 0 {
		args = slices.Concat(args, []string{"-args"}, r.args)
	}
	out, err := command(ctx, filepath.Join(root, r.dir), nil, "go", args...)
	return goOutcome(out, err)
}

// local makes folders what go takes for packages of this module.
func local(folders []string) []string {
	var packages []string
	for _, f := range folders {
		packages = append(packages, "./"+filepath.ToSlash(filepath.Clean(f)))
	}
	return packages
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
		case e.Action == "build-fail":
			return outcome{log: log.String()}, errUncompiled
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
		return o, fmt.Errorf("go test failed before a test ran: %w", err)
	case err != nil && o.failed == 0:
		o.failed = 1
	case err == nil:
		o.failed = 0
	}
	return o, nil
}

// forgeNeeds is what forge reads; out and cache spare it the compilation of what did not change.
var forgeNeeds = []string{"contracts", "foundry.toml", "channel/testdata", "out", "cache"}

// forge runs the native program, since npm's wrapper exits 0 also when it failed, over a copy of the tree. Gas figures are
// not compared: a mutant has to be found by what it does.
func (r runLine) forge(ctx context.Context, root, scratch string, changed map[string][]byte) (outcome, error) {
	for _, path := range forgeNeeds {
		from := filepath.Join(root, path)
		if _, err := os.Stat(from); errors.Is(err, os.ErrNotExist) && (path == "out" || path == "cache") {
			continue
		}
		if err := copyTree(from, filepath.Join(scratch, path)); err != nil {
			return outcome{}, err
		}
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
	if err := os.Symlink(filepath.Join(root, "node_modules"), filepath.Join(scratch, "node_modules")); err != nil {
		return outcome{}, err
	}
	binary, err := filepath.Glob(filepath.Join(root, "node_modules/@foundry-rs/forge-*/bin/forge"))
	if err != nil || len(binary) != 1 {
		return outcome{}, errors.New("forge is not installed: npm ci")
	}
	env := []string{"FOUNDRY_GAS_SNAPSHOT_CHECK=false", "FOUNDRY_GAS_SNAPSHOT_EMIT=false", "NO_COLOR=1"}
	out, err := command(ctx, scratch, env, binary[0], append([]string{"test"}, r.flags...)...)
	return forgeOutcome(string(out), err)
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

var suites = regexp.MustCompile(`(\d+) passed; (\d+) failed; \d+ skipped`)

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
	if (err != nil) != (o.failed > 0) {
		return o, fmt.Errorf("forge counts %d failures and ends with: %v", o.failed, err)
	}
	return o, nil
}
