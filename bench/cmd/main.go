// Command cmd runs the benchmarks and writes docs/performance.md. ./bench.sh is the way to start it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/gpupay/gpupay/bench"
	"github.com/gpupay/gpupay/bench/all"
	"github.com/gpupay/gpupay/bench/received"
)

func main() {
	received.Gateway()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var names []string
	for _, s := range all.Sections() {
		names = append(names, s.Name())
	}
	page := flag.String("page", "docs/performance.md", "where to write the page; its plots go to a directory of that name without .md")
	only := flag.String("sections", strings.Join(names, ","), "which to run, separated by commas")
	set := bench.Settings{Log: func(f string, args ...any) { fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+f+"\n", args...) }}
	flag.IntVar(&set.Rounds, "rounds", 7, "interleaved rounds that count")
	flag.DurationVar(&set.Span, "span", 60*time.Millisecond, "how long each contender works in a round")
	flag.IntVar(&set.Most, "channels", 1024, "leave out what needs more channels")
	flag.Parse()
	if flag.NArg() > 0 || set.Rounds < 1 || set.Span <= 0 || set.Most < 1 {
		return fmt.Errorf("rounds, span and channels must be over zero, and there are no other arguments: try -help")
	}
	sections, err := choose(strings.Split(*only, ","))
	if err != nil {
		return err
	}
	// Beside the repository's files, not in /tmp: that is memory on many machines.
	if set.Scratch, err = os.MkdirTemp(".", ".bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(set.Scratch)
	return bench.Run(ctx, set, sections, *page, func(text string) { fmt.Print(text) })
}

func choose(names []string) (chosen []bench.Section, err error) {
	for _, name := range names {
		sections := all.Sections()
		i := slices.IndexFunc(sections, func(s bench.Section) bool { return s.Name() == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no section %q", name)
		}
		chosen = append(chosen, sections[i])
	}
	return chosen, nil
}
