package received

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"

	"github.com/google/pprof/profile"

	"github.com/gpupay/gpupay/internal/bench"
)

// parts are what the processors' time goes to; a sample is of the first whose
// word is in a function of its stack.
var parts = []struct{ name, word string }{
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
	p, err := profile.Parse(&data)
	if err != nil {
		return t, file, err
	}
	data.Reset()
	if err := anonymous(p).Write(&data); err != nil {
		return t, file, err
	}
	file = bench.File{Name: fmt.Sprintf("%d-in-flight.pprof", flight), Data: data.Bytes()}
	return partsTable(p, series[0], channels, flight), file, nil
}

// anonymous drops where on this machine the sources and the program are.
func anonymous(p *profile.Profile) *profile.Profile {
	for _, f := range p.Function {
		f.Filename = filepath.Base(f.Filename)
	}
	for _, m := range p.Mapping {
		m.File = filepath.Base(m.File)
	}
	return p
}

func partsTable(p *profile.Profile, s bench.Series, n, flight int) bench.Table {
	spent, total := make(map[string]int64), int64(0)
	for _, sample := range p.Sample {
		spent[partOf(sample)] += sample.Value[1]
		total += sample.Value[1]
	}
	t := bench.Table{Title: fmt.Sprintf("Where the processors' time goes at %s, %s (%s of the cores busy; the rest is waiting for the disk):",
		channels(n), traffic(flight), bench.Number(s.Busy)), Head: []string{"part", "share", "of a payment"}}
	each := s.Busy / s.Rate().Median * 1e6 // microseconds of a processor
	for _, part := range append(partNames(), "other") {
		if spent[part] > 0 {
			share := float64(spent[part]) / float64(total)
			t.Rows = append(t.Rows, []string{part, fmt.Sprintf("%.0f%%", 100*share), bench.Number(share*each) + " us"})
		}
	}
	return t
}

func partNames() (names []string) {
	for _, p := range parts {
		names = append(names, p.name)
	}
	return names
}

func partOf(s *profile.Sample) string {
	for _, part := range parts {
		if slices.ContainsFunc(s.Location, func(l *profile.Location) bool {
			return slices.ContainsFunc(l.Line, func(line profile.Line) bool { return strings.Contains(line.Function.Name, part.word) })
		}) {
			return part.name
		}
	}
	return "other"
}

const nearTheLimit = "The profiles are `performance/received-1-in-flight.pprof` and `performance/received-8-in-flight.pprof` (`go tool pprof -top " +
	"docs/performance/received-1-in-flight.pprof`). One in flight, no voucher may be skipped: to recover the signer, in libsecp256k1, is then the " +
	"floor that *memory only* pays too, and with few channels the payers wait for the disk, since no group can be larger than what waits. " +
	"Where that floor is most of the time, only fewer checks help: that is what eight in flight shows."
