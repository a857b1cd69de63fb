package renter_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/eip712"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/verify"
	"github.com/gpupay/gpupay/sdk/internal/evidence"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestProofIsNotCrowdedOut: a provider fills its renter's evidence with whatever it can say, calls a part of its records its
// secret, and sends a megabyte with the record that contradicts it. The proof is there, in the renter's database and in
// what is exported of it.
func TestProofIsNotCrowdedOut(t *testing.T) {
	m := testrig.NewMarket(t)
	v := testrig.NewHostile(t, m, nil)
	v.ForgeLease = func(l *wire.Lease) { l.Secret = l.LeaseID.Hex() }
	forked := make(chan struct{})
	v.Script = func(p *testrig.Stream) {
		p.Honest(3)
		<-forked
		p.Usage(p.Resign(p.Sent, func(r *metering.SignedRecord) {
			r.To++
			r.Evidence.Source = strings.Repeat("x", 900_000)
		}))
	}
	config := renterrig.Config(t, m, m.Payer)
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "1", PayEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 * wallet.MaxPieces { // each says something else
		if err := l.Lease().Silent(t.Context(), fmt.Errorf("excuse %d", i)); !errors.Is(err, peer.ErrSilent) {
			t.Fatal(err)
		}
	}
	if kept, err := l.Evidence(t.Context()); err != nil || len(kept) != 1 {
		t.Errorf("%d silences are kept, %v", len(kept), err)
	}
	for i := range wallet.MaxPieces {
		if err := r.Wallet().Keep(t.Context(), wallet.Evidence{Channel: l.ID(), URL: l.Lease().Row.URL, Reason: fmt.Sprint(i), At: time.Now()}); err != nil {
			t.Fatal(err)
		}
	}
	close(forked)
	if err := l.Run(t.Context()); !errors.Is(err, verify.ErrForked) {
		t.Fatalf("the fork was not noticed: %v", err)
	}
	proofs, err := r.Equivocations(t.Context(), l.ID())
	if err != nil || len(proofs) != 1 {
		t.Fatalf("%d proofs, %v", len(proofs), err)
	}
	exported, err := renter.ExportFile(t.Context(), config.Database, l.ID())
	if err != nil || len(exported.Equivocations()) != 1 {
		t.Errorf("the exported bundle has not the proof: %v", err)
	}
}

// TestRefusedRecordIsKeptWithoutItsJunk: a signed lie is kept whole, whatever it comes with.
func TestRefusedRecordIsKeptWithoutItsJunk(t *testing.T) {
	m := testrig.NewMarket(t)
	v := testrig.NewHostile(t, m, nil)
	v.Script = func(p *testrig.Stream) {
		p.Honest(2)
		p.Usage(p.Resign(p.Next(50*time.Millisecond), func(r *metering.SignedRecord) {
			r.Evidence.Source = strings.Repeat("x", 900_000)
			r.EvidenceHash = r.Evidence.Hash()
		}))
	}
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Run(t.Context()); !errors.Is(err, metering.ErrEvidence) {
		t.Fatalf("the junk was taken: %v", err)
	}
	kept, err := l.Evidence(t.Context())
	if err != nil || len(kept) != 1 || len(kept[0].Document) > evidence.MaxRecord {
		t.Fatalf("%d pieces, %v", len(kept), err)
	}
	var rec metering.SignedRecord
	if err := json.Unmarshal(kept[0].Document, &rec); err != nil || rec.Sequence != 3 {
		t.Errorf("record %d is kept, %v", rec.Sequence, err)
	}
	if who, err := eip712.Recover(rec.Digest(metering.Domain(31337, m.Escrow)), rec.Signature); err != nil || who != v.Key.Address() {
		t.Errorf("it is signed by %s: %v", who, err)
	}
}
