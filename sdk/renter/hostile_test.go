package renter_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/bindings"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/internal/eip712"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/metering/usage"
	"github.com/gpupay/gpupay/metering/verify"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// ransomEscrow is our code to the byte, but that withdraw adds another of the
// escrow's own words to the time of the request than the grace period.
func ransomEscrow(t *testing.T, m *testrig.Market, code []byte) common.Address {
	t.Helper()
	address := common.HexToAddress("0xbad3")
	code = bytes.Clone(code)
	put := func(name string, word common.Hash) {
		for _, at := range bindings.ChannelEscrowImmutables()[name] {
			copy(code[at:], word[:])
		}
	}
	put("_cachedThis", common.BytesToHash(address[:]))
	put("_cachedDomainSeparator", channel.EscrowDomain(31337, address).Separator())
	for _, at := range bindings.ChannelEscrowImmutables()["gracePeriod"] {
		changed := bytes.Clone(code)
		copy(changed[at:], common.BytesToHash(address[:]).Bytes())
		m.RPC(t, nil, "anvil_setCode", address, hexutil.Bytes(changed))
		if e, err := chain.NewEscrow(t.Context(), m.Backend, address); err == nil && e.Grace() == chaintest.Grace {
			return address // the word is elsewhere than where gracePeriod() reads
		}
	}
	t.Fatal("no escrow says one grace period and has another")
	return address
}

// TestHostileQuotes: what a renter turns down before it signs anything.
func TestHostileQuotes(t *testing.T) {
	m := testrig.NewMarket(t)
	lookAlike := common.HexToAddress("0xbad")
	code, err := m.Backend.CodeAt(t.Context(), m.Escrow, nil)
	if err != nil {
		t.Fatal(err)
	}
	tampered := append([]byte(nil), code...)
	tampered[len(tampered)-1] ^= 1 // answers every question like ours
	m.RPC(t, nil, "anvil_setCode", lookAlike, hexutil.Bytes(tampered))
	longer := common.HexToAddress("0xbad2")
	m.RPC(t, nil, "anvil_setCode", longer, hexutil.Bytes(append(code, 0)))
	ransom := ransomEscrow(t, m, code)

	stranger, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		offer  func(*wire.Offer)
		change func(*testrig.Hostile)
		caps   func(*wallet.Caps)
		want   error
		kept   bool
	}{
		{"offer signed by somebody else", nil, func(v *testrig.Hostile) {
			v.ForgeOffer = func(v *testrig.Hostile) []byte {
				forged := v.Offer.Offer
				forged.Payee = wire.Address(crypto.PubkeyToAddress(stranger.PublicKey))
				signed, err := wire.SignOffer(t.Context(), channel.NewKey(stranger), forged)
				if err != nil {
					t.Error(err)
				}
				return []byte(strings.Replace(string(signed.Document), forged.Payee.String(), v.Offer.Payee.String(), 1))
			}
		}, nil, channel.ErrSignature, true},
		{"offer cheapened after it was signed", nil, func(v *testrig.Hostile) {
			v.ForgeOffer = func(v *testrig.Hostile) []byte {
				return []byte(strings.Replace(string(v.Offer.Document), `"amount":"1000"`, `"amount":"1"`, 1))
			}
		}, nil, channel.ErrSignature, true},
		{"offer that is no document", nil, func(v *testrig.Hostile) {
			v.ForgeOffer = func(*testrig.Hostile) []byte { return []byte("<html>") }
		}, nil, peer.ErrOffer, true},
		{"challenge asks for another price", nil, func(v *testrig.Hostile) {
			v.ForgeChallenge = func(r *wire.Request) { r.Amount = wire.NewAmount(*uint256.NewInt(1001)) }
		}, nil, peer.ErrOffer, true},
		{"challenge asks for another unit", nil, func(v *testrig.Hostile) {
			v.ForgeChallenge = func(r *wire.Request) { r.UnitType = "gpu_minute" }
		}, nil, peer.ErrOffer, true},
		{"challenge pays somebody else", nil, func(v *testrig.Hostile) {
			v.ForgeChallenge = func(r *wire.Request) { r.Recipient = wire.Address{1} }
		}, nil, peer.ErrOffer, true},
		{"challenge names another escrow", nil, func(v *testrig.Hostile) {
			v.ForgeChallenge = func(r *wire.Request) { r.MethodDetails.EscrowContract = wire.Address{1} }
		}, nil, peer.ErrOffer, true},
		{"credit of years", func(o *wire.Offer) { o.Credit = 1 << 40 }, nil, nil, peer.ErrOffer, true},
		{"more credit than the renter gives", func(o *wire.Offer) { o.Credit = 3601 }, nil, nil, peer.ErrOffer, true},
		{"no credit", func(o *wire.Offer) { o.Credit = 0 }, nil, nil, peer.ErrOffer, true},
		{"records that are a day apart", func(o *wire.Offer) { o.RecordEvery = 86_400_000 }, nil, nil, peer.ErrOffer, true},
		{"records that are no time apart", func(o *wire.Offer) { o.RecordEvery = 0 }, nil, nil, peer.ErrOffer, true},
		{"a record each millisecond", func(o *wire.Offer) { o.Tick, o.RecordEvery = 1, 1 }, nil, nil, peer.ErrOffer, true},
		{"tick of an hour", func(o *wire.Offer) { o.Tick, o.MaxGap = 3_600_000, 3_600_000 }, nil, nil, peer.ErrOffer, true},
		{"gap of an hour", func(o *wire.Offer) { o.MaxGap = 3_600_000 }, nil, nil, peer.ErrOffer, true},
		{"gap that takes time back", func(o *wire.Offer) { o.MaxGap = -1 }, nil, nil, peer.ErrOffer, true},
		{"device whose name steers a terminal", func(o *wire.Offer) { o.Devices = []wire.OfferDevices{{Model: "H100\x1b[2J", Count: 1}} }, nil, nil, peer.ErrOffer, true},
		{"devices that are shared", func(o *wire.Offer) {
			o.Version, o.Share, o.Devices = 2, &wire.Share{GPUs: 1, Slots: 8}, []wire.OfferDevices{{Model: "H100", MemoryBytes: 1, Count: 1}}
		}, nil, nil, peer.ErrOffer, false},
		{"offer that says one thing twice", nil, func(v *testrig.Hostile) {
			v.ForgeOffer = func(v *testrig.Hostile) []byte {
				return []byte(strings.Replace(string(v.Offer.Document), `"amount":"1000"`, `"amount":"1000","Amount":"1"`, 1))
			}
		}, nil, peer.ErrOffer, true},
		{"expired offer", func(o *wire.Offer) { o.Expires = time.Now().Unix() }, nil, nil, peer.ErrOffer, true},
		{"escrow with one byte changed", func(o *wire.Offer) { o.Escrow = wire.Address(lookAlike) }, nil, nil, wallet.ErrEscrow, true},
		{"escrow with one byte more", func(o *wire.Offer) { o.Escrow = wire.Address(longer) }, nil, nil, wallet.ErrEscrow, true},
		{"escrow that withdraws in the year 10122", func(o *wire.Offer) { o.Escrow = wire.Address(ransom) }, nil, nil, wallet.ErrEscrow, true},
		{"escrow that is a token", func(o *wire.Offer) { o.Escrow = wire.Address(m.Token) }, nil, nil, wallet.ErrEscrow, true},
		{"escrow that is nothing", func(o *wire.Offer) { o.Escrow = wire.Address{1} }, nil, nil, wallet.ErrEscrow, true},
		{"another token", func(o *wire.Offer) { o.Token = wire.Address{1} }, nil, nil, wallet.ErrToken, true},
		{"another chain", func(o *wire.Offer) { o.ChainID = 1 }, nil, nil, chain.ErrChainID, true},
		{"dearer than the cap", nil, nil, func(c *wallet.Caps) { c.PricePerGPUHour = "3.599999" }, wallet.ErrPrice, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := testrig.NewHostile(t, m, test.offer)
			if test.change != nil {
				test.change(v)
			}
			config := renterrig.Config(t, m, m.Payer)
			if test.caps != nil {
				test.caps(&config.Caps)
			}
			r := renterrig.Open(t, config)
			_, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "1"})
			if !errors.Is(err, test.want) {
				t.Fatalf("Rent: %v, want %v", err, test.want)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("the error has several lines: %v", err)
			}
			kept, err := r.Evidence(t.Context(), common.Hash{})
			if err != nil || (len(kept) == 1) != test.kept {
				t.Errorf("%d pieces of evidence (%v), want them kept: %v", len(kept), err, test.kept)
			}
			if open, err := r.Rentals(t.Context()); err != nil || len(open) != 0 {
				t.Errorf("%d rentals (%v): nothing should have been begun", len(open), err)
			}
			if got := m.Tokens(t, m.PayerAddress()); got != testrig.Thousand {
				t.Errorf("the payer has %d left", got)
			}
		})
	}
}

// TestHostileLeases: what a renter pays nothing more for once it is caught. In
// every case the deposit comes back without the provider.
func TestHostileLeases(t *testing.T) {
	m := testrig.NewMarket(t)
	for _, test := range []struct {
		name   string
		change func(*testrig.Hostile)
		script func(*testrig.Stream)
		want   error
	}{
		{"claims more time than passed", nil, func(p *testrig.Stream) {
			p.Honest(4)
			p.Usage(p.Next(10 * time.Second))
		}, verify.ErrClock},
		{"claims more time bit by bit", nil, func(p *testrig.Stream) {
			for at := time.Now(); ; { // until nobody listens
				time.Sleep(10 * time.Millisecond)
				passed := time.Since(at)
				at = at.Add(passed)
				p.Usage(p.Next(5 * passed))
			}
		}, verify.ErrClock},
		{"raises the price", nil, func(p *testrig.Stream) {
			p.Honest(4)
			p.Lease.Price.Amount = *uint256.NewInt(2 * testrig.HostilePrice)
			last, _ := p.Recorder.Last()
			recorder, err := usage.NewRecorder(p.Lease, p.Hostile.MeterKey, &last)
			if err != nil {
				p.T.Error(err)
			}
			p.Recorder = recorder
			p.Usage(p.Next(50 * time.Millisecond))
		}, metering.ErrPrice},
		{"owes more than time and price make", nil, func(p *testrig.Stream) {
			p.Honest(2)
			p.Overcharge()
		}, metering.ErrPrice},
		{"signs two records of one number", nil, func(p *testrig.Stream) {
			p.Honest(4)
			p.Usage(p.Resign(p.Sent, func(r *metering.SignedRecord) { r.To++ }))
		}, verify.ErrForked},
		{"signs another record of an old number", nil, func(p *testrig.Stream) {
			p.Honest(2)
			old := p.Sent
			p.Honest(2)
			p.Usage(p.Resign(old, func(r *metering.SignedRecord) { r.To++ }))
		}, verify.ErrForked},
		{"rewrites the chain", nil, func(p *testrig.Stream) {
			p.Honest(4)
			p.Usage(p.Resign(p.Next(50*time.Millisecond), func(r *metering.SignedRecord) { r.Previous = common.Hash{1} }))
		}, verify.ErrForked},
		{"goes on after the final record", nil, func(p *testrig.Stream) {
			p.Honest(2)
			p.Usage(p.Resign(p.Next(50*time.Millisecond), func(r *metering.SignedRecord) { r.LeaseID, r.Final = common.Hash{7}, true }))
		}, verify.ErrLease},
		{"skips a number", nil, func(p *testrig.Stream) {
			p.Honest(2)
			p.Next(50 * time.Millisecond)
			p.Usage(p.Next(50 * time.Millisecond))
		}, verify.ErrSequence},
		{"takes time back", nil, func(p *testrig.Stream) {
			p.Honest(4)
			p.Usage(p.Resign(p.Next(50*time.Millisecond), func(r *metering.SignedRecord) { r.Nanos = 1 }))
		}, verify.ErrBackwards},
		{"sends a record of another channel", nil, func(p *testrig.Stream) {
			p.Honest(2)
			p.Usage(p.Resign(p.Next(50*time.Millisecond), func(r *metering.SignedRecord) { r.ChannelID = common.Hash{1} }))
		}, verify.ErrLease},
		{"sends a record under another offer", nil, func(p *testrig.Stream) {
			p.Honest(2)
			p.Usage(p.Resign(p.Next(50*time.Millisecond), func(r *metering.SignedRecord) { r.OfferHash = common.Hash{1} }))
		}, verify.ErrLease},
		{"sends a record of another device", nil, func(p *testrig.Stream) {
			p.Lease.Devices = []string{sim.UUID(1)}
			p.Restart(p.Lease, nil)
			p.Usage(p.Next(50 * time.Millisecond))
		}, verify.ErrDevices},
		{"sends a record of more devices", nil, func(p *testrig.Stream) {
			p.Usage(p.Resign(p.Next(50*time.Millisecond), func(r *metering.SignedRecord) { r.Devices = 2 }))
		}, verify.ErrDevices},
		{"has another key sign", nil, func(p *testrig.Stream) {
			p.Honest(2)
			p.Hostile.MeterKey = channel.NewKey(p.Market.Keys[5])
			p.Usage(p.Resign(p.Next(50*time.Millisecond), func(*metering.SignedRecord) {}))
		}, verify.ErrSignature},
		{"swaps the evidence", nil, func(p *testrig.Stream) {
			p.Honest(2)
			rec := p.Next(50 * time.Millisecond)
			rec.Evidence = p.Sent.Evidence
			p.Usage(rec)
		}, metering.ErrEvidence},
		{"fills the disk with records", func(v *testrig.Hostile) {
			o := v.Offer.Offer
			o.RecordEvery = 600
			v.Offer, _ = wire.SignOffer(context.Background(), v.Key, o)
		}, func(p *testrig.Stream) {
			for range 60 { // as large as they may be
				e := p.Meter.Cut()
				for range 120 {
					e.Devices[0].Missing = append(e.Devices[0].Missing, strings.Repeat("x", 250))
				}
				rec, err := p.Recorder.Next(context.Background(), e, false)
				if err != nil {
					p.T.Error(err)
				}
				p.Usage(rec)
			}
		}, verify.ErrRoom},
		{"demands and sends no records", nil, func(p *testrig.Stream) { p.Demand(700_000, 1_000_000) }, peer.ErrDemand},
		{"demands more than its records say", nil, func(p *testrig.Stream) {
			for range 200 {
				p.Honest(1)
				p.Demand(700_000, 1_000_000)
			}
		}, peer.ErrDemand},
		{"demands more than the deposit", nil, func(p *testrig.Stream) {
			for range 200 {
				p.Honest(1)
				p.Demand(9_000_000, 1_000_000)
			}
		}, peer.ErrDemand},
		{"demands for another channel", nil, func(p *testrig.Stream) {
			p.Lease.ChannelID = common.Hash{1}
			p.Demand(100, 1_000_000)
		}, peer.ErrProtocol},
		{"says nothing", nil, func(p *testrig.Stream) {}, peer.ErrSilent},
		{"falls silent", nil, func(p *testrig.Stream) { p.Honest(4) }, peer.ErrSilent},
		{"sends a record that is none", nil, func(p *testrig.Stream) {
			p.Raw(wire.Event{Name: wire.EventUsage, Data: []byte(`{"nanos":"a lot"}`)})
		}, peer.ErrProtocol},
		{"sends a status that is none", nil, func(p *testrig.Stream) {
			p.Raw(wire.Event{Name: wire.EventStatus, Data: []byte(`[`)})
		}, peer.ErrProtocol},
		{"sends an event without end", nil, func(p *testrig.Stream) {
			p.Raw(wire.Event{Name: "noise", Data: []byte(strings.Repeat("x", 2<<20))})
		}, peer.ErrProtocol},
		{"sends events that mean nothing", nil, func(p *testrig.Stream) {
			for i := range 300 {
				p.Raw(wire.Event{Name: fmt.Sprintf("noise-%d", i), Data: []byte("x")})
				time.Sleep(10 * time.Millisecond)
			}
		}, peer.ErrSilent},
		{"floods the disk with records of no time", nil, func(p *testrig.Stream) {
			for range 1000 {
				p.Usage(p.Next(0))
			}
		}, renter.ErrFlood},
		{"sends evidence of half a megabyte", nil, func(p *testrig.Stream) {
			p.Usage(p.Resign(p.Next(50*time.Millisecond), func(r *metering.SignedRecord) {
				r.Evidence.Source = strings.Repeat("x", 500_000)
				r.EvidenceHash = r.Evidence.Hash()
			}))
		}, metering.ErrEvidence},
		{"calls what read the GPU a terminal's command", nil, func(p *testrig.Stream) {
			p.Usage(p.Resign(p.Next(50*time.Millisecond), func(r *metering.SignedRecord) {
				r.Evidence.Source = "nvml\x1b[2J"
				r.EvidenceHash = r.Evidence.Hash()
			}))
		}, metering.ErrEvidence},
		{"gives a secret of half a megabyte", func(v *testrig.Hostile) {
			v.ForgeLease = func(l *wire.Lease) { l.Secret = strings.Repeat("s", 500_000) }
		}, func(*testrig.Stream) {}, peer.ErrProtocol},
		{"gives half a megabyte of access", func(v *testrig.Hostile) {
			v.ForgeLease = func(l *wire.Lease) { l.Access = json.RawMessage(`"` + strings.Repeat("a", 500_000) + `"`) }
		}, func(*testrig.Stream) {}, peer.ErrProtocol},
		{"begins with a debt", func(v *testrig.Hostile) {
			v.ForgeLease = func(l *wire.Lease) { l.OwedBefore = wire.NewAmount(*uint256.NewInt(500_000)) }
		}, func(*testrig.Stream) {}, peer.ErrDemand},
		{"gives more devices than were rented", func(v *testrig.Hostile) {
			v.ForgeLease = func(l *wire.Lease) { l.Devices = append(l.Devices, "SIM-GPU-1") }
		}, func(*testrig.Stream) {}, verify.ErrDevices},
		{"calls a device what steers a terminal", func(v *testrig.Hostile) {
			v.ForgeLease = func(l *wire.Lease) { l.Devices = []string{"GPU-\x1b[2J"} }
		}, func(*testrig.Stream) {}, peer.ErrProtocol},
		{"begins without an id", func(v *testrig.Hostile) {
			v.ForgeLease = func(l *wire.Lease) { l.LeaseID = common.Hash{} }
		}, func(*testrig.Stream) {}, peer.ErrProtocol},
		{"begins under another offer", func(v *testrig.Hostile) {
			v.ForgeLease = func(l *wire.Lease) { l.OfferHash = common.Hash{1} }
		}, func(*testrig.Stream) {}, peer.ErrOffer},
		{"begins with another channel", func(v *testrig.Hostile) {
			v.ForgeLease = func(l *wire.Lease) { l.ChannelID = common.Hash{1} }
		}, func(*testrig.Stream) {}, peer.ErrProtocol},
	} {
		t.Run(test.name, func(t *testing.T) { hostileLease(t, m, test.change, test.script, test.want) })
	}
}

func hostileLease(t *testing.T, m *testrig.Market, change func(*testrig.Hostile), script func(*testrig.Stream), want error) {
	v := testrig.NewHostile(t, m, nil)
	v.Script = script
	if change != nil {
		change(v)
	}
	config := renterrig.Config(t, m, m.Payer)
	config.Patience, config.Chain.ClockTolerance = 600*time.Millisecond, 1000*time.Hour // the chain's clock runs ahead in this test
	config.Caps.PerDay = wallet.Unlimited
	r := renterrig.Open(t, config)
	before := m.Tokens(t, m.PayerAddress())

	const prepay = 100 * time.Millisecond
	l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "1", PayEvery: 60 * time.Millisecond, Prepay: prepay})
	if err == nil {
		err = l.Run(t.Context())
	}
	if !errors.Is(err, want) {
		t.Fatalf("%v, want %v", err, want)
	}
	open, listErr := r.Rentals(t.Context())
	if listErr != nil || len(open) != 1 {
		t.Fatalf("%d rentals (%v), want the one", len(open), listErr)
	}
	checkPaid(t, r, v, open[0].Channel, prepay)

	// Also what is on disk alone must get the deposit back.
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	r = renterrig.Open(t, config)
	if l, err = r.Resume(t.Context(), open[0].Channel); err != nil {
		t.Fatal(err)
	}
	c := leave(t, m, l)
	if got := m.Tokens(t, m.PayerAddress()); got != before-c.Settled.Uint64() || !c.Forced || !c.Settled.IsZero() {
		t.Errorf("the payer has %d of %d, the closing is %+v", got, before, c)
	}
}

// checkPaid: no voucher is above what was checked and the prepayment, and what
// was refused is on disk.
func checkPaid(t *testing.T, r *renter.Client, v *testrig.Hostile, id common.Hash, prepay time.Duration) {
	t.Helper()
	records, err := r.Records(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	allowed, err := v.Price.Charge(uint64(prepay))
	if err != nil {
		t.Fatal(err)
	}
	if len(records) > 0 {
		allowed.Add(&allowed, &records[len(records)-1].Owed)
	}
	if got := v.Highest(); got.Gt(&allowed) {
		t.Errorf("the provider has a voucher over %s, checked and prepaid is %s", got.Dec(), allowed.Dec())
	}
	kept, err := r.Evidence(t.Context(), id)
	if err != nil || len(kept) != 1 {
		t.Errorf("%d pieces of evidence (%v), want one", len(kept), err)
	}
}

// TestLieAtTheEnd: a final record that does not hold is not paid, and reported
// beside what became of the close.
func TestLieAtTheEnd(t *testing.T) {
	m := testrig.NewMarket(t)
	v := testrig.NewHostile(t, m, nil)
	streamed := make(chan *testrig.Stream, 8)
	v.Script = func(p *testrig.Stream) {
		p.Honest(4)
		streamed <- p
	}
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "1", PayEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	done := renterrig.Background(t.Context(), l)
	p := <-streamed
	testrig.Eventually(t, "all records", func() bool { return l.Snapshot().Sequence == 4 })
	v.Mu.Lock()
	v.Script = func(*testrig.Stream) {}
	v.Final = func() metering.SignedRecord {
		return p.Resign(p.Next(10*time.Second), func(r *metering.SignedRecord) { r.Final = true })
	}
	v.Mu.Unlock()
	var dispute *wallet.Dispute
	if _, err := l.Close(t.Context()); !errors.As(err, &dispute) || !errors.Is(err, verify.ErrClock) || !errors.Is(err, peer.ErrRefused) {
		t.Errorf("Close: %v, want a dispute for ErrClock, and ErrRefused", err)
	}
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	checkPaid(t, r, v, l.ID(), 0)
	leave(t, m, l)
}

// TestEquivocation: the two records that a provider signed for one number are
// kept side by side, each with its signature, for anyone to check.
func TestEquivocation(t *testing.T) {
	m := testrig.NewMarket(t)
	v := testrig.NewHostile(t, m, nil)
	v.Script = func(p *testrig.Stream) {
		p.Honest(2)
		p.Usage(p.Resign(p.Sent, func(r *metering.SignedRecord) { r.To++ }))
	}
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "1"})
	if err != nil {
		t.Fatal(err)
	}
	var dispute *wallet.Dispute
	if err := l.Run(t.Context()); !errors.As(err, &dispute) || dispute.Channel != l.ID() {
		t.Fatalf("Run: %v, want a dispute of this channel", err)
	}
	kept, err := l.Evidence(t.Context())
	if err != nil || len(kept) != 1 {
		t.Fatalf("%d pieces of evidence, %v", len(kept), err)
	}
	var pair struct{ Accepted, Refused metering.SignedRecord }
	if err := json.Unmarshal(kept[0].Document, &pair); err != nil {
		t.Fatal(err)
	}
	domain := metering.Domain(31337, m.Escrow)
	for _, rec := range []metering.SignedRecord{pair.Accepted, pair.Refused} {
		who, err := eip712.Recover(rec.Digest(domain), rec.Signature)
		if err != nil || who != v.Key.Address() || rec.Sequence != 2 {
			t.Errorf("record %d is signed by %s (%v)", rec.Sequence, who, err)
		}
	}
	if pair.Accepted.Digest(domain) == pair.Refused.Digest(domain) {
		t.Error("it is one record twice")
	}
	if err := l.Run(t.Context()); !errors.As(err, &dispute) {
		t.Errorf("Run after a dispute: %v, want the dispute", err)
	}
}

// leave gets the deposit back without the provider, the grace period included.
func leave(t *testing.T, m *testrig.Market, l *renter.Rental) renter.Closing {
	t.Helper()
	type result struct {
		renter.Closing
		error
	}
	done := make(chan result, 1)
	go func() {
		c, err := l.Leave(t.Context())
		done <- result{c, err}
	}()
	testrig.Eventually(t, "the request to close", func() bool {
		view, err := l.Lease().Escrow.View(t.Context(), l.ID(), nil)
		return err == nil && view.CloseRequestedAt != 0
	})
	select {
	case r := <-done:
		t.Fatalf("left within the grace period: %+v", r)
	case <-time.After(100 * time.Millisecond):
	}
	m.AdvanceTime(t, l.Lease().Escrow.Grace())
	r := <-done
	if r.error != nil {
		t.Fatal(r.error)
	}
	return r.Closing
}

// TestRefusedClose: a provider that does not close, or says so and does not,
// only costs the grace period.
func TestRefusedClose(t *testing.T) {
	m := testrig.NewMarket(t)
	for _, test := range []struct {
		name    string
		closing func(http.ResponseWriter)
	}{
		{"refuses", nil},
		{"says that it did", func(w http.ResponseWriter) { w.WriteHeader(http.StatusOK) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := testrig.NewHostile(t, m, nil)
			v.Script, v.Closing = func(p *testrig.Stream) { p.Honest(1000) }, test.closing
			config := renterrig.Config(t, m, m.Payer)
			config.Chain.ClockTolerance = 1000 * time.Hour
			r := renterrig.Open(t, config)
			l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "1", PayEvery: 60 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			done := renterrig.Background(t.Context(), l)
			testrig.Eventually(t, "a payment", func() bool { s := l.Snapshot(); return !s.Paid.IsZero() })
			if _, err := l.Close(t.Context()); !errors.Is(err, peer.ErrRefused) {
				t.Fatalf("Close: %v, want ErrRefused", err)
			}
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
			if _, err := l.Lease().Payer.Pay(t.Context(), l.ID(), l.Snapshot().Owed); !errors.Is(err, channel.ErrClosing) {
				t.Errorf("paying after the close was asked for: %v, want ErrClosing", err)
			}
			leave(t, m, l)
		})
	}
}
