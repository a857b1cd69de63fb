// Command crash kills a provider and its renters, hundreds of times, and counts
// the money afterwards.
//
//	go run ./internal/crash --kills 500 [--seed 1] [--renters 6]
//
// They are the example programs, built with fault points, on a real chain
// (anvil) and real files. Half of the kills come at random moments, the others
// at every named step in turn (package fault), all with SIGKILL. Whatever is
// killed is started again at once. A proxy of the harness stands between them:
// what the provider acknowledged and what the renters sent is known from there,
// not from anybody who is killed.
//
// It ends with a table, and with status 1 if a base unit is missing.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"testing"
	"time"
)

func main() {
	runtime.LockOSThread() // the kernel ends what a thread started when the thread ends
	var c config
	flag.IntVar(&c.kills, "kills", 25, "how often to kill the provider, and how often the renters together")
	flag.Uint64Var(&c.seed, "seed", uint64(time.Now().UnixNano()), "of the random moments")
	flag.IntVar(&c.renters, "renters", 6, "how many renters; every second one has native coin of its own")
	flag.StringVar(&c.dir, "dir", "", "where databases and outputs are kept afterwards (`path`); nowhere if empty")
	flag.BoolVar(&c.verbose, "v", false, "say what is killed")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	h := &host{ctx: ctx}
	code := h.run(c)
	stop()
	os.Exit(code)
}

// host lets a program use what was written for tests: it ends the program where
// a test would be ended.
type host struct {
	testing.TB // what a program has no use for is not there
	ctx        context.Context
	cleanups   []func()
}

type fatal string

func (h *host) run(c config) (code int) {
	defer func() {
		for i := len(h.cleanups) - 1; i >= 0; i-- {
			h.cleanups[i]()
		}
	}()
	defer func() {
		if r := recover(); r != nil {
			message, ok := r.(fatal)
			if !ok {
				panic(r)
			}
			fmt.Fprintln(os.Stderr, "error: "+string(message))
			code = 1
		}
	}()
	report := crash(h, c)
	report.print(os.Stdout)
	if len(report.wrong) > 0 {
		return 1
	}
	return 0
}

func (h *host) Helper()                        {}
func (h *host) Context() context.Context       { return h.ctx }
func (h *host) Cleanup(f func())               { h.cleanups = append(h.cleanups, f) }
func (h *host) Fatal(args ...any)              { panic(fatal(fmt.Sprint(args...))) }
func (h *host) Fatalf(format string, a ...any) { panic(fatal(fmt.Sprintf(format, a...))) }
func (h *host) Skip(args ...any)               { panic(fatal(fmt.Sprint(args...))) }
func (h *host) Logf(format string, a ...any)   { fmt.Fprintf(os.Stderr, format+"\n", a...) }
func (h *host) TempDir() string {
	dir, err := os.MkdirTemp("", "gpupay-crash-")
	if err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
