// Command sample changes the sources at random in small ways, and asks whether any test of their package finds it.
//
//	go run ./internal/mutate/sample [-group regexp] [-run regexp] [-p parallel] [-all] [-write]
//
// Changes are drawn in each group of files where money is decided, forty for each side of it: a condition negated, a boundary moved by one, ==
// for !=, + for -, an error or a call left out, a constant one more. The draw is by a committed seed and by the names of
// functions, so that most of it stays when code changes.
//
// All changes that one package's tests are asked about are compiled into one test binary, each behind a switch. First each is tried with the test that
// found it before, which killers.txt names. For what is left the tests are run once, one by one, to learn which of them
// reach which change; then each change is switched on for those alone. What no test finds has to be in harmless.txt with
// the reason, and is not tried again but with -all. -run asks only some tests, such as a new one, of what killers.txt knows no killer. With -write what found each change is written to killers.txt as it is found.
package main

import (
	"bufio"
	"cmp"
	"context"
	_ "embed"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
)

const (
	seed      = "gpupay 1"
	mustDie   = 95 // of a hundred that are not equivalent
	harmFile  = "internal/mutate/sample/harmless.txt"
	killFile  = "internal/mutate/sample/killers.txt"
	equalWord = "equivalent:"
)

// A target are packages whose tests are asked, one after the other about what those before did not find, and the groups of files that they
// hold. A file is of the first group of its directory whose patterns match its name.
type target struct {
	tests  []string
	groups []group
}

type group struct {
	name, dir string
	drawn     int
	patterns  []string
}

var targets = []target{
	{[]string{"channel"}, []group{{"channel", "channel", 40, []string{"*.go"}}}},
	{[]string{"channel/store"}, []group{{"store", "channel/store", 40, []string{"*.go"}}}},
	{[]string{"sdk/settle"}, []group{{"settle", "sdk/settle", 40, []string{"*.go"}}}},
	{[]string{"sdk/chain"}, []group{{"chain", "sdk/chain", 40, []string{"*.go"}}}},
	{[]string{"sdk/internal/rental", "sdk/internal/paystream", "sdk/renter", "sdk/sidecar"}, []group{
		{"rental", "sdk/internal/rental", 20, []string{"*.go"}},
		{"paystream", "sdk/internal/paystream", 20, []string{"attach.go", "check.go", "f*.go", "lease.go", "pay.go", "release.go", "topup.go"}},
	}},
	{[]string{"sdk/internal/paystream", "sdk/internal/sharing", "sdk/sidecar"}, []group{
		{"payshared", "sdk/internal/paystream", 20, []string{"limits.go", "requests.go"}},
		{"sharing", "sdk/internal/sharing", 20, []string{"*.go"}},
	}},
	{[]string{"sdk/budget"}, []group{{"budget", "sdk/budget", 20, []string{"*.go"}}}},
	{[]string{"sdk/x402/x402client"}, []group{{"x402client", "sdk/x402/x402client", 40, []string{"*.go"}}}},
	{[]string{"sdk/internal/leasestore", "sdk/internal/lease", "sdk/internal/x402server", "sdk/internal/sessionscheme", "sdk/internal/payercredit", "sdk/provider"}, []group{
		{"leasestore", "sdk/internal/leasestore", 10, []string{"*.go"}}, // leases
		{"lease", "sdk/internal/lease", 20, []string{"*.go"}},
		{"provider", "sdk/provider", 10, []string{"front.go", "outbox.go", "retention.go", "settlement.go"}},
		{"x402server", "sdk/internal/x402server", 10, []string{"*.go"}}, // payments
		{"x402scheme", "sdk/internal/x402scheme", 10, []string{"*.go"}},
		{"sessionscheme", "sdk/internal/sessionscheme", 10, []string{"*.go"}},
		{"payercredit", "sdk/internal/payercredit", 10, []string{"debts.go"}},
	}},
}

// dirs are the packages that a target changes.
func (t target) dirs() (dirs []string) {
	for _, g := range t.groups {
		if !slices.Contains(dirs, g.dir) {
			dirs = append(dirs, g.dir)
		}
	}
	return dirs
}

func (t target) groupOf(dir, file string) string {
	for _, g := range t.groups {
		for _, p := range g.patterns {
			if ok, _ := path.Match(p, file); ok && g.dir == dir {
				return g.name
			}
		}
	}
	return ""
}

func main() {
	only := flag.String("group", "", "the groups whose names match (`regexp`)")
	asked := flag.String("run", "", "ask only the tests whose names match (`regexp`), and about nothing that killers.txt names")
	parallel := flag.Int("p", max(1, runtime.NumCPU()), "how many tests at a time")
	every := flag.Bool("all", false, "try also what harmless.txt lists, with every test")
	write := flag.Bool("write", false, "write what found each change to killers.txt")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	code, err := run(ctx, *only, *asked, *parallel, *every, *write)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "sample:", err)
		code = 1
	}
	os.Exit(code)
}

func run(ctx context.Context, only, asked string, parallel int, every, write bool) (int, error) {
	wanted, err := regexp.Compile(only)
	if err != nil {
		return 1, err
	}
	tests, err := regexp.Compile(asked)
	if err != nil {
		return 1, err
	}
	root, err := os.Getwd()
	if err != nil {
		return 1, err
	}
	harmless, err := readList(filepath.Join(root, harmFile))
	if err != nil {
		return 1, fmt.Errorf("%w: run it from the root of the repository", err)
	}
	killers, err := readList(filepath.Join(root, killFile))
	if err != nil {
		return 1, err
	}
	total := tally{root: root, harmless: harmless, killers: killers, asked: tests, every: every, write: write}
	for _, t := range targets {
		t.groups = slices.DeleteFunc(slices.Clone(t.groups), func(g group) bool { return !wanted.MatchString(g.name) })
		if len(t.groups) == 0 {
			continue
		}
		if err := t.judge(ctx, root, parallel, &total); err != nil {
			return 1, err
		}
		if write {
			if err := writeList(filepath.Join(root, killFile), killers); err != nil {
				return 1, err
			}
		}
	}
	counted := total.killed + total.survived + total.listed
	share := 0
	if counted > 0 {
		share = total.killed * 100 / counted
	}
	fmt.Printf("%d killed (%d %%), %d survived, %d harmless, %d equivalent\n", total.killed, share, total.survived, total.listed, total.equivalent)
	if total.survived > 0 || share < mustDie {
		return 1, nil
	}
	return 0, nil
}

// A tally is what is known of mutations by their ids, and how many came to what.
type tally struct {
	root     string
	harmless map[string]string // why what no test finds costs nobody anything
	killers  map[string]string // the test that found it
	asked    *regexp.Regexp    // the tests that are asked; empty: all
	every    bool              // what is harmless is tried too
	write    bool              // what is found is written at once

	killed, survived, listed, equivalent int
}

// readList reads lines of an id, ": " and what is said of it. In harmless.txt that is the reason: one that begins with
// "equivalent:" says that the program does the same, any other that what changes costs nobody anything.
func readList(file string) (map[string]string, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	said := map[string]string{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		id, what, ok := strings.Cut(line, ": ")
		if !ok || what == "" {
			return nil, fmt.Errorf("%s: nothing is said of %q", file, line)
		}
		said[id] = what
	}
	return said, lines.Err()
}

func writeList(file string, said map[string]string) error {
	text := "# What found each mutation of the sample, as the program wrote it with -write: it is tried first.\n"
	for _, id := range slices.Sorted(maps.Keys(said)) {
		text += id + ": " + said[id] + "\n"
	}
	return os.WriteFile(file, []byte(text), 0o644)
}

// judge draws, compiles and runs what is wanted of one package.
func (t target) judge(ctx context.Context, root string, parallel int, total *tally) error {
	var list []*mutation
	names := map[string]string{} // of packages, by directory
	for _, dir := range t.dirs() {
		all, name, err := find(root, t, dir)
		if err != nil {
			return err
		}
		names[dir] = name
		for _, g := range t.groups {
			list = append(list, draw(all[g.name], seed, g.drawn)...)
		}
	}
	for i, m := range list {
		m.number = i + 1
	}
	scratch, err := os.MkdirTemp("", "gpupay-sample-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	verdicts := map[*mutation]string{}
	for _, tests := range t.tests {
		var binary string
		if list, binary, err = compile(ctx, root, scratch, tests, names, list); err != nil {
			return err
		}
		r := &runner{binary: binary, dir: filepath.Join(root, tests), scratch: scratch, slots: make(chan struct{}, parallel), asked: total.asked, done: map[string]bool{}, found: total.found}
		left := slices.DeleteFunc(slices.Clone(list), func(m *mutation) bool {
			return verdicts[m] != "" || !total.every && total.harmless[m.id] != "" || total.asked.String() != "" && total.killers[m.id] != ""
		})
		found, err := r.verdicts(ctx, left, total.killers)
		if err != nil {
			return err
		}
		maps.Copy(verdicts, found)
		fmt.Printf("%s: %d mutants, %d tests were run\n", tests, len(left), len(r.done))
	}
	slices.SortFunc(list, func(a, b *mutation) int { return cmp.Compare(a.id, b.id) })
	for _, m := range list {
		total.count(m, verdicts[m])
	}
	total.forget(t, list)
	return nil
}

// verdicts gives the test that finds each mutation. Those that no test is known to find are the expensive ones: they take
// a run of every test, and then those that reach them.
func (r *runner) verdicts(ctx context.Context, tried []*mutation, killers map[string]string) (map[*mutation]string, error) {
	names, err := r.list(ctx)
	if err != nil {
		return nil, err
	}
	verdicts, err := r.again(ctx, tried, names, killers)
	if err != nil {
		return nil, err
	}
	left := slices.DeleteFunc(tried, func(m *mutation) bool { return verdicts[m] != "" })
	if len(left) == 0 {
		return verdicts, nil
	}
	if err := r.learn(ctx, names); err != nil {
		return nil, err
	}
	maps.Copy(verdicts, r.each(left, func(m *mutation) string { return r.killer(ctx, m) }))
	return verdicts, ctx.Err()
}

// found keeps what finds a mutation: a run takes an hour, and may be cut off.
func (t *tally) found(m *mutation, killer string) {
	t.killers[m.id] = killer
	if !t.write {
		return
	}
	if err := writeList(filepath.Join(t.root, killFile), t.killers); err != nil {
		fmt.Fprintln(os.Stderr, "sample:", err)
	}
}

// count says what became of a mutation: killer is empty where nothing found it.
func (t *tally) count(m *mutation, killer string) {
	file, _ := filepath.Rel(t.root, m.file)
	where := fmt.Sprintf("%-44s %s:%d", m.id, file, m.line)
	reason := t.harmless[m.id]
	switch {
	case killer != "":
		t.killed++
		t.killers[m.id] = killer
		if reason != "" {
			killer += ": take it out of " + harmFile
		}
		fmt.Printf("killed    %s by %s\n", where, killer)
	case strings.HasPrefix(reason, equalWord):
		t.equivalent++
	case reason != "":
		t.listed++
	case t.asked.String() != "" && t.killers[m.id] != "":
		t.killed++
	default:
		t.survived++
		fmt.Printf("SURVIVED  %s: %s\n", where, m.what)
	}
}

// forget takes out of the killers what is no longer drawn, and says which lines of harmless.txt are about nothing.
func (t *tally) forget(of target, list []*mutation) {
	drawn := map[string]bool{}
	for _, m := range list {
		drawn[m.id] = true
	}
	gone := func(id string) bool {
		name, _, _ := strings.Cut(id, " ")
		return !drawn[id] && slices.ContainsFunc(of.groups, func(g group) bool { return g.name == name })
	}
	maps.DeleteFunc(t.killers, func(id, _ string) bool { return gone(id) })
	for _, id := range slices.Sorted(maps.Keys(t.harmless)) {
		if gone(id) {
			fmt.Printf("not drawn %s: take it out of %s\n", id, harmFile)
		}
	}
}
