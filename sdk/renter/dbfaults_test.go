package renter_test

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/sqlfault"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// TestNoFaultOfTheDatabaseIsSilent: each place that sends a statement to the renter's database is told once that the disk failed. It goes on,
// pays what is owed and has the rest back; every single fault is in the log, or in what the program was told.
func TestNoFaultOfTheDatabaseIsSilent(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	before := m.Tokens(t, m.PayeeAddress())
	dir := t.TempDir()
	disk := sqlfault.At(t, dir)
	config, log := renterrig.Config(t, m, m.Payer), &testrig.Log{}
	config.Database, config.Log = filepath.Join(dir, "renter.db"), slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	config.Caps.PerDay = wallet.Unlimited
	t.Cleanup(func() {
		if t.Failed() && testing.Verbose() {
			fmt.Println(log.String())
		}
	})
	r := renterrig.Open(t, config)
	again := func(call func() error) {
		t.Helper()
		var err error
		for range 200 {
			if err = call(); err == nil {
				return
			}
			fmt.Fprintln(log, "returned:", err)
			time.Sleep(20 * time.Millisecond)
		}
		t.Fatal(err)
	}
	disk.Arm(true)
	var l *renter.Rental
	again(func() (err error) {
		begun, err := r.Rentals(t.Context())
		switch {
		case err != nil:
			return err
		case len(begun) > 0: // what failed halfway is gone on with: it may hold a deposit
			l, err = r.Resume(t.Context(), begun[0].Channel)
		default:
			l, err = r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1", PayEvery: 100 * time.Millisecond})
		}
		return err
	})
	ran := make(chan struct{})
	var over atomic.Bool
	go func() {
		defer close(ran)
		for !over.Load() {
			if err := l.Run(t.Context()); err != nil {
				fmt.Fprintln(log, "returned:", err)
			}
		}
	}()
	for range 6 {
		seen := l.Snapshot().Sequence
		testrig.Eventually(t, "records", func() bool { return l.Snapshot().Sequence > seen+2 })
		testrig.HangUp(server)
	}
	var c renter.Closing
	again(func() (err error) { c, err = l.Close(t.Context()); return err })
	over.Store(true)
	<-ran
	disk.Arm(false)
	checkClosing(t, m, c, m.PayerAddress(), before)
	if open, err := r.Rentals(t.Context()); err != nil || len(open) != 1 || open[0].Phase != renter.PhaseClosed || open[0].Paid != c.Settled || c.Settled != c.Owed {
		t.Errorf("unfinished are %+v (%v), want the closed one: %+v", open, err, c)
	}
	disk.Said(t, log.String(), nil)
}
