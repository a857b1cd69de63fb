package renter_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/internal/paystream"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestOneGPULetTwice: a provider lets one GPU twice to one renter, which pays for
// it once. It also hears of it when the first rental is only on disk.
func TestOneGPULetTwice(t *testing.T) {
	m := testrig.NewMarket(t)
	v := testrig.NewHostile(t, m, nil)
	v.Script = func(p *testrig.Stream) { // all of its leases read one clock from one moment on
		var last *metering.SignedRecord
		for range 4 {
			rec := p.RealNext(last)
			p.Usage(rec)
			last = &rec
		}
	}
	config := renterrig.Config(t, m, m.Payer)
	config.Caps.PerDay = wallet.Unlimited
	r := renterrig.Open(t, config)
	first, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "1"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := renterrig.Background(ctx, first)
	testrig.Eventually(t, "records", func() bool { return first.Snapshot().Sequence == 4 })
	cancel()
	<-done
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	r = renterrig.Open(t, config)
	second, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "1"})
	if err != nil {
		t.Fatal(err)
	}
	var dispute *wallet.Dispute
	if err := second.Run(t.Context()); !errors.As(err, &dispute) || !errors.Is(err, wallet.ErrLetTwice) {
		t.Errorf("%v, want a dispute for ErrLetTwice", err)
	}
	if paid := second.Snapshot().Paid; !paid.IsZero() {
		t.Errorf("%s paid", paid.Dec())
	}
}

// TestAccessSteersNoTerminal: what is there to be shown cannot steer a terminal,
// and a key in it keeps its lines.
func TestAccessSteersNoTerminal(t *testing.T) {
	lease := wire.Lease{Access: json.RawMessage("{\"ssh\":\"a\\u001b[2Jb\u009b2J\u202e\",\"key\":\"x\\ny\",\"port\":22,\"l\":[\"\\u0007c\"]}")}
	if err := paystream.Fitting(&lease); err != nil {
		t.Fatal(err)
	}
	if got, want := string(lease.Access), `{"key":"x\ny","l":["c"],"port":22,"ssh":"a[2Jb2J"}`; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestSecretsThatAreKept: up to the bound.
func TestSecretsThatAreKept(t *testing.T) {
	for n, want := range map[int]error{256: nil, 257: peer.ErrProtocol} {
		if err := paystream.Fitting(&wire.Lease{Secret: strings.Repeat("s", n)}); !errors.Is(err, want) {
			t.Errorf("a secret of %d bytes: %v, want %v", n, err, want)
		}
	}
}

// TestLostDatabase: the database is gone, and with it every rental. What is on
// the chain is found there, and comes back.
func TestLostDatabase(t *testing.T) {
	m := testrig.NewMarket(t)
	v := testrig.NewHostile(t, m, nil)
	v.Script = func(*testrig.Stream) {}
	lost := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	var want common.Hash
	for range 2 {
		l, err := lost.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "1"})
		if err != nil {
			t.Fatal(err)
		}
		if l.Lease().Detach(); want != (common.Hash{}) {
			leave(t, m, l) // it is over, and nothing is left to find
			break
		}
		want = l.ID()
	}
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	for i, n := range []int{1, 0} { // the second time it is known
		found, err := r.Recover(t.Context(), m.Escrow, 0)
		if err != nil || len(found) != n || n == 1 && found[0] != want {
			t.Fatalf("look %d found %v, %v; want %s", i, found, err, want)
		}
	}
	l, err := r.Rental(t.Context(), want)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := r.Export(t.Context(), want); err != nil || b.Channel != want || audit.Failures(audit.Verify(t.Context(), b, nil)) != nil {
		t.Errorf("its bundle: %+v, %v", b, err)
	}
	if proofs, err := r.Equivocations(t.Context(), want); err != nil || len(proofs) != 0 {
		t.Errorf("%d proofs, %v", len(proofs), err)
	}
	if _, err := l.Close(t.Context()); !errors.Is(err, peer.ErrRefused) {
		t.Errorf("Close: %v, want ErrRefused", err)
	}
	leave(t, m, l)
	if got := m.Tokens(t, r.Address()); got != testrig.Thousand {
		t.Errorf("%d of %d are back", got, testrig.Thousand)
	}
}

// TestPoorAndThenNot: a top-up that the balance did not cover is made when it
// does.
func TestPoorAndThenNot(t *testing.T) {
	m := testrig.NewMarket(t)
	d := newDrawer(t, m)
	config := renterrig.Config(t, m, m.Payer)
	config.Caps.PerLease, config.Caps.PerDay = "3000", "3000"
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), d.Server.URL, renter.Options{Deposit: "600", TopUp: "600"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Lease().Detach()
	if err := l.Lease().TopUp(t.Context()); !errors.Is(err, wallet.ErrBalance) || l.Lease().MayTopUp() {
		t.Fatalf("%v, want ErrBalance", err)
	}
	m.Mint(t, r.Address(), testrig.Thousand)
	l.Lease().Topped = time.Time{}
	if err := l.Lease().TopUp(t.Context()); err != nil || !l.Lease().MayTopUp() {
		t.Errorf("%v", err)
	}
}
