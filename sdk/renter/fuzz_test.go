package renter_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math/big"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/internal/evidence"
	"github.com/gpupay/gpupay/sdk/internal/paystream"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// What of a provider's words reaches a renter.
const (
	saysEvent   = iota // on the lease's stream
	saysFirst          // the first of a stream that is attached to again
	saysRelease        // the record in the answer to a release
	saysWays
)

// FuzzLease has a provider say anything to a renter with a lease. Whatever it is, without a record that the meter signed
// nothing more is owed, nothing more than the prepayment is signed for, the lease stays the one that was agreed, and what
// is refused is kept as evidence.
func FuzzLease(f *testing.F) {
	l, record := fuzzRental(f)
	for _, seed := range []struct {
		name     string
		document any
	}{
		{wire.EventUsage, json.RawMessage(record)},
		{wire.EventNeedVoucher, wire.NeedVoucher{ChannelID: l.Lease().ID, RequiredCumulative: wire.NewAmount(*uint256.NewInt(1 << 40))}},
		{wire.EventNeedVoucher, wire.NeedVoucher{ChannelID: l.Lease().ID, RequiredCumulative: wire.NewAmount(*uint256.NewInt(1_000_000))}}, // it is there
		{wire.EventStatus, wire.Status{State: wire.StateEnded, Reason: "\x1b[2J"}},
		{wire.EventLease, wire.Lease{LeaseID: l.Lease().Row.Lease, ChannelID: l.Lease().ID, OfferHash: l.Lease().Offer.Hash, Devices: l.Lease().Row.Devices, State: "x"}},
		{wire.EventLease, wire.Lease{LeaseID: l.Lease().Row.Lease, ChannelID: l.Lease().ID, OfferHash: l.Lease().Offer.Hash, Devices: l.Lease().Row.Devices, Binding: &wire.MeterBinding{LeaseID: l.Lease().Row.Lease, Meter: wire.Address{1}}}},
	} {
		raw, err := json.Marshal(seed.document)
		if err != nil {
			f.Fatal(err)
		}
		for way := range byte(saysWays) {
			f.Add(way, seed.name, raw)
			f.Add(way, seed.name, []byte("null"))
		}
	}
	before, row := l.Lease().Checker.State(), l.Lease().Row
	f.Fuzz(func(t *testing.T, way byte, name string, document []byte) {
		l.Lease().Row, l.Lease().Demand, way = row, paystream.Demand{}, way%saysWays
		if err := l.Lease().Forget(); err != nil { // the checker starts from the same record each time
			t.Fatal(err)
		}
		err := say(t.Context(), l, way, wire.Event{Name: name, Data: document})
		var lie *wallet.Dispute
		if err != nil && !errors.As(err, &lie) && !rental.IsTransient(err) && way != saysRelease {
			t.Fatalf("%s %s: %v", name, document, err)
		}
		if lie != nil {
			checkEvidence(t, l, document)
		}
		if after := l.Lease().Checker.State(); after.Sequence != before.Sequence || after.Owed != before.Owed || l.Lease().Row.Checker.Owed != before.Owed {
			t.Fatalf("%s %s: from %+v to %+v", name, document, before, after)
		}
		if l.Lease().Row.Lease != row.Lease || l.Lease().Row.Deposit != row.Deposit || l.Lease().Row.OwedBefore != row.OwedBefore || l.Lease().Row.Binding != row.Binding {
			t.Fatalf("%s %s: the lease became %+v", name, document, l.Lease().Row)
		}
		if l.Lease().Row.Ended != peer.Printable(l.Lease().Row.Ended) {
			t.Fatalf("%s %s: the reason is %q", name, document, l.Lease().Row.Ended)
		}
		most, failed := l.Lease().Target()
		paid, lost := l.Lease().Payer.State(t.Context(), l.Lease().ID)
		if err := errors.Join(failed, lost); err != nil || paid.Signed.Gt(&most) {
			t.Fatalf("%s %s: %s is signed for, at most %s is due: %v", name, document, paid.Signed.Dec(), most.Dec(), err)
		}
	})
}

// say lets the provider speak one of its ways.
func say(ctx context.Context, l *renter.Rental, way byte, e wire.Event) error {
	switch way {
	case saysFirst:
		l.Lease().Feed = &peer.Subscription{Events: make(chan wire.Event, 1), Cancel: func() {}}
		l.Lease().Feed.Events <- e
		close(l.Lease().Feed.Events)
		defer l.Lease().Detach()
		return l.Lease().First(ctx)
	case saysRelease:
		return l.Lease().Released(ctx, wire.Released{Record: e.Data})
	}
	return l.Lease().Handle(ctx, e)
}

// checkEvidence wants the newest evidence to be what was said.
func checkEvidence(t *testing.T, l *renter.Rental, document []byte) {
	t.Helper()
	rows, err := l.Evidence(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range rows {
		if string(e.Document) == string(evidence.WithoutSecrets(document)) {
			err := l.Lease().Wallet.DB.Update(t.Context(), func(tx *sqlx.Tx) error { // there is room for a hundred
				_, err := tx.Exec("DELETE FROM rental_evidence")
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("%s was refused and is not among the evidence", document)
}

// fuzzRental rents from a real provider and returns the rental after its first record, and the record.
func fuzzRental(f *testing.F) (*renter.Rental, []byte) {
	f.Helper()
	net, err := devchain.Start(context.Background(), devchain.Options{BlockTime: 50 * time.Millisecond})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { net.Close() })
	key := channel.NewKey(net.Keys[1])
	if err := net.Fund(f.Context(), key.Address(), new(big.Int), *uint256.NewInt(10_000_000)); err != nil {
		f.Fatal(err)
	}
	p, err := provider.New(f.Context(), provider.Config{
		Chain: provider.Chain{Backend: net.Backend, ClockTolerance: 24 * time.Hour, Poll: 20 * time.Millisecond}, Escrow: net.Escrow, Token: net.Token, Key: channel.NewKey(net.Keys[0]), Source: testclock.GPUs(1), Metering: provider.Metering{Clock: testclock.Process(), Tick: 50 * time.Millisecond, RecordEvery: 100 * time.Millisecond},
		Database: filepath.Join(f.TempDir(), "provider.db"), PricePerGPUHour: "3.60", Deposits: provider.Deposits{Min: "0.01"},
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { p.Close() })
	server := httptest.NewServer(p)
	f.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	r, err := renter.New(f.Context(), renter.Config{
		Chain: wallet.Chain{Backend: net.Backend, ClockTolerance: 24 * time.Hour, Poll: 20 * time.Millisecond}, Token: net.Token, Key: key, Database: filepath.Join(f.TempDir(), "renter.db"),
		Caps: wallet.Caps{PricePerGPUHour: "1000", PerLease: "10", PerDay: "10", PerPayee: wallet.Unlimited}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = r.Close() })
	l, err := r.Rent(f.Context(), server.URL, renter.Options{Deposit: "5"})
	if err != nil {
		f.Fatal(err)
	}
	for e := range l.Lease().Feed.Events {
		if e.Name != wire.EventUsage {
			continue
		}
		if err := l.Lease().Check(f.Context(), e.Data); err != nil {
			f.Fatal(err)
		}
		l.Lease().Detach()
		return l, e.Data
	}
	f.Fatalf("the stream ended: %v", l.Lease().Feed.Err)
	return nil, nil
}
