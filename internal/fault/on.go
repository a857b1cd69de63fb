//go:build faults

package fault

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

var (
	chosen, nth = parse(os.Getenv(Env))
	hits        atomic.Int64
)

func parse(text string) (Step, int64) {
	name, count, found := strings.Cut(text, "#")
	if !found {
		return Step(name), 1
	}
	n, err := strconv.ParseInt(count, 10, 64)
	if err != nil || n < 1 {
		panic(Env + ": " + strconv.Quote(text) + " is not step or step#n")
	}
	return Step(name), n
}

// Point kills the process if the test chose this step.
func Point(step Step) {
	if step != chosen || hits.Add(1) != nth {
		return
	}
	_ = syscall.Kill(syscall.Getpid(), syscall.SIGKILL)
	select {} // whatever the signal takes to arrive, nothing more is done here
}

// Sent is Point for a step of a transaction. A batch is a settlement like any
// other.
func Sent(kind string, step Step) { Point(Of(strings.TrimSuffix(kind, " batch"), step)) }
