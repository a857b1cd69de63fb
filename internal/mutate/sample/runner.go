package main

import (
	"cmp"
	"context"
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
	"sync"
	"time"
)

// A runner runs the tests of one compiled package.
type runner struct {
	binary, dir, scratch string
	slots                chan struct{}
	asked                *regexp.Regexp          // the tests
	found                func(*mutation, string) // is told at once, one at a time

	mu    sync.Mutex
	tests []test // the quickest first
	done  map[string]bool
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

// list names every test of the package.
func (r *runner) list(ctx context.Context) ([]string, error) {
	out, err := r.command(ctx, longest, "", "-test.list", ".").Output()
	if err != nil {
		return nil, fmt.Errorf("listing the tests: %w", err)
	}
	return slices.DeleteFunc(strings.Fields(string(out)), func(name string) bool {
		return !strings.HasPrefix(name, "Test") && !strings.HasPrefix(name, "Fuzz") && !strings.HasPrefix(name, "Example") || !r.asked.MatchString(name)
	}), nil
}

// learn runs tests that were not run before, each by itself, and notes what it reaches. One that fails or is skipped can
// show nothing.
func (r *runner) learn(ctx context.Context, names []string) error {
	var wait sync.WaitGroup
	for _, name := range names {
		if r.done[name] {
			continue
		}
		r.done[name] = true
		wait.Go(func() {
			r.slots <- struct{}{}
			defer func() { <-r.slots }()
			t, err := r.alone(ctx, name)
			r.mu.Lock()
			defer r.mu.Unlock()
			if err != nil {
				fmt.Printf("not used  %s: %v\n", name, err)
				return
			}
			r.tests = append(r.tests, t)
		})
	}
	wait.Wait()
	slices.SortFunc(r.tests, func(a, b test) int { return cmp.Compare(a.took, b.took) })
	return ctx.Err()
}

// alone runs one test without a mutation.
func (r *runner) alone(ctx context.Context, name string) (test, error) {
	trace := filepath.Join(r.scratch, "trace "+name)
	begun := time.Now()
	out, err := r.command(ctx, longest, trace, "-test.run", "^"+name+"$", "-test.v").CombinedOutput()
	if err != nil {
		return test{}, fmt.Errorf("it fails without a mutation: %w", err)
	}
	if !strings.Contains(string(out), "--- PASS: "+name+" ") {
		return test{}, errors.New("it is skipped")
	}
	t := test{name: name, took: time.Since(begun), reaches: map[int]bool{}}
	text, _ := os.ReadFile(trace) // there is none where nothing is reached
	for _, id := range strings.Fields(string(text)) {
		number, _ := strconv.Atoi(id)
		t.reaches[number] = true
	}
	return t, nil
}

func (r *runner) command(ctx context.Context, limit time.Duration, trace string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, r.binary, append(args, "-test.timeout="+limit.String())...)
	cmd.Dir = r.dir
	cmd.Env = append(os.Environ(), "GPUPAY_MUTANT=0", "GPUPAY_MUTANT_TRACE="+trace)
	cmd.WaitDelay = time.Second
	return cmd
}

// again gives, for each mutation that was found before, the test that did, if it still does.
func (r *runner) again(ctx context.Context, list []*mutation, tests []string, killers map[string]string) (map[*mutation]string, error) {
	var names []string
	before := maps.Clone(killers) // which found is adding to
	for _, m := range list {
		if name := before[m.id]; slices.Contains(tests, name) {
			names = append(names, name)
		}
	}
	if err := r.learn(ctx, names); err != nil {
		return nil, err
	}
	return r.each(list, func(m *mutation) string {
		at := slices.IndexFunc(r.tests, func(t test) bool { return t.name == before[m.id] && t.reaches[m.number] })
		if at < 0 {
			return ""
		}
		return r.try(ctx, m, r.tests[at:at+1])
	}), ctx.Err()
}

// each judges mutations at the same time.
func (r *runner) each(list []*mutation, judge func(*mutation) string) map[*mutation]string {
	var wait sync.WaitGroup
	verdicts := map[*mutation]string{}
	for _, m := range list {
		wait.Go(func() {
			killer := judge(m)
			r.mu.Lock()
			defer r.mu.Unlock()
			verdicts[m] = killer
			if killer != "" {
				r.found(m, killer)
			}
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

var (
	failed = regexp.MustCompile(`(?m)^--- FAIL: (\S+)`)
	hung   = regexp.MustCompile(`(?m)^running tests:\s+(\w+)`)
	began  = regexp.MustCompile(`(?m)^=== (?:RUN|CONT|NAME) +(\w+)`)
)

// blamed names the test that failed, or that ran when the program ended.
func blamed(out []byte) string {
	if name := failed.FindSubmatch(out); name != nil {
		return string(name[1])
	}
	if name := hung.FindSubmatch(out); name != nil {
		return string(name[1])
	}
	if names := began.FindAllSubmatch(out, -1); len(names) > 0 {
		return string(names[len(names)-1][1])
	}
	return "its end"
}

// try gives the test that fails with a mutation, if one does.
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
	cmd := r.command(ctx, limit, "", "-test.run", "^("+strings.Join(names, "|")+")$", "-test.failfast", "-test.parallel=4", "-test.v")
	cmd.Env = append(cmd.Env, fmt.Sprintf("GPUPAY_MUTANT=%d", m.number))
	out, err := cmd.CombinedOutput()
	if err == nil || ctx.Err() != nil {
		return ""
	}
	return blamed(out)
}
