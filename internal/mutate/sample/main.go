// Command sample changes the sources at random in small ways, and asks whether any test of their package finds it.
//
//	go run ./internal/mutate/sample [-group regexp] [-p parallel]
//
// Forty changes are drawn in each group of files where money is decided: a condition negated, a boundary moved by one, ==
// for !=, + for -, an error or a call left out, a constant one more. The draw is by a committed seed and by the names of
// functions, so that most of it stays when code changes.
//
// All changes of a package are compiled into one test binary, each behind a switch. The tests are run once, one by one, to
// learn which of them reach which change; then each change is switched on for those alone. What no test finds has to be
// in harmless.txt with the reason.
package main

import (
	"bufio"
	"cmp"
	"context"
	_ "embed"
	"flag"
	"fmt"
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
	perGroup  = 40
	mustDie   = 95 // of a hundred that are not equivalent
	harmFile  = "internal/mutate/sample/harmless.txt"
	equalWord = "equivalent:"
)

// A target is a package, and the groups of its files by the patterns of their names: the first that matches counts, and
// one named "" is for files that are in none.
type target struct {
	dir    string
	groups []group
}

type group struct {
	name     string
	patterns []string
}

var targets = []target{
	{"channel", []group{{"channel", []string{"*.go"}}}},
	{"channel/store", []group{{"store", []string{"*.go"}}}},
	{"sdk/settle", []group{{"settle", []string{"*.go"}}}},
	{"sdk/chain", []group{{"chain", []string{"*.go"}}}},
	{"sdk", []group{
		{"renter", []string{"rental*.go", "renter*.go", "x402renter*.go"}},
		{"provider", []string{"lease.go", "leasestore.go", "lessor.go", "funding.go", "payments.go", "sponsor*.go", "debt*.go", "x402*.go"}},
	}},
}

func (t target) groupOf(file string) string {
	for _, g := range t.groups {
		for _, p := range g.patterns {
			if ok, _ := path.Match(p, file); ok {
				return g.name
			}
		}
	}
	return ""
}

func main() {
	only := flag.String("group", "", "the groups whose names match (`regexp`)")
	parallel := flag.Int("p", max(1, runtime.NumCPU()), "how many tests at a time")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	code, err := run(ctx, *only, *parallel)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "sample:", err)
		code = 1
	}
	os.Exit(code)
}

func run(ctx context.Context, only string, parallel int) (int, error) {
	wanted, err := regexp.Compile(only)
	if err != nil {
		return 1, err
	}
	root, err := os.Getwd()
	if err != nil {
		return 1, err
	}
	harmless, err := readHarmless(filepath.Join(root, harmFile))
	if err != nil {
		return 1, fmt.Errorf("%w: run it from the root of the repository", err)
	}
	var total tally
	for _, t := range targets {
		t.groups = slices.DeleteFunc(slices.Clone(t.groups), func(g group) bool { return !wanted.MatchString(g.name) })
		if len(t.groups) == 0 {
			continue
		}
		if err := t.judge(ctx, root, parallel, harmless, &total); err != nil {
			return 1, err
		}
	}
	counted := total.killed + total.survived + total.harmless
	share := 0
	if counted > 0 {
		share = total.killed * 100 / counted
	}
	fmt.Printf("%d killed (%d %%), %d survived, %d harmless, %d equivalent\n", total.killed, share, total.survived, total.harmless, total.equivalent)
	if total.survived > 0 || share < mustDie {
		return 1, nil
	}
	return 0, nil
}

type tally struct{ killed, survived, harmless, equivalent int }

// readHarmless reads lines of an id, ": " and the reason: one that begins with "equivalent:" says that the program does
// the same, any other that what changes costs nobody anything.
func readHarmless(file string) (map[string]string, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	reasons := map[string]string{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		id, reason, ok := strings.Cut(line, ": ")
		if !ok || reason == "" {
			return nil, fmt.Errorf("%s: %q has no reason", file, line)
		}
		reasons[id] = reason
	}
	return reasons, lines.Err()
}

// judge draws, compiles and runs what is wanted of one package.
func (t target) judge(ctx context.Context, root string, parallel int, harmless map[string]string, total *tally) error {
	all, pkg, err := find(root, t)
	if err != nil {
		return err
	}
	var list []*mutation
	for _, g := range t.groups {
		list = append(list, draw(all[g.name], seed, perGroup)...)
	}
	for i, m := range list {
		m.number = i + 1
	}
	scratch, err := os.MkdirTemp("", "gpupay-sample-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	list, binary, err := compile(ctx, root, scratch, t, pkg, list)
	if err != nil {
		return err
	}
	r := &runner{binary: binary, dir: filepath.Join(root, t.dir), scratch: scratch, slots: make(chan struct{}, parallel)}
	if err := r.learn(ctx); err != nil {
		return err
	}
	fmt.Printf("%s: %d mutants, %d tests\n", t.dir, len(list), len(r.tests))
	verdicts := r.all(ctx, list)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	slices.SortFunc(list, func(a, b *mutation) int { return cmp.Compare(a.id, b.id) })
	for _, m := range list {
		total.count(root, m, verdicts[m], harmless[m.id])
	}
	return nil
}

// count says what became of a mutation: killer is empty where nothing found it.
func (t *tally) count(root string, m *mutation, killer, reason string) {
	file, _ := filepath.Rel(root, m.file)
	where := fmt.Sprintf("%-44s %s:%d", m.id, file, m.line)
	switch {
	case killer != "" && reason != "":
		t.killed++
		fmt.Printf("killed    %s by %s: take it out of %s\n", where, killer, harmFile)
	case killer != "":
		t.killed++
		fmt.Printf("killed    %s by %s\n", where, killer)
	case strings.HasPrefix(reason, equalWord):
		t.equivalent++
	case reason != "":
		t.harmless++
	default:
		t.survived++
		fmt.Printf("SURVIVED  %s: %s\n", where, m.what)
	}
}
