//go:build unix

package renter_test

import (
	"context"
	"encoding/hex"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// stoppedRenter is the environment that makes this test binary a renter: it
// rents, and pays until it is told to go on no more.
const stoppedRenter = "GPUPAY_TEST_STOPPED_RENTER"

// TestStoppedRenterProcess is no test: it is the program that
// TestRenterThatWasStopped stops.
func TestStoppedRenterProcess(t *testing.T) {
	url := os.Getenv(stoppedRenter)
	if url == "" {
		t.Skip("only as another test's child")
	}
	key, err := crypto.HexToECDSA(os.Getenv(stoppedRenter + "_KEY"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := renter.New(t.Context(), renter.Config{
		RPC: os.Getenv(stoppedRenter + "_RPC"), Token: common.HexToAddress(os.Getenv(stoppedRenter + "_TOKEN")), Key: channel.NewKey(key),
		Database: os.Getenv(stoppedRenter + "_DB"), Caps: wallet.Caps{PricePerGPUHour: "4.00", PerLease: "10", PerDay: "20", PerPayee: wallet.Unlimited},
		Patience: 4 * time.Second, Chain: wallet.Chain{Poll: 50 * time.Millisecond}, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l, err := r.Rent(t.Context(), url, renter.Options{Deposit: "1", PayEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { defer cancel(); _, _ = io.Copy(io.Discard, os.Stdin) }() // until the other test has seen enough
	if err := l.Run(ctx); ctx.Err() == nil {
		t.Fatalf("Run: %v", err)
	}
}

// TestRenterThatWasStopped: a renter is stopped for longer than its patience, as
// by a suspended laptop, while its provider is there all the time. It goes on.
func TestRenterThatWasStopped(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	db := filepath.Join(t.TempDir(), "renter.db")
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestStoppedRenterProcess$", "-test.v")
	child.Env = append(os.Environ(), stoppedRenter+"="+server.URL, stoppedRenter+"_DB="+db, stoppedRenter+"_RPC="+m.URL,
		stoppedRenter+"_TOKEN="+m.Token.Hex(), stoppedRenter+"_KEY="+hex.EncodeToString(crypto.FromECDSA(m.Payer)))
	child.Stderr = os.Stderr
	enough, err := child.StdinPipe()
	if err == nil {
		err = child.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	records := func() (sequence uint64) {
		open, err := renter.RentalsFile(t.Context(), db)
		if err == nil && len(open) == 1 {
			return open[0].Sequence
		}
		return 0
	}
	testrig.Eventually(t, "records", func() bool { return records() > 5 })
	if err := child.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(6 * time.Second)
	before := records()
	if err := child.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	testrig.Eventually(t, "records after the stop", func() bool { return records() > before+10 })
	enough.Close()
	if err := child.Wait(); err != nil {
		t.Errorf("the renter: %v", err)
	}
}
