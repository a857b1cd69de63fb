package leases

import (
	"database/sql"
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/bench"
	"github.com/gpupay/gpupay/bench/gateway"
)

// TestFewLeases measures fifty leases for some seconds: every lease is taken up, read, recorded and paid for.
func TestFewLeases(t *testing.T) {
	s := Section{counts: []int{20, 50}, streams: 50, tick: 100 * time.Millisecond, period: time.Second, span: time.Second}
	r, err := s.Measure(t.Context(), bench.Settings{Scratch: t.TempDir(), Log: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Tables) != 3 || len(r.Tables[0].Rows) != 4 || len(r.Tables[2].Rows) != 3 || len(r.Plots) != 2 || len(r.Plots[0].Lines[0].Points) != 2 {
		t.Fatalf("%+v", r)
	}
	for _, row := range r.Tables[0].Rows {
		if len(row) != len(r.Tables[0].Head) {
			t.Errorf("%d cells under %d heads: %v", len(row), len(r.Tables[0].Head), row)
		}
		if row[5] == "0" || row[6] == "0" {
			t.Errorf("no voucher or no record: %v", row)
		}
	}
	for _, a := range r.Aims {
		if a.Result != bench.NotMeasured {
			t.Errorf("fifty leases say nothing about %q", a.Text)
		}
	}
}

// rig is a gateway with a few leases, and their payers.
func rig(t *testing.T, leases int) (*payers, gateway.Options) {
	ctx, dir := t.Context(), t.TempDir()
	program, err := gateway.Build(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	w, err := gateway.NewWorld(ctx, leases)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	o := gateway.Options{RPC: w.Chain.URL, Token: w.Chain.Token, Database: filepath.Join(dir, "provider.db"), Leases: leases, Tick: 50 * time.Millisecond, Period: time.Second}
	g, err := w.Start(ctx, program, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Kill() })
	p, err := newPayers(ctx, w, g, o)
	if err != nil {
		t.Fatal(err)
	}
	return p, o
}

// TestWhatIsPaidIsKept: a receipt stands for a voucher on disk, a wrong receipt and a refusal are noticed, and so is a
// stream that ends by itself.
func TestWhatIsPaidIsKept(t *testing.T) {
	const leases = 5
	p, o := rig(t, leases)
	all, err := p.sign(t.Context(), 2*time.Second)
	if err != nil || len(all) != 2*leases {
		t.Fatalf("%d vouchers, %v", len(all), err)
	}
	if waits, err := p.send(t.Context(), all); err != nil || len(waits) != len(all) || waits[0] <= 0 {
		t.Fatalf("%v, %v", waits, err)
	}
	db, err := sql.Open("sqlite3", "file:"+o.Database+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var paid int
	if err := db.QueryRow(`SELECT count(*) FROM payee_channels WHERE hex(accepted) = ?`, fmt.Sprintf("%032X", 2000)).Scan(&paid); err != nil || paid != leases {
		t.Errorf("%d of %d channels hold what was paid, %v", paid, leases, err)
	}
	deadline := time.Now().Add(time.Minute)
	for recorded := 0; recorded < leases; time.Sleep(50 * time.Millisecond) {
		if err := db.QueryRow(`SELECT count(DISTINCT lease) FROM records`).Scan(&recorded); err != nil || time.Now().After(deadline) {
			t.Fatalf("%d of %d leases have a record, %v", recorded, leases, err)
		}
	}

	wrong := all[0]
	wrong.amount = 3000 // more than was ever sent
	if err := p.pay(t.Context(), wrong); err == nil || !strings.Contains(err.Error(), "acknowledged") {
		t.Errorf("a receipt for another amount: %v", err)
	}
	wrong.header = "Payment nothing"
	if _, err := p.send(t.Context(), []payment{wrong}); err == nil {
		t.Error("a refusal is not noticed")
	}
	for _, k := range []kind{events, duplex} {
		stop, err := p.watch(t.Context(), k)
		if err != nil {
			t.Fatal(err)
		}
		lost := p.lost
		again, err := p.watch(t.Context(), events) // takes the place of the others
		if err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(time.Minute); len(lost) < leases; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: of %d streams that ended by themselves %d were noticed", k, leases, len(lost))
			}
		}
		if err := stop(); err == nil {
			t.Errorf("%s: nobody is told of a stream that ended by itself", k)
		}
		if err := again(); err != nil {
			t.Error(err)
		}
	}
}

func TestExponent(t *testing.T) {
	var points []point
	for _, n := range []int{1_000, 10_000, 100_000} {
		points = append(points, point{leases: n, cores: 7 * math.Pow(float64(n), 0.8)})
	}
	if e := exponent(points, func(p point) float64 { return p.cores }); math.Abs(e-0.8) > 1e-9 {
		t.Errorf("exponent %v, want 0.8", e)
	}
}

func TestJudge(t *testing.T) {
	good := point{leases: aimLeases, memory: bench.Spread{High: aimMemory - 1}, cores: 0.99, lag: gateway.LagReport{Readings: 1},
		period: time.Minute, span: time.Minute, waits: make([]time.Duration, aimLeases), records: aimLeases}
	want := func(p point, want ...bench.Result) {
		t.Helper()
		for i, a := range judge([]point{{leases: 1_000}, p}) {
			if a.Result != want[i] {
				t.Errorf("%s: %s, want %s", a.Text, a.Result, want[i])
			}
		}
	}
	want(good, bench.Met, bench.Met, bench.Met)
	large, busy, late, unread, few, unpaid, unstated := good, good, good, good, good, good, good
	unpaid.waits = unpaid.waits[:aimLeases*9/10]
	unstated.records = aimLeases * 9 / 10
	want(unpaid, bench.Missed, bench.Missed, bench.Met)
	want(unstated, bench.Missed, bench.Missed, bench.Met)
	large.memory.High++
	busy.cores = 1
	late.lag.Over = 1
	unread.lag.Readings = 0
	few.leases--
	want(large, bench.Missed, bench.Met, bench.Met)
	want(busy, bench.Met, bench.Missed, bench.Met)
	want(late, bench.Met, bench.Met, bench.Missed)
	want(unread, bench.Met, bench.Met, bench.Missed)
	want(few, bench.NotMeasured, bench.NotMeasured, bench.NotMeasured)
}
