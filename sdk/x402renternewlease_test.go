package sdk

import (
	"context"
	"encoding/json"
	"errors"
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
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// mill is a provider of ticks that begins another lease at every tick.
type mill struct {
	t       *testing.T
	s       *stall
	key     *channel.Key
	price   metering.Price
	signed  wire.SignedOffer
	leases  uint64
	fill    bool                                             // records are as large as they may be
	past    bool                                             // a lease's first record says nothing and is not shown
	before  time.Duration                                    // that each lease but the first says was used before it
	hidden  time.Duration                                    // that each lease but the first says was used in a record which is not shown
	worth   func(lease uint64, covered uint64) time.Duration // billed by a lease, if the voucher before covers so many ms
	other   bool                                             // what is asked for is no tick
	settled uint64                                           // claimed
	server  *httptest.Server
}

const (
	millPrice = 1000 // base units a second: one is a ms
	millAsk   = 60_001
)

func newMill(t *testing.T, past bool, worth func(lease, covered uint64) time.Duration) *mill {
	t.Helper()
	return millAt(t, newStall(t, testrig.NewX402Market(t)), past, worth)
}

func millAt(t *testing.T, s *stall, past bool, worth func(lease, covered uint64) time.Duration) *mill {
	t.Helper()
	m := &mill{
		t: t, s: s, key: channel.NewKey(s.Key), past: past, worth: worth,
		price: metering.Price{Amount: *uint256.NewInt(millPrice), Unit: metering.Second},
	}
	m.offer()
	s.Offer.Amount = wireAmount(millAsk)
	s.Offer.Extra.MinDeposit = ptr(wireAmount(5_000_000))
	s.Instead = m.serve
	mux := http.NewServeMux()
	mux.HandleFunc("/offer", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(m.signed.Document) })
	mux.Handle("/", s)
	m.server = httptest.NewServer(mux)
	t.Cleanup(m.server.Close)
	s.Mint(t, s.PayerAddress(), 50_000_000)
	return m
}

// offer signs one with the mill's key.
func (m *mill) offer() {
	m.t.Helper()
	var err error
	m.signed, err = wire.SignOffer(m.t.Context(), m.key, wire.Offer{
		Version: 1, ChainID: 31337, Escrow: wire.Address(m.s.Escrow), Token: wire.Address(m.s.Token),
		Payee: wire.Address(m.key.Address()), Meter: wire.Address(m.key.Address()),
		Amount: wire.NewAmount(m.price.Amount), Unit: string(m.price.Unit), Credit: 10,
		MinDeposit: wireAmount(1), Tick: 50, MaxGap: 3000, RecordEvery: 50, Simulated: true, Expires: time.Now().Add(time.Hour).Unix(),
	})
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *mill) serve(s *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
	if p.Payload.Voucher.MaxClaimableAmount.Uint64() != s.Base+millAsk {
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
		Escrow: terms.Escrow, Price: m.price, Devices: []string{sim.UUID(0)}, OwedBefore: *uint256.NewInt(s.Base),
	}
	if m.leases > 1 {
		lease.OwedBefore.AddUint64(&lease.OwedBefore, uint64(m.before.Milliseconds()))
	}
	rec := m.record(lease, m.worth(m.leases, covered))
	charge := rec.Owed.Uint64() - s.Base
	voucher := p.Payload.Voucher
	s.Base, s.Newest = s.Base+charge, &voucher
	receipt := x402.SettleResponse{
		Success: true, Network: 31337, ChargedAmount: ptr(wireAmount(charge)),
		ChannelState: &x402.ChannelState{ChargedCumulativeAmount: ptr(wireAmount(s.Base))},
	}
	if err := receipt.Set(w.Header()); err != nil {
		m.t.Error(err)
	}
	_ = json.NewEncoder(w).Encode(wire.Tick{
		LeaseID: lease.ID, ChannelID: terms.ID(), OfferHash: m.signed.Hash, Devices: lease.Devices,
		Access: json.RawMessage(`{}`), State: "active", Charged: wireAmount(charge), Record: &rec,
	})
	return true
}

// record bills so much, none of which passed.
func (m *mill) record(lease metering.Lease, worth time.Duration) metering.SignedRecord {
	clock := sim.NewClock()
	source := sim.New(1, sim.Options{Clock: clock})
	meter, err := metering.NewMeter(metering.Config{Devices: lease.Devices, Tick: 50 * time.Millisecond})
	if err != nil {
		m.t.Error(err)
	}
	recorder, err := metering.NewRecorder(lease, m.key, nil)
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
	for ran := m.hidden; m.leases > 1 && ran > 0; ran -= 50 * time.Millisecond {
		clock.Advance(50 * time.Millisecond)
		observe()
	}
	if m.past {
		if _, err := recorder.Next(context.Background(), meter.Cut(), false); err != nil {
			m.t.Error(err)
		}
	}
	for ; worth >= 50*time.Millisecond; worth -= 50 * time.Millisecond {
		clock.Advance(50 * time.Millisecond)
		observe()
	}
	rec, err := recorder.Next(context.Background(), meter.Cut(), false)
	if err == nil && m.fill {
		for range 120 {
			rec.Evidence.Devices[0].Missing = append(rec.Evidence.Devices[0].Missing, strings.Repeat("x", 250))
		}
		rec.EvidenceHash = rec.Evidence.Hash()
		rec.Signature, err = m.key.Sign(context.Background(), recorder.Digest(rec.Record))
	}
	if err != nil {
		m.t.Error(err)
	}
	return rec
}

// TestX402NewLeasesFillNoDisk: a provider that begins a lease at every tick, and answers each at once with a record that is
// as large as one may be, is given as much room on the renter's disk as one lease has in that time.
func TestX402NewLeasesFillNoDisk(t *testing.T) {
	m := newMill(t, false, func(uint64, uint64) time.Duration { return 0 })
	m.fill = true
	x := m.s.client(wallet.Caps{PricePerGPUHour: "10", PerLease: "5", PerDay: "50", PerPayee: "50"}, X402Options{MaxPrice: wallet.Unlimited})
	rental, err := x.Rent(t.Context(), m.server.URL, 1)
	if err != nil {
		t.Fatal(err)
	}
	kept, began := 0, time.Now()
	for range 100 {
		var tick X402Tick
		if tick, err = rental.Tick(t.Context()); err != nil {
			break
		}
		kept += len(tick.Record.Evidence.Encode())
	}
	most := (int(time.Since(began)/metering.MinRecordEvery) + 100) * int(metering.RecordRoom(1))
	if kept > most || kept == 0 {
		t.Errorf("%d bytes are kept, in this time there is room for %d", kept, most)
	}
	if err != nil && !errors.Is(err, metering.ErrRoom) {
		t.Error(err)
	}
}

// TestX402NewLeasesBillNoMoreThanPassed: a provider that begins a lease at every tick bills the time that passed on our
// clock and the tolerance, which it has once on a channel, whatever its vouchers would cover.
func TestX402NewLeasesBillNoMoreThanPassed(t *testing.T) {
	late := func(past bool, before, hidden time.Duration) *mill {
		m := newMill(t, past, func(lease, _ uint64) time.Duration { return time.Duration(2-min(lease, 2)) * 50 * time.Millisecond })
		m.before, m.hidden = before, hidden
		return m
	}
	before, hidden, halves := late(false, 2900*time.Millisecond, 0), late(true, 0, 2900*time.Millisecond), late(true, 1400*time.Millisecond, 1400*time.Millisecond)
	for name, m := range map[string]*mill{
		"the time of the voucher before": newMill(t, true, func(lease, covered uint64) time.Duration {
			if lease == 1 {
				return 200 * time.Millisecond
			}
			return time.Duration(min(covered, 30_000)) * time.Millisecond
		}),
		"the tolerance at every lease":         newMill(t, false, func(uint64, uint64) time.Duration { return 200 * time.Millisecond }),
		"a late reading before every lease":    before,
		"a late reading in a hidden record":    hidden,
		"half of a late reading, and the rest": halves,
	} {
		t.Run(name, func(t *testing.T) {
			x := m.s.client(wallet.Caps{PricePerGPUHour: "10", PerLease: "5", PerDay: "50", PerPayee: "50"}, X402Options{MaxPrice: wallet.Unlimited})
			rental, err := x.Rent(t.Context(), m.server.URL, 1)
			if err != nil {
				t.Fatal(err)
			}
			var paid uint64
			began := time.Now()
			for range 100 {
				var tick X402Tick
				if tick, err = rental.Tick(t.Context()); err != nil {
					break
				}
				paid += tick.Charged.Uint64()
			}
			var d *wallet.Dispute
			if most := uint64((time.Since(began) + tickTolerance).Milliseconds()); paid > most || paid == 0 {
				t.Errorf("%d ms were paid for, %d passed and are tolerated", paid, most)
			}
			if !errors.As(err, &d) || !errors.Is(err, metering.ErrClock) {
				t.Errorf("%v, want a dispute about the clock", err)
			}
		})
	}
}
