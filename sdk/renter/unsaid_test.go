package renter_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestOnlyTheChainEndsAChannel: a provider that says that a channel is closed, or that it does not know it, is believed
// when the chain says so, and what is noted then is on disk.
func TestOnlyTheChainEndsAChannel(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1"})
	if err != nil {
		t.Fatal(err)
	}
	for _, said := range []error{&wire.ChannelFinalized, &wire.ChannelNotFound} {
		if gone, err := l.Lease().Gone(t.Context(), said); gone || err != nil || l.Lease().Row.Ended != "" {
			t.Errorf("%v, of a channel that is open: %v, %v, %q", said, gone, err, l.Lease().Row.Ended)
		}
	}
	server.Close()
	id, err := r.Wallet().Sender.Submit(t.Context(), l.Lease().Escrow.RequestCloseCall(l.Lease().Row.Terms))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Wallet().Sender.Wait(t.Context(), id, 1); err != nil {
		t.Fatal(err)
	}
	if gone, err := l.Lease().Gone(t.Context(), errors.New("connection refused")); gone || err != nil {
		t.Errorf("what says nothing of the channel: %v, %v", gone, err)
	}
	gone, err := l.Lease().Gone(t.Context(), &wire.ChannelFinalized)
	row, loadErr := r.Store().Load(t.Context(), l.Lease().ID)
	if !gone || err != nil || loadErr != nil || row.Ended == "" {
		t.Errorf("of a channel that closes: %v, %v; on disk %q, %v", gone, err, row.Ended, loadErr)
	}
}

// TestInterruptIsNoEnd: who stops a rental while its provider cannot be reached is told that, and not that it ended.
func TestInterruptIsNoEnd(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	config := renterrig.Config(t, m, m.Payer)
	config.Patience = time.Minute
	l, err := renterrig.Open(t, config).Rent(t.Context(), server.URL, renter.Options{Deposit: "1"})
	if err != nil {
		t.Fatal(err)
	}
	testrig.HangUp(server)
	server.Close()
	for range 5 { // now in a pause, now in a try
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		err := l.Run(ctx)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("%v", err)
		}
	}
}

// TestOutgoingCountsItsKind: what the outbox holds of a channel is found again after a crash, and is not taken for the next
// of its kind.
func TestOutgoingCountsItsKind(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1"})
	if err != nil {
		t.Fatal(err)
	}
	all, err := r.Wallet().Sender.Find(t.Context(), l.Lease().ID)
	if err != nil {
		t.Fatal(err)
	}
	var opens []chain.TxID
	for _, tx := range all {
		if tx.Call.Kind == chain.Open {
			opens = append(opens, tx.ID)
		}
	}
	if len(opens) != 1 {
		t.Fatalf("%d opens in the outbox", len(opens))
	}
	for _, c := range []struct {
		kind  chain.Kind
		after int
		want  chain.TxID
	}{{chain.Open, 0, opens[0]}, {chain.Open, 1, ""}, {chain.TopUp, 0, ""}} {
		if id, err := l.Lease().Outgoing(t.Context(), c.kind, c.after); err != nil || id != c.want {
			t.Errorf("%s after %d: %q, %v, want %q", c.kind, c.after, id, err, c.want)
		}
	}
}

// TestTopUpIsOverOnDisk: a top-up that arrived is not tried again by the next process.
func TestTopUpIsOverOnDisk(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "0.5", TopUp: "0.25"})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Lease().TopUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	row, err := r.Store().Load(t.Context(), l.Lease().ID)
	if err != nil || row.TopUp != nil || row.TopUps != 1 {
		t.Errorf("on disk: %+v, %d top-ups, %v", row.TopUp, row.TopUps, err)
	}
	if paid, err := l.Lease().Payer.State(t.Context(), l.Lease().ID); err != nil || paid.Deposit.Uint64() != 750_000 {
		t.Errorf("the deposit is %s, %v", paid.Deposit.Dec(), err)
	}
}

// TestRentNeedsItsBalance: a balance that cannot be read is no balance.
func TestRentNeedsItsBalance(t *testing.T) {
	m := testrig.NewMarket(t)
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if l, err := r.Prepare(ended, renter.Quote{}, renter.Options{GPUs: 1}, *uint256.NewInt(1)); !errors.Is(err, context.Canceled) || l != nil {
		t.Errorf("%v, %v", l, err)
	}
}

// TestNoTopUpBesideADeposit: no top-up is made while another deposit of ours is on its way, nor while the chain or the books
// cannot say whether one is; and a look without its block is none.
func TestNoTopUpBesideADeposit(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	m.Mine(t, 3)
	config, bad := behindEndpoint(t, m)
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "0.5", TopUp: "0.25"})
	if err != nil {
		t.Fatal(err)
	}
	l.Lease().Detach()
	for name, c := range map[string]struct {
		confirmations uint64
		spared        string // of the requests for blocks
	}{"no block": {1, "no request"}, "not the one with its confirmations": {3, "latest"}} {
		bad.On("eth_getBlockByNumber", func(x *badrpc.Exchange) {
			if !strings.Contains(string(x.Params), c.spared) {
				x.Status = http.StatusTooManyRequests
			}
		})
		before := l.Lease().Row
		if _, err := l.Lease().Look(t.Context(), c.confirmations); !errors.Is(err, chain.ErrUnreachable) || !reflect.DeepEqual(l.Lease().Row, before) {
			t.Errorf("%s: %v", name, err)
		}
		if step, err := l.Lease().NextStep(t.Context()); c.confirmations == 1 && (err == nil || !step.IsZero()) {
			t.Errorf("%s: a top-up of %s, %v", name, step.Dec(), err)
		}
		bad.Heal()
	}
	send := func(call chain.Call) chain.TxID {
		t.Helper()
		id, err := r.Wallet().Sender.Submit(t.Context(), call)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	mined := func(id chain.TxID) {
		t.Helper()
		if _, err := r.Wallet().Sender.Wait(t.Context(), id, 1); err != nil {
			t.Fatal(err)
		}
	}
	amount := *uint256.NewInt(250_000)
	mined(send(r.Wallet().Token.ApproveCall(m.Escrow, amount)))
	m.Automine(t, false)
	id := send(l.Lease().Escrow.TopUpCall(l.Terms(), amount))
	if step, err := l.Lease().NextStep(t.Context()); !errors.Is(err, wallet.ErrNotYet) || !strings.Contains(err.Error(), string(id)) || !step.IsZero() {
		t.Errorf("beside a deposit that is on its way: a top-up of %s, %v", step.Dec(), err)
	}
	m.Automine(t, true)
	m.Mine(t, 1)
	mined(id)
	if step, err := l.Lease().NextStep(t.Context()); err != nil || step != amount {
		t.Errorf("after it: a top-up of %s, %v", step.Dec(), err)
	}
	if err := r.Wallet().DB.Update(t.Context(), func(tx *sqlx.Tx) error {
		_, err := tx.Exec(`ALTER TABLE chain_tx RENAME TO gone`)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if step, err := l.Lease().NextStep(t.Context()); err == nil || !step.IsZero() {
		t.Errorf("without its books: a top-up of %s, %v", step.Dec(), err)
	}
}

// TestDamagedRental: a rental whose row on disk is damaged says so, and what to do. Nobody is accused for it.
func TestDamagedRental(t *testing.T) {
	m := testrig.NewMarket(t)
	for name, c := range map[string]struct {
		damage func(*testrig.Hostile, *rental.Row)
		says   string
	}{
		"no devices": {func(_ *testrig.Hostile, row *rental.Row) { row.Devices = nil }, "restore the database from its backup"},
		"an offer of before": {func(_ *testrig.Hostile, row *rental.Row) {
			row.PastOffers, row.Lease, row.Checker = []json.RawMessage{[]byte("{}")}, common.Hash{}, nil
		}, "restore the database from its backup"},
		"an offer of no price": {func(v *testrig.Hostile, row *rental.Row) {
			o := v.Offer.Offer
			o.Unit = "fortnight"
			signed, err := wire.SignOffer(t.Context(), v.Key, o)
			if row.Offer = signed.Document; err != nil {
				t.Error(err)
			}
		}, "fortnight"},
	} {
		t.Run(name, func(t *testing.T) {
			v := testrig.NewHostile(t, m, nil)
			v.Script = func(*testrig.Stream) {}
			r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
			l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "0.1"})
			if err != nil {
				t.Fatal(err)
			}
			l.Lease().Detach()
			row := l.Lease().Row
			c.damage(v, &row)
			if err := r.Store().Save(t.Context(), row); err != nil {
				t.Fatal(err)
			}
			v.ForgeLease = func(lease *wire.Lease) { lease.OfferHash = common.Hash{1} } // as of an offer of before
			if l, err = r.Rental(t.Context(), row.Terms.ID()); err == nil {
				err = l.Lease().Reattach(t.Context())
			}
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want to hear of %q", err, c.says)
			}
			if kept, err := r.Evidence(t.Context(), row.Terms.ID()); err != nil || len(kept) != 0 {
				t.Errorf("the provider is accused: %+v, %v", kept, err)
			}
		})
	}
}
