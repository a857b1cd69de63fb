// Command mutate undoes each mend of a fault in turn, and asks whether its test finds that.
//
//	go run ./internal/mutate [-only regexp] [-p parallel]
//
// The mutants are the files of internal/mutants, one a fault. Each names whole lines of the tree, what stood there before
// the fault was mended, and the test that must fail then. The tree itself is never touched: go test compiles the changed
// files instead of its own (-overlay); forge, and what Go embeds, are compiled in a copy.
//
// A test that fails without a mutant, a mutant whose place is not found once, that does not compile, or whose test is not
// there, is an error; a mutant whose test passes has survived. Either ends the program with status 1.
//
// Mutants that change no more than the bodies of functions are compiled together, and switched on one at a time.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"time"
)

func main() {
	only := flag.String("only", "", "the mutants whose names match (`regexp`)")
	parallel := flag.Int("p", min(8, runtime.NumCPU()), "how many runs of tests at a time")
	verbose := flag.Bool("v", false, "show all that the tests of survivors and errors printed")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	code, err := run(ctx, *only, &bench{slots: make(chan struct{}, max(1, *parallel)), verbose: *verbose, out: os.Stdout})
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		code = 1
	}
	os.Exit(code)
}

func run(ctx context.Context, only string, b *bench) (int, error) {
	var err error
	if b.root, err = findRoot(); err != nil {
		return 1, err
	}
	wanted, err := regexp.Compile(only)
	if err != nil {
		return 1, err
	}
	all, err := loadMutants(filepath.Join(b.root, "internal/mutants"))
	if err != nil {
		return 1, err
	}
	var list []*mutant
	for _, m := range all {
		if wanted.MatchString(m.name) {
			list = append(list, m)
		}
	}
	if len(list) == 0 {
		return 1, fmt.Errorf("no mutant's name matches %q", only)
	}
	return b.all(ctx, list)
}

// findRoot is the folder of this module, from wherever the program is run.
func findRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "internal/mutants")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("internal/mutants is in no folder above this one")
		}
		dir = up
	}
}

// A bench judges mutants.
type bench struct {
	root    string
	shop    *workshop
	slots   chan struct{} // one for each run at a time
	verbose bool
	out     io.Writer

	printing sync.Mutex
	killed   int
	survived int
	failed   int
}

// all judges every mutant, and gives the exit status.
func (b *bench) all(ctx context.Context, list []*mutant) (int, error) {
	var err error
	if b.shop, err = newWorkshop(ctx, b.root, list); err != nil {
		return 1, err
	}
	defer b.shop.end()
	sound := b.baselines(ctx, list)
	var wait sync.WaitGroup
	for _, m := range list {
		wait.Go(func() { b.judge(ctx, m, sound) })
	}
	wait.Wait()
	fmt.Fprintf(b.out, "%d killed, %d survived, %d errors\n", b.killed, b.survived, b.failed)
	if b.survived+b.failed > 0 {
		return 1, nil
	}
	return 0, nil
}

// baselines gives, by the text of each distinct line, a function that runs it once over the tree as it is, and tells what was wrong.
func (b *bench) baselines(ctx context.Context, list []*mutant) map[string]func() error {
	sound := map[string]func() error{}
	for _, m := range list {
		for _, r := range m.runs {
			sound[r.text] = sync.OnceValue(func() error {
				o, err := b.slot(func() (outcome, error) { return b.shop.together(ctx, r, "") })
				if err == nil && o.failed > 0 {
					err = fmt.Errorf("%q fails without a mutant", r.text)
					b.print(b.shown(o.log))
				}
				return err
			})
		}
	}
	return sound
}

func (b *bench) slot(test func() (outcome, error)) (outcome, error) {
	b.slots <- struct{}{}
	defer func() { <-b.slots }()
	return test()
}

// try runs a line with a mutant: compiled with the others where it fits in, and by itself before it is said to survive.
func (b *bench) try(ctx context.Context, m *mutant, r runLine, changed map[string][]byte) (outcome, error) {
	if b.shop.all.names[m.name] {
		o, err := b.slot(func() (outcome, error) { return b.shop.together(ctx, r, m.name) })
		if err == nil && o.failed > 0 {
			return o, nil
		}
	}
	return b.slot(func() (outcome, error) { return b.shop.alone(ctx, r, changed) })
}

func (b *bench) judge(ctx context.Context, m *mutant, sound map[string]func() error) {
	begun := time.Now()
	changed, err := m.apply(b.root)
	var logs strings.Builder
	survived := ""
	for _, r := range m.runs {
		if err = errors.Join(err, sound[r.text]()); err != nil {
			break
		}
		var o outcome
		o, err = b.try(ctx, m, r, changed)
		if err != nil || o.failed == 0 {
			logs.WriteString(o.log)
		}
		if err == nil && o.failed == 0 {
			survived = r.text
		}
	}
	what := fmt.Sprintf("%-18s %3.0f s  %s", m.name, time.Since(begun).Seconds(), m.why)
	b.printing.Lock()
	defer b.printing.Unlock()
	switch {
	case err != nil:
		b.failed++
		fmt.Fprintf(b.out, "ERROR    %s: %v\n", what, err)
	case survived != "":
		b.survived++
		fmt.Fprintf(b.out, "SURVIVED %s: %s\n", what, survived)
	default:
		b.killed++
		fmt.Fprintf(b.out, "killed   %s\n", what)
		return
	}
	if b.verbose || errors.Is(err, errUncompiled) || errors.Is(err, errUnclear) {
		fmt.Fprint(b.out, b.shown(logs.String()))
	}
}

// longestLog is how many lines of what tests printed are shown, the last, where -v does not ask for all.
const longestLog = 30

func (b *bench) shown(log string) string {
	lines := strings.SplitAfter(log, "\n")
	if b.verbose || len(lines) <= longestLog {
		return log
	}
	return strings.Join(lines[len(lines)-longestLog:], "")
}

func (b *bench) print(text string) {
	b.printing.Lock()
	defer b.printing.Unlock()
	fmt.Fprint(b.out, text)
}
