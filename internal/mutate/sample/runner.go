package main

import (
	"context"
	"fmt"
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

// A runner runs the tests of one compiled package.
type runner struct {
	binary, dir, scratch string
	slots                chan struct{}

	mu    sync.Mutex
	tests []test
}

// A test is one that passes without a mutation.
type test struct {
	name    string
	took    time.Duration
	reaches map[int]bool
}

const (
	longest = 3 * time.Minute  // of one test alone
	quick   = 20 * time.Second // what is tried first takes no longer
)

// learn runs each test by itself, and notes what it reaches. One that fails or is skipped can show nothing.
func (r *runner) learn(ctx context.Context) error {
	out, err := r.command(ctx, longest, "", "-test.list", ".").Output()
	if err != nil {
		return fmt.Errorf("listing the tests: %w", err)
	}
	var wait sync.WaitGroup
	for _, name := range strings.Fields(string(out)) {
		if !strings.HasPrefix(name, "Test") && !strings.HasPrefix(name, "Fuzz") && !strings.HasPrefix(name, "Example") {
			continue
		}
		wait.Go(func() {
			r.slots <- struct{}{}
			defer func() { <-r.slots }()
			trace := filepath.Join(r.scratch, "trace "+name)
			begun := time.Now()
			out, err := r.command(ctx, longest, trace, "-test.run", "^"+name+"$", "-test.v").CombinedOutput()
			if err != nil || !strings.Contains(string(out), "--- PASS: "+name+" ") {
				fmt.Printf("not used  %s: %v\n", name, err)
				return
			}
			t := test{name: name, took: time.Since(begun), reaches: map[int]bool{}}
			text, _ := os.ReadFile(trace) // there is none where nothing is reached
			for _, id := range strings.Fields(string(text)) {
				number, _ := strconv.Atoi(id)
				t.reaches[number] = true
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			r.tests = append(r.tests, t)
		})
	}
	wait.Wait()
	slices.SortFunc(r.tests, func(a, b test) int { return int(a.took - b.took) })
	return ctx.Err()
}

func (r *runner) command(ctx context.Context, limit time.Duration, trace string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, r.binary, append(args, "-test.timeout="+limit.String())...)
	cmd.Dir = r.dir
	cmd.Env = append(os.Environ(), "GPUPAY_MUTANT=0", "GPUPAY_MUTANT_TRACE="+trace)
	cmd.WaitDelay = time.Second
	return cmd
}

// all gives, for each mutation, the test that finds it.
func (r *runner) all(ctx context.Context, list []*mutation) map[*mutation]string {
	var wait sync.WaitGroup
	verdicts := map[*mutation]string{}
	for _, m := range list {
		wait.Go(func() {
			killer := r.killer(ctx, m)
			r.mu.Lock()
			defer r.mu.Unlock()
			verdicts[m] = killer
		})
	}
	wait.Wait()
	return verdicts
}

// killer tries the quick tests that reach a mutation, then the others.
func (r *runner) killer(ctx context.Context, m *mutation) string {
	var first, rest []test
	var sum time.Duration
	for _, t := range r.tests { // the quickest come first
		switch {
		case !t.reaches[m.number]:
		case sum+t.took <= quick || len(first) == 0:
			first = append(first, t)
			sum += t.took
		default:
			rest = append(rest, t)
		}
	}
	if killer := r.try(ctx, m, first); killer != "" {
		return killer
	}
	return r.try(ctx, m, rest)
}

var failed = regexp.MustCompile(`(?m)^--- FAIL: (\S+)`)

func (r *runner) try(ctx context.Context, m *mutation, tests []test) string {
	if len(tests) == 0 || ctx.Err() != nil {
		return ""
	}
	r.slots <- struct{}{}
	defer func() { <-r.slots }()
	var names []string
	limit := 30 * time.Second
	for _, t := range tests {
		names = append(names, t.name)
		limit += 3 * t.took
	}
	cmd := r.command(ctx, limit, "", "-test.run", "^("+strings.Join(names, "|")+")$", "-test.failfast")
	cmd.Env = append(cmd.Env, fmt.Sprintf("GPUPAY_MUTANT=%d", m.number))
	out, err := cmd.CombinedOutput()
	if err == nil || ctx.Err() != nil {
		return ""
	}
	if name := failed.FindSubmatch(out); name != nil {
		return string(name[1])
	}
	return "its end" // a panic, or the time that all of them may take
}
