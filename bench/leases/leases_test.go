package main

import (
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/bench/gateway"
)

func TestMain(m *testing.M) {
	gateway.Main()
	os.Exit(m.Run())
}

// TestFewLeases measures fifty leases for some seconds: every lease is taken up, read, recorded and paid for.
func TestFewLeases(t *testing.T) {
	var out strings.Builder
	s := series{out: &out, scratch: t.TempDir(), counts: []int{20, 50}, streams: 50, tick: 100 * time.Millisecond, period: time.Second, span: time.Second}
	if err := s.measure(t.Context()); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 4 {
		t.Fatalf("%d lines: %s", len(lines), out.String())
	}
	for _, line := range lines {
		if !strings.HasPrefix(line, "BenchmarkLeases/stream=") || strings.Contains(line, "NaN") ||
			strings.Contains(line, "\t0 vouchers/s") || strings.Contains(line, "\t0 readings\t") {
			t.Error(line)
		}
	}
}

// rig is a gateway with a few leases, and their payers.
func rig(t *testing.T, leases int) (*payers, gateway.Options) {
	ctx, dir := t.Context(), t.TempDir()
	w, err := gateway.NewWorld(ctx, leases)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	o := gateway.Options{RPC: w.Chain.URL, Token: w.Chain.Token, Database: filepath.Join(dir, "provider.db"), Leases: leases, Tick: 50 * time.Millisecond, Period: time.Second}
	g, err := w.Start(ctx, o)
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
