package received

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"

	"github.com/gpupay/gpupay/bench"
)

// parts are what the processors' time goes to.
var parts = bench.Parts{
	{"recover the signer (libsecp256k1)", "secp256k1."},
	{"hash the voucher (keccak)", "keccak"},
	{"collect garbage", "runtime.gcBgMarkWorker"},
	{"SQLite: commit, which writes and syncs", "(*SQLiteTx).Commit"},
	{"SQLite: statements", "go-sqlite3."},
	{"the store in Go, database/sql included", "channel/store."},
	{"database/sql", "database/sql."},
	{"judge and copy, in Go", "channel.(*Payee)"},
	{"switch between goroutines", "runtime."},
}

// profiled is one of the hot paths on its own, with the processors' time by part.
func (s Section) profiled(ctx context.Context, set bench.Settings, flight int) (t bench.Table, file bench.File, err error) {
	channels := min(set.Most, 1024)
	dir, err := os.MkdirTemp(set.Scratch, "profile-")
	if err != nil {
		return t, file, err
	}
	defer os.RemoveAll(dir)
	b, err := newBook(channels)
	if err != nil {
		return t, file, err
	}
	to, err := openOnly(ctx, b, filepath.Join(dir, "payee.db"))
	if err != nil {
		return t, file, err
	}
	l := &load{book: b, flight: flight, stream: true, to: to}
	defer func() { err = errors.Join(err, l.check(ctx)) }()
	var data bytes.Buffer
	c := l.contender(payee, false)
	c.Run = func(ctx context.Context, n int) error { // the last run's profile stays; signing is in none
		data.Reset()
		if err := pprof.StartCPUProfile(&data); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
		return l.run(ctx, n)
	}
	set.Rounds, set.Span = 1, 20*set.Span
	series, err := bench.Interleave(ctx, set, []bench.Contender{c})
	if err != nil {
		return t, file, err
	}
	each := series[0].Busy / series[0].Rate().Median * 1e6 // microseconds of a processor
	t, anonymous, err := parts.Table(data.Bytes(), each, "a payment")
	t.Title = fmt.Sprintf("Where the processors' time goes at %s, %s (%s of the cores busy; the rest is waiting for the disk):",
		counted(channels), traffic(flight), bench.Number(series[0].Busy))
	return t, bench.File{Name: fmt.Sprintf("%d-in-flight.pprof", flight), Data: anonymous}, err
}

const nearTheLimit = "The profiles are `performance/received-1-in-flight.pprof` and `performance/received-8-in-flight.pprof` (`go tool pprof -top " +
	"docs/performance/received-1-in-flight.pprof`). One in flight, no voucher may be skipped: to recover the signer, in libsecp256k1, is then the " +
	"floor that *memory only* pays too, and with few channels the payers wait for the disk, since no group can be larger than what waits. " +
	"Where that floor is most of the time, only fewer checks help: that is what eight in flight shows."
