package rig

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/metering/usage"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// Mill is a provider of ticks that begins another lease at every tick, on a seller's contract and books.
type Mill struct {
	Seller *Seller
	URL    string       // where it is asked for its offer and for ticks
	Meter  *channel.Key // signs its offers and records; the seller's key at first
	Price  metering.Price
	Past   bool          // a lease's first record says nothing and is not shown
	Fill   bool          // records are as large as they may be
	Before time.Duration // that each lease but the first says was used before it
	Hidden time.Duration // that each lease but the first says was used in a record which is not shown
	// Worth is billed by a lease, if the voucher before covers so many ms.
	Worth func(lease, covered uint64) time.Duration

	t      testing.TB
	signed wire.SignedOffer
	leases uint64
}

// Amounts of a mill in base units: what a second costs, so that one is a ms, and what a tick may cost.
const (
	MillPrice = 1000
	MillAsk   = 60_001
)

// NewMill has a seller sell ticks until the test ends.
func NewMill(t testing.TB, s *Seller, worth func(lease, covered uint64) time.Duration) *Mill {
	t.Helper()
	m := &Mill{
		t: t, Seller: s, Meter: channel.NewKey(s.Key), Worth: worth,
		Price: metering.Price{Amount: *uint256.NewInt(MillPrice), Unit: metering.Second},
	}
	m.SignOffer()
	s.Offer.Amount = units(MillAsk)
	least := units(5_000_000)
	s.Offer.Extra.MinDeposit = &least
	s.Instead = m.serve
	mux := http.NewServeMux()
	mux.HandleFunc("/offer", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(m.signed.Document) })
	mux.Handle("/", s)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	m.URL = server.URL
	s.Mint(t, s.PayerAddress(), 50_000_000)
	return m
}

func units(n uint64) wire.Amount { return wire.NewAmount(*uint256.NewInt(n)) }

// SignOffer makes an offer at Price, signed with Meter.
func (m *Mill) SignOffer() {
	m.t.Helper()
	var err error
	m.signed, err = wire.SignOffer(m.t.Context(), m.Meter, wire.Offer{
		Version: 1, ChainID: 31337, Escrow: wire.Address(m.Seller.Escrow), Token: wire.Address(m.Seller.Token),
		Payee: wire.Address(m.Meter.Address()), Meter: wire.Address(m.Meter.Address()),
		Amount: wire.NewAmount(m.Price.Amount), Unit: string(m.Price.Unit), Credit: 10,
		MinDeposit: units(1), Tick: 50, MaxGap: 3000, RecordEvery: 50, Simulated: true, Expires: time.Now().Add(time.Hour).Unix(),
	})
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *Mill) serve(s *Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
	if p.Payload.Voucher.MaxClaimableAmount.Uint64() != s.Base+MillAsk {
		s.Correct(w, s.Base, s.Newest)
		return true
	}
	s.Bank(p)
	m.leases++
	covered := uint64(0)
	if s.Newest != nil {
		covered = s.Newest.MaxClaimableAmount.Uint64() - s.Base
	}
	terms := p.Payload.Config.Terms(p.Accepted.Network)
	lease := metering.Lease{
		ID: common.BigToHash(uint256.NewInt(m.leases).ToBig()), ChannelID: terms.ID(), OfferHash: m.signed.Hash, ChainID: 31337,
		Escrow: terms.Escrow, Price: m.Price, Devices: []string{sim.UUID(0)}, OwedBefore: *uint256.NewInt(s.Base),
	}
	if m.leases > 1 {
		lease.OwedBefore.AddUint64(&lease.OwedBefore, uint64(m.Before.Milliseconds()))
	}
	rec := m.record(lease, m.Worth(m.leases, covered))
	charge := rec.Owed.Uint64() - s.Base
	voucher := p.Payload.Voucher
	s.Base, s.Newest = s.Base+charge, &voucher
	charged, total := units(charge), units(s.Base)
	receipt := x402.SettleResponse{
		Success: true, Network: 31337, ChargedAmount: &charged, ChannelState: &x402.ChannelState{ChargedCumulativeAmount: &total},
	}
	if err := receipt.Set(w.Header()); err != nil {
		m.t.Error(err)
	}
	_ = json.NewEncoder(w).Encode(wire.Tick{
		LeaseID: lease.ID, ChannelID: terms.ID(), OfferHash: m.signed.Hash, Devices: lease.Devices,
		Access: json.RawMessage(`{}`), State: "active", Charged: charged, Record: &rec,
	})
	return true
}

// record bills so much, none of which passed.
func (m *Mill) record(lease metering.Lease, worth time.Duration) metering.SignedRecord {
	clock := sim.NewClock()
	source := sim.New(1, sim.Options{Clock: clock})
	meter, err := usage.NewMeter(usage.Config{Devices: lease.Devices, Tick: 50 * time.Millisecond})
	if err != nil {
		m.t.Error(err)
	}
	recorder, err := usage.NewRecorder(lease, m.Meter, nil)
	if err != nil {
		m.t.Error(err)
	}
	clock.Advance(time.Duration(m.leases) * time.Hour) // no GPU's time is billed twice
	observe := func() {
		reading, err := source.Read(context.Background(), sim.UUID(0))
		if err == nil {
			_, err = meter.Observe(reading)
		}
		if err != nil {
			m.t.Error(err)
		}
	}
	observe()
	for ran := m.Hidden; m.leases > 1 && ran > 0; ran -= 50 * time.Millisecond {
		clock.Advance(50 * time.Millisecond)
		observe()
	}
	if m.Past {
		if _, err := recorder.Next(context.Background(), meter.Cut(), false); err != nil {
			m.t.Error(err)
		}
	}
	for ; worth >= 50*time.Millisecond; worth -= 50 * time.Millisecond {
		clock.Advance(50 * time.Millisecond)
		observe()
	}
	rec, err := recorder.Next(context.Background(), meter.Cut(), false)
	if err == nil && m.Fill {
		for range 120 {
			rec.Evidence.Devices[0].Missing = append(rec.Evidence.Devices[0].Missing, strings.Repeat("x", 250))
		}
		rec.EvidenceHash = rec.Evidence.Hash()
		rec.Signature, err = m.Meter.Sign(context.Background(), recorder.Digest(rec.Record))
	}
	if err != nil {
		m.t.Error(err)
	}
	return rec
}
