package received

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// A payee takes the vouchers of one channel that wait together, and returns when they count.
type payee interface {
	accept(ctx context.Context, waiting []channel.Voucher) error
	// kept is what the channel's newest voucher is for.
	kept(ctx context.Context, t channel.Terms) (uint64, error)
	close() error
}

// payees are what is compared. With streams, the vouchers of a channel that are in flight reach it together; otherwise each is
// a call of its own, and so many calls are made at once.
var payees = []struct {
	name    string
	streams bool
	open    func(t testing.TB, b *book) payee
}{
	{"gpupay-sqlite", true, ours(func(t testing.TB) string { return filepath.Join(t.TempDir(), "payee.db") })},
	{"gpupay-postgres", true, ours(pgtest.URL)},
	{"gpupay-sqlite-each-verified", false, ours(func(t testing.TB) string { return filepath.Join(t.TempDir(), "payee.db") })},
	{"gpupay-postgres-each-verified", false, ours(pgtest.URL)},
	{"json-unsynced", false, keyValues(false, false, 1)},
	{"json-synced", false, keyValues(true, false, 1)},
	{"json-synced-merged", false, keyValues(true, false, 4096)},
	{"one-lock-rpc-1ms", false, keyValues(false, true, 1)},
	{"memory", false, func(_ testing.TB, b *book) payee { return openMemory(b) }},
}

// BenchmarkAccept is a payment received: its voucher is verified, and what it pays is on disk (but where the payee's name says
// otherwise) before the caller hears of it. One payer a channel, vouchers signed beforehand. One in flight: each payer waits for
// the receipt of one voucher before it sends the next. Eight: eight of a channel wait together, of which a stream's payee
// verifies the newest, which pays for all.
func BenchmarkAccept(b *testing.B) {
	for _, flight := range []int{1, 8} {
		for _, p := range payees {
			if flight == 1 && !p.streams && p.name[0] == 'g' {
				continue // one voucher is verified either way
			}
			for _, channels := range []int{1, 16, 64, 256, 1024} {
				b.Run(fmt.Sprintf("inflight=%d/payee=%s/channels=%d", flight, p.name, channels), func(b *testing.B) {
					benchmark(b, &load{book: newBook(b, channels), flight: flight, streams: p.streams}, p.open)
				})
			}
		}
	}
}

func benchmark(b *testing.B, l *load, open func(testing.TB, *book) payee) {
	l.to = open(b, l.book)
	l.book.sign(b, b.N)
	b.ReportAllocs()
	b.ResetTimer()
	begun := processorTime(b)
	if err := l.run(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	used := processorTime(b) - begun
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "vouchers/s")
	b.ReportMetric(float64(used.Nanoseconds())/1e3/float64(b.N), "us-cpu/voucher")
	if err := l.check(b.Context()); err != nil {
		b.Fatal(err)
	}
}

// processorTime is what this process has used, in the kernel too.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// book is the payers' side: one payer for all channels, and vouchers that are signed before the clock runs.
type book struct {
	domain   channel.Domain
	key      *channel.Key
	terms    []channel.Terms
	vouchers [][]channel.Voucher // by channel; the n-th is for n+1 base units
}

func newBook(t testing.TB, channels int) *book {
	private, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	escrow := common.Address{19: 1}
	b := &book{domain: channel.EscrowDomain(31337, escrow), key: channel.NewKey(private), vouchers: make([][]channel.Voucher, channels)}
	for c := range channels {
		terms := channel.Terms{ChainID: 31337, Escrow: escrow, Payer: b.key.Address(), Payee: common.Address{19: 2}, Token: common.Address{19: 3}}
		binary.BigEndian.PutUint32(terms.Salt[28:], uint32(c+1))
		b.terms = append(b.terms, terms)
	}
	return b
}

// sign signs n vouchers, spread evenly over the channels.
func (b *book) sign(t testing.TB, n int) {
	parallel(t, len(b.terms), runtime.GOMAXPROCS(0), func(c int) error {
		id := b.terms[c].ID()
		for i := c; i < n; i += len(b.terms) {
			v := channel.Voucher{ChannelID: id}
			v.Cumulative.SetUint64(uint64(len(b.vouchers[c]) + 1))
			var err error
			if v.Signature, err = b.key.Sign(context.Background(), b.domain.Digest(id, &v.Cumulative)); err != nil {
				return err
			}
			b.vouchers[c] = append(b.vouchers[c], v)
		}
		return nil
	})
}

// parallel does something n times, by so many workers.
func parallel(t testing.TB, n, workers int, do func(i int) error) {
	var wait sync.WaitGroup
	for first := range workers {
		wait.Go(func() {
			for i := first; i < n; i += workers {
				if err := do(i); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wait.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// load gives a payee the vouchers of a book.
type load struct {
	book    *book
	flight  int
	streams bool
	to      payee
}

func (l *load) run(ctx context.Context) error {
	callers, size := l.flight, 1
	if l.streams {
		callers, size = 1, l.flight
	}
	failed := make(chan error, len(l.book.terms)*callers)
	var wait sync.WaitGroup
	for _, send := range l.book.vouchers {
		var next atomic.Int64
		for range callers {
			wait.Go(func() { failed <- pay(ctx, l.to, send, size, &next) })
		}
	}
	wait.Wait()
	close(failed)
	var err error
	for one := range failed {
		err = errors.Join(err, one)
	}
	return err
}

func pay(ctx context.Context, to payee, send []channel.Voucher, size int, next *atomic.Int64) error {
	for {
		end := int(next.Add(int64(size)))
		if end-size >= len(send) {
			return nil
		}
		if err := to.accept(ctx, send[end-size:min(end, len(send))]); err != nil {
			return err
		}
	}
}

// check holds what the payee keeps against what was sent: who drops payments wins nothing.
func (l *load) check(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, l.to.close()) }()
	for c, t := range l.book.terms {
		kept, err := l.to.kept(ctx, t)
		if err != nil {
			return err
		}
		if sent := len(l.book.vouchers[c]); kept != uint64(sent) {
			return fmt.Errorf("channel %s: kept a voucher for %d, sent one for %d", t.ID(), kept, sent)
		}
	}
	return nil
}

// own is the payee of a Provider over a store.
type own struct {
	*channel.Payee
	db *store.DB
}

func ours(address func(testing.TB) string) func(testing.TB, *book) payee {
	return func(t testing.TB, b *book) payee {
		db, err := store.Open(t.Context(), address(t))
		if err != nil {
			t.Fatal(err)
		}
		o := own{&channel.Payee{Store: db.Payee(), Domain: b.domain}, db}
		parallel(t, len(b.terms), 256, func(c int) error {
			_, err := o.Register(t.Context(), b.terms[c], channel.ChainView{Deposit: channel.MaxAmount()})
			return err
		})
		return o
	}
}

func (o own) accept(ctx context.Context, waiting []channel.Voucher) (err error) {
	if len(waiting) > 1 {
		_, err = o.AcceptNewest(ctx, waiting)
	} else {
		_, err = o.Accept(ctx, waiting[0])
	}
	return err
}

func (o own) kept(ctx context.Context, t channel.Terms) (uint64, error) {
	s, err := o.State(ctx, t.ID())
	return s.Accepted.Uint64(), err
}

func (o own) close() error { return o.db.Close() }

// TestPayeesKeepWhatTheyTake runs every payee, with a number of vouchers that divides by nothing.
func TestPayeesKeepWhatTheyTake(t *testing.T) {
	for _, flight := range []int{1, 8} {
		for _, p := range payees {
			t.Run(fmt.Sprintf("inflight=%d/%s", flight, p.name), func(t *testing.T) {
				l := &load{book: newBook(t, 3), flight: flight, streams: p.streams}
				l.to = p.open(t, l.book)
				l.book.sign(t, 37)
				if err := errors.Join(l.run(t.Context()), l.check(t.Context())); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// forgetful drops every third payment.
type forgetful struct {
	payee
	calls int
}

func (f *forgetful) accept(ctx context.Context, v []channel.Voucher) error {
	if f.calls++; f.calls%3 == 0 {
		return nil
	}
	return f.payee.accept(ctx, v)
}

// TestWhoDropsPaymentsIsFound: speed that comes of losing money is none.
func TestWhoDropsPaymentsIsFound(t *testing.T) {
	l := &load{book: newBook(t, 1), flight: 1}
	l.to = &forgetful{payee: openMemory(l.book)}
	l.book.sign(t, 6)
	if err := l.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if l.check(t.Context()) == nil {
		t.Error("a payee that drops payments passes")
	}
}
