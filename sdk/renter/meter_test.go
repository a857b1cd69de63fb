package renter_test

import (
	"context"
	"encoding/json"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/internal/exactjson"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/verify"
	"github.com/gpupay/gpupay/sdk/audit"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestLeaseWithoutItsMeter: a renter takes up no lease whose meter its payee did not bind to it.
func TestLeaseWithoutItsMeter(t *testing.T) {
	m := testrig.NewMarket(t)
	for name, forge := range map[string]func(*testrig.Hostile, *wire.Lease){
		"none": func(_ *testrig.Hostile, l *wire.Lease) { l.Binding = nil },
		"of another lease": func(v *testrig.Hostile, l *wire.Lease) {
			l.Binding = v.Bind(l, v.MeterKey.Address(), func(b *wire.MeterBinding) { b.LeaseID[0]++ })
		},
		"of another channel": func(v *testrig.Hostile, l *wire.Lease) {
			l.Binding = v.Bind(l, v.MeterKey.Address(), func(b *wire.MeterBinding) { b.ChannelID[0]++ })
		},
		"under another offer": func(v *testrig.Hostile, l *wire.Lease) {
			l.Binding = v.Bind(l, v.MeterKey.Address(), func(b *wire.MeterBinding) { b.OfferHash[0]++ })
		},
		"not signed":         func(v *testrig.Hostile, l *wire.Lease) { l.Binding.Meter[0]++ },
		"beside a named one": nil,
	} {
		t.Run(name, func(t *testing.T) {
			v := testrig.NewHostileNodes(t, m)
			if forge == nil {
				bind := v.ForgeLease
				v = testrig.NewHostile(t, m, nil)
				v.ForgeLease = bind
				forge = func(v *testrig.Hostile, l *wire.Lease) { l.Binding = v.Bind(l, v.MeterKey.Address(), nil) }
			}
			v.ForgeLease = func(l *wire.Lease) {
				l.Binding = v.Bind(l, v.MeterKey.Address(), nil)
				forge(v, l)
			}
			v.Script = func(p *testrig.Stream) { p.Honest(2) }
			r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
			_, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "1"})
			var lie *wallet.Dispute
			if !errors.Is(err, wire.ErrMeter) || !errors.As(err, &lie) {
				t.Errorf("%v", err)
			}
			if paid := v.Highest(); !paid.IsZero() {
				t.Errorf("%s was signed for", paid.Dec())
			}
		})
	}
}

// TestEveryFieldOfABinding: whatever a field of a lease's binding says, no other key is taken for the lease's.
func TestEveryFieldOfABinding(t *testing.T) {
	m := testrig.NewMarket(t)
	v := testrig.NewHostileNodes(t, m)
	v.Script = func(*testrig.Stream) {}
	l, err := renterrig.Open(t, renterrig.Config(t, m, m.Payer)).Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "0.1"})
	if err != nil {
		t.Fatal(err)
	}
	lease := wire.Lease{LeaseID: l.Lease().Row.Lease, ChannelID: l.Lease().ID, OfferHash: l.Lease().Offer.Hash, Devices: l.Lease().Row.Devices, State: "active"}
	real, err := json.Marshal(l.Lease().Row.Binding)
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	variants(t, real, func(what string, document []byte) {
		lease.Binding = nil
		if err := exactjson.Unmarshal(document, &lease.Binding); err != nil {
			refused++
			return
		}
		if err := l.Lease().Judge(lease); err != nil {
			refused++
		} else if !lease.Binding.Same(l.Lease().Row.Binding) {
			t.Errorf("%s: %+v is taken", what, lease.Binding)
		}
	})
	lease.Binding = l.Lease().Row.Binding
	if err := l.Lease().Judge(lease); err != nil || refused < 20 {
		t.Errorf("%d were refused, and what is right is: %v", refused, err)
	}
}

// TestAnotherNodeSigns: a record that another key of the payee signed than the one that is bound to the lease is not paid for, and is
// no second word of the payee's.
func TestAnotherNodeSigns(t *testing.T) {
	m := testrig.NewMarket(t)
	v := testrig.NewHostileNodes(t, m)
	goOn := make(chan struct{})
	v.Script = func(p *testrig.Stream) {
		p.Honest(3)
		<-goOn
		p.Hostile.MeterKey = v.Key
		p.Usage(p.Resign(p.Sent, func(r *metering.SignedRecord) { r.To++ }))
	}
	config := renterrig.Config(t, m, m.Payer)
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "1", PayEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	done := renterrig.Background(t.Context(), l)
	testrig.Eventually(t, "records", func() bool { return l.Snapshot().Sequence == 3 })
	close(goOn)
	if err := <-done; !errors.Is(err, verify.ErrSignature) {
		t.Fatalf("%v", err)
	}
	if proofs, err := r.Equivocations(t.Context(), l.ID()); err != nil || len(proofs) != 0 {
		t.Errorf("%d proofs of what another node signed, %v", len(proofs), err)
	}
}

// TestForkOfABoundMeter: two records of one number by the key that the payee bound to the lease convict the payee, with the binding
// beside them, and without it nobody.
func TestForkOfABoundMeter(t *testing.T) {
	m := testrig.NewMarket(t)
	v := testrig.NewHostileNodes(t, m)
	v.Script = func(p *testrig.Stream) {
		p.Honest(3)
		p.Usage(p.Resign(p.Sent, func(r *metering.SignedRecord) { r.To++ }))
	}
	config := renterrig.Config(t, m, m.Payer)
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "1", PayEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Run(t.Context()); !errors.Is(err, verify.ErrForked) {
		t.Fatalf("%v", err)
	}
	if kept, err := r.Store().Proofs(t.Context(), l.ID()); err != nil || len(kept) != 1 {
		t.Errorf("%d proofs are on disk (%v)", len(kept), err)
	}
	b, err := renter.ExportFile(t.Context(), config.Database, l.ID())
	b = parsed(t, b, err)
	proofs := b.Equivocations()
	if len(proofs) != 1 {
		t.Fatalf("%d proofs", len(proofs))
	}
	p := proofs[0]
	if payee, err := p.Verify(); err != nil || payee != v.Key.Address() {
		t.Errorf("against %s (%v)", payee, err)
	}
	real := *p.Binding
	other := real
	other.Meter = wire.Address(v.Key.Address())
	for name, binding := range map[string]*wire.MeterBinding{"no binding": nil, "another, not signed": &other} {
		if p.Binding = binding; !errors.Is(errOf(p.Verify()), audit.ErrNotEquivocation) {
			t.Errorf("%s: it convicts", name)
		}
	}
	p.Binding, p.Bindings = &real, &[2]wire.MeterBinding{real, real}
	if !errors.Is(errOf(p.Verify()), audit.ErrNotEquivocation) {
		t.Error("records and meters beside each other convict")
	}
	p.Binding, p.Records = nil, [2]metering.SignedRecord{}
	if !errors.Is(errOf(p.Verify()), audit.ErrNotEquivocation) {
		t.Error("one meter twice convicts")
	}
}

func errOf(_ common.Address, err error) error { return err }

// TestTwoMetersOfALease: a payee that binds a second meter to a lease is caught, also by a renter that was started again, and what it
// signed convinces anybody.
func TestTwoMetersOfALease(t *testing.T) {
	m := testrig.NewMarket(t)
	v := testrig.NewHostileNodes(t, m)
	var second atomic.Bool
	v.ForgeLease = func(l *wire.Lease) {
		if l.Binding = v.Bind(l, v.MeterKey.Address(), nil); second.Load() {
			l.Binding = v.Bind(l, v.Key.Address(), nil)
		}
	}
	v.Script = func(p *testrig.Stream) { p.Honest(3) }
	config := renterrig.Config(t, m, m.Payer)
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "1", PayEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := renterrig.Background(ctx, l)
	testrig.Eventually(t, "records", func() bool { return l.Snapshot().Sequence == 3 })
	stop()
	<-done
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	second.Store(true)
	r = renterrig.Open(t, config)
	if l, err = r.Resume(t.Context(), l.ID()); err != nil {
		t.Fatal(err)
	}
	var lie *wallet.Dispute
	if err := l.Run(t.Context()); !errors.Is(err, wire.ErrMeter) || !errors.As(err, &lie) {
		t.Fatalf("%v", err)
	}
	if err := r.Wallet().Vet(t.Context(), v.Key.Address(), "http://elsewhere"); !errors.As(err, &lie) {
		t.Errorf("the payee signed for both meters, and is trusted elsewhere: %v", err)
	}
	if paid, owed := v.Highest(), l.Snapshot().Owed; paid.Gt(&owed) || l.Snapshot().Sequence != 3 {
		t.Errorf("%s was signed for, %s is owed by record %d", paid.Dec(), owed.Dec(), l.Snapshot().Sequence)
	}
	b, err := renter.ExportFile(t.Context(), config.Database, l.ID())
	b = parsed(t, b, err)
	proofs := b.Equivocations()
	if len(proofs) != 1 {
		t.Fatalf("%d proofs", len(proofs))
	}
	if payee, err := proofs[0].Verify(); err != nil || payee != v.Key.Address() || proofs[0].Subject() != "meters of lease "+l.Lease().Row.Lease.Hex() {
		t.Errorf("against %s: %s (%v)", payee, proofs[0].Subject(), err)
	}
}
