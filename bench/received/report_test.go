package received

import (
	"context"
	"os"
	"testing"

	"github.com/gpupay/gpupay/bench"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/pgtest"
)

func TestMain(m *testing.M) {
	Gateway()
	os.Exit(pgtest.Main(m))
}

// TestJudge: a median at one number of channels that misses is an aim missed.
func TestJudge(t *testing.T) {
	at := func(channels int, rate float64) point {
		own := bench.Series{Name: payee, Rates: []float64{rate, rate, 1e9}}
		p := point{channels, []bench.Series{own}}
		for _, name := range []string{unsynced, synced, locked, inMemory} {
			p.series = append(p.series, bench.Series{Name: name, Rates: []float64{10, 10, 10}})
		}
		return p
	}
	for _, c := range []struct {
		points []point
		want   [4]bench.Result // of the aims, in order
	}{
		{[]point{at(16, 1e6)}, [4]bench.Result{bench.NotMeasured, bench.NotMeasured, bench.NotMeasured, bench.NotMeasured}},
		{[]point{at(16, 1), at(64, 1e6)}, [4]bench.Result{bench.Met, bench.Met, bench.Met, bench.NotMeasured}},
		{[]point{at(64, 1e6), at(256, 14), at(1024, 150)}, [4]bench.Result{bench.Missed, bench.Missed, bench.Missed, bench.Met}},
		{[]point{at(64, 150), at(1024, 6)}, [4]bench.Result{bench.Missed, bench.Missed, bench.Missed, bench.Missed}},
	} {
		for i, a := range judge(c.points, 1) {
			if a.Result != c.want[i] {
				t.Errorf("%s: %s (%s), want %s", a.Text, a.Result, a.Figure, c.want[i])
			}
		}
	}
}

// forgetful drops every third payment.
type forgetful struct {
	gateway
	calls int
}

func (f *forgetful) accept(ctx context.Context, v []channel.Voucher) error {
	if f.calls++; f.calls%3 == 0 {
		return nil
	}
	return f.gateway.accept(ctx, v)
}

// TestWhoDropsPaymentsIsFound: speed that comes of losing money is none.
func TestWhoDropsPaymentsIsFound(t *testing.T) {
	b, err := newBook(1)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		to gateway
		ok bool
	}{{openMemory(b), true}, {&forgetful{gateway: openMemory(b)}, false}} {
		l := &load{book: b, flight: 1, to: c.to}
		if err := l.prepare(6); err != nil {
			t.Fatal(err)
		}
		if err := l.run(t.Context(), 6); err != nil {
			t.Fatal(err)
		}
		if err := l.check(t.Context()); (err == nil) != c.ok {
			t.Errorf("%T: %v", c.to, err)
		}
	}
}
