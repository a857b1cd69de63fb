package provider

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/chain"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// forger changes bundles as one side can that has its own key.
type forger struct {
	*testing.T
	*testrig.Market
	payee, payer *audit.Bundle // honest
}

func copyOf(t *testing.T, b *audit.Bundle) *audit.Bundle {
	t.Helper()
	again, err := audit.Parse(encoded(t, b))
	if err != nil {
		t.Fatal(err)
	}
	return again
}

// sign makes a record that the payee signed, of what it says.
func (f *forger) sign(b *audit.Bundle, r metering.SignedRecord) metering.SignedRecord {
	f.Helper()
	r.EvidenceHash = r.Evidence.Hash()
	var err error
	r.Signature, err = channel.NewKey(f.Market.Payee).Sign(f.Context(), r.Digest(metering.Domain(b.Terms.ChainID, common.Address(b.Terms.Escrow))))
	if err != nil {
		f.Fatal(err)
	}
	return r
}

// lease is one of one record for a time that never was, under an offer at a price of the payee's choice.
func (f *forger) lease(b *audit.Bundle, id byte, before uint256.Int, amount uint64, unit string, ran time.Duration) audit.Lease {
	f.Helper()
	real := b.Leases[0]
	offer, err := wire.ParseOffer(real.Offer)
	if err != nil {
		f.Fatal(err)
	}
	offer.Offer.Amount, offer.Offer.Unit = wire.NewAmount(*uint256.NewInt(amount)), unit
	offer.Offer.MaxGap = int64(ran/time.Millisecond) + 1
	signed, err := wire.SignOffer(f.Context(), channel.NewKey(f.Market.Payee), offer.Offer)
	if err != nil {
		f.Fatal(err)
	}
	price, err := offer.Price()
	if err != nil {
		f.Fatal(err)
	}
	r := real.Records[0]
	r.LeaseID, r.Previous, r.OfferHash, r.OwedBefore = common.Hash{id}, common.Hash{}, signed.Hash, before
	r.Evidence.Devices = slices.Clone(r.Evidence.Devices)
	n := int64(len(r.Evidence.Devices))
	for i := range r.Evidence.Devices {
		d := &r.Evidence.Devices[i]
		d.Nanos, d.Total = metering.Nanos{Allocated: int64(ran)}, int64(ran)
		d.From = metering.Instant{Boot: int64(id) << 40, Mono: int64(id) << 40, Wall: d.From.Wall}
		d.To = metering.Instant{Boot: d.From.Boot + int64(ran), Mono: d.From.Mono + int64(ran), Wall: d.From.Wall + int64(ran)}
		d.Device.BootID = string(rune('a' + id))
		d.Gaps = nil
	}
	r.Nanos, r.Evidence.Nanos, r.Evidence.Total, r.Evidence.MaxGap = uint64(n*int64(ran)), n*int64(ran), n*int64(ran), offer.Offer.MaxGap*int64(time.Millisecond)
	if r.Owed, err = price.Charge(r.Nanos); err != nil {
		f.Fatal(err)
	}
	r.Owed.Add(&r.Owed, &before)
	return audit.Lease{ID: r.LeaseID, Offer: signed.Document, Devices: real.Devices, OwedBefore: wire.NewAmount(before), Records: []metering.SignedRecord{f.sign(b, r)}}
}

// found reports a forgery by the bundle alone, with the chain, or beside the other side's.
func (f *forger) found(b *audit.Bundle) (alone, online, beside error) {
	other := f.payee
	if b.Keeper == audit.KeptByPayee {
		other = f.payer
	}
	both := audit.Compare(b, other)
	beside = audit.Failures(both.Checks)
	if len(both.Equivocations) > 0 {
		beside = errors.Join(beside, errors.New("an equivocation"))
	}
	return audit.Failures(audit.Verify(f.Context(), b, nil)), audit.Failures(audit.Verify(f.Context(), b, f.Backend)), beside
}

// TestForgedBundles: what either side leaves out, invents or repeats with its own key is found: alone where that is
// possible, with the chain, or beside what the other side kept.
func TestForgedBundles(t *testing.T) {
	m := testrig.NewMarket(t)
	f := &forger{T: t, Market: m}
	f.payee, f.payer = bundles(t, m)
	for _, b := range []*audit.Bundle{f.payee, f.payer} {
		if alone, online, beside := f.found(b); alone != nil || online != nil || beside != nil {
			t.Fatalf("the honest %s's: %v, %v, %v", b.Keeper, alone, online, beside)
		}
	}
	most := channel.MaxAmount()
	for _, row := range []struct {
		name                  string
		keeper                string
		alone, online, beside bool // where it must be found
		forge                 func(b *audit.Bundle)
	}{
		{"no leases", audit.KeptByPayee, true, true, true, func(b *audit.Bundle) { b.Leases = nil }},
		{"no leases, all prepaid", audit.KeptByPayee, true, true, true, func(b *audit.Bundle) { b.Leases, b.Prepaid = nil, wire.NewAmount(most) }},
		{"no leases, all prepaid, says the payer", audit.KeptByPayer, false, false, true, func(b *audit.Bundle) { b.Leases, b.Prepaid = nil, wire.NewAmount(most) }},
		{"no vouchers", audit.KeptByPayee, true, true, false, func(b *audit.Bundle) { b.Vouchers = nil }},
		{"no vouchers, says the payer", audit.KeptByPayer, true, true, true, func(b *audit.Bundle) { b.Vouchers = nil }},
		{"a lease that never was, within the credit", audit.KeptByPayee, false, false, true, func(b *audit.Bundle) {
			l := b.Leases[0]
			b.Leases = append(b.Leases, f.lease(b, 1, l.Records[len(l.Records)-1].Owed, 1, "gpu_second", time.Second))
		}},
		{"a lease that never was, over the credit", audit.KeptByPayee, true, true, true, func(b *audit.Bundle) {
			l := b.Leases[0]
			b.Leases = append(b.Leases, f.lease(b, 1, l.Records[len(l.Records)-1].Owed, 1_000_000, "gpu_second", 150*time.Second))
		}},
		{"weeks in a channel that lived for seconds", audit.KeptByPayee, false, true, true, func(b *audit.Bundle) {
			newest := b.Vouchers[len(b.Vouchers)-1].Cumulative // as many hours of two GPUs as were paid
			b.Leases = []audit.Lease{f.lease(b, 1, uint256.Int{}, 1, "gpu_hour", time.Duration(newest.Uint64())*time.Hour/2)}
		}},
		{"one GPU at once in two leases", audit.KeptByPayee, true, true, true, func(b *audit.Bundle) {
			l := f.lease(b, 1, uint256.Int{}, 1, "gpu_hour", time.Hour)
			again := f.lease(b, 1, l.Records[0].Owed, 1, "gpu_hour", time.Hour)
			again.ID[1]++
			again.Records[0].LeaseID = again.ID
			again.Records[0] = f.sign(b, again.Records[0])
			b.Leases = []audit.Lease{l, again}
		}},
		{"a lease twice", audit.KeptByPayee, true, true, false, func(b *audit.Bundle) { b.Leases = append(b.Leases, b.Leases[0]) }},
		{"the last records", audit.KeptByPayer, true, true, false, func(b *audit.Bundle) { b.Leases[0].Records = b.Leases[0].Records[:1] }},
		{"a transaction three times", audit.KeptByPayee, false, true, false, func(b *audit.Bundle) {
			b.Transactions = append(b.Transactions, b.Transactions[0], b.Transactions[0])
		}},
		{"a transaction left out", audit.KeptByPayee, false, true, false, func(b *audit.Bundle) { b.Transactions = b.Transactions[1:] }},
		{"all transactions left out", audit.KeptByPayee, false, true, false, func(b *audit.Bundle) { b.Transactions = nil }},
		{"a transaction of another name", audit.KeptByPayee, false, true, false, func(b *audit.Bundle) { b.Transactions[0].Kind = chain.Settle }},
		{"a transaction that did not succeed", audit.KeptByPayee, false, true, false, func(b *audit.Bundle) { b.Transactions[0].Succeeded = false }},
		{"another channel", audit.KeptByPayee, true, true, true, func(b *audit.Bundle) { b.Channel[0]++ }},
		{"another payer", audit.KeptByPayee, true, true, true, func(b *audit.Bundle) { b.Terms.Payer[0]++ }},
	} {
		t.Run(row.name, func(t *testing.T) {
			b := copyOf(t, f.payee)
			if row.keeper == audit.KeptByPayer {
				b = copyOf(t, f.payer)
			}
			row.forge(b)
			alone, online, beside := f.found(b)
			if (row.alone && alone == nil) || (row.online && online == nil) || (row.beside && beside == nil) {
				t.Errorf("not found: alone %v, with the chain %v, beside the other's %v", alone, online, beside)
			}
			if !row.alone && alone != nil { // the row says too little, or the forgery is clumsy
				t.Errorf("found alone: %v", alone)
			}
		})
	}
}

// nameless is an endpoint that leaves out in which block a transaction was mined.
type nameless struct{ chain.Backend }

func (n nameless) TransactionReceipt(ctx context.Context, hash common.Hash) (*types.Receipt, error) {
	r, err := n.Backend.TransactionReceipt(ctx, hash)
	if r != nil {
		r.BlockNumber = nil
	}
	return r, err
}

// narrow is an endpoint that shows the events of few blocks at a time.
type narrow struct {
	chain.Backend
	asked int
}

func (n *narrow) FilterLogs(ctx context.Context, q ethereum.FilterQuery) ([]types.Log, error) {
	n.asked++
	if q.ToBlock.Uint64()-q.FromBlock.Uint64() > 3 {
		return nil, errors.New("query returned more than 3 blocks")
	}
	return n.Backend.FilterLogs(ctx, q)
}

// swapped is an endpoint where one byte of the escrow's code is another, as of a contract that answers every question like
// ours and keeps no promise.
type swapped struct {
	chain.Backend
	escrow common.Address
}

func (s swapped) CodeAt(ctx context.Context, address common.Address, block *big.Int) ([]byte, error) {
	code, err := s.Backend.CodeAt(ctx, address, block)
	if err == nil && address == s.escrow {
		code[len(code)/2] ^= 1
	}
	return code, err
}

// TestVerifyHostileEscrow: a bundle that names another contract than ours shows nothing, whatever that contract answers.
func TestVerifyHostileEscrow(t *testing.T) {
	m := testrig.NewMarket(t)
	payee, payer := bundles(t, m)
	for _, b := range []*audit.Bundle{payee, payer} {
		if err := audit.Failures(audit.Verify(t.Context(), b, m.Backend)); err != nil {
			t.Error(err)
		}
		if err := audit.Failures(audit.Verify(t.Context(), b, swapped{m.Backend, m.Escrow})); !errors.Is(err, chain.ErrNotEscrow) {
			t.Errorf("a hostile escrow: %v", err)
		}
	}
}

// TestVerifyOddEndpoints: an endpoint that leaves out a block number ends in a failed check, and one that shows few events at
// a time is asked often.
func TestVerifyOddEndpoints(t *testing.T) {
	m := testrig.NewMarket(t)
	payee, _ := bundles(t, m)
	if err := audit.Failures(audit.Verify(t.Context(), payee, nameless{m.Backend})); err == nil {
		t.Error("a transaction in no block was taken")
	}
	n := &narrow{Backend: m.Backend}
	if err := audit.Failures(audit.Verify(t.Context(), payee, n)); err != nil || n.asked < 3 {
		t.Errorf("%d requests for events: %v", n.asked, err)
	}
}

// TestVerifyLargeBundles: a bundle of many entries that all fail takes time in proportion to them, and few lines.
func TestVerifyLargeBundles(t *testing.T) {
	m := testrig.NewMarket(t)
	payee, _ := bundles(t, m)
	voucher := payee.Vouchers[0]
	for range 3000 {
		payee.Vouchers = append(payee.Vouchers, voucher)
		payee.Leases[0].Proofs = append(payee.Leases[0].Proofs, audit.Proof{Sequence: 1 << 40})
	}
	pair, err := json.Marshal(map[string]any{"accepted": payee.Leases[0].Records[0], "refused": payee.Leases[0].Records[0]})
	if err != nil {
		t.Fatal(err)
	}
	lease := payee.Leases[0]
	for i := range 300 {
		payee.Evidence = append(payee.Evidence, audit.Evidence{Document: string(pair)})
		lease.ID[31] = byte(i)
		lease.ID[30] = byte(i >> 8)
		payee.Leases = append(payee.Leases, audit.Lease{ID: lease.ID, Offer: lease.Offer, Devices: lease.Devices, OwedBefore: lease.OwedBefore})
	}
	began := time.Now()
	report := audit.Failures(audit.Verify(t.Context(), payee, nil))
	if report == nil || len(report.Error()) > 1<<18 || time.Since(began) > 20*time.Second {
		t.Errorf("%d bytes in %s", len(report.Error()), time.Since(began))
	}
}

// TestBundlesTogether: a GPU that is billed in two channels at once is found where their bundles lie side by side, also
// where the host's boot has another name in each.
func TestBundlesTogether(t *testing.T) {
	m := testrig.NewMarket(t)
	f := &forger{T: t, Market: m}
	f.payee, f.payer = bundles(t, m)
	if err := audit.Failures(audit.VerifyTogether([]*audit.Bundle{f.payee, f.payer})); err != nil {
		t.Errorf("both sides of one channel: %v", err)
	}
	// let is a channel with one lease of an hour of a real GPU, in a boot that its id names.
	let := func(salt, id byte, later time.Duration) *audit.Bundle {
		b := copyOf(t, f.payee)
		terms := b.Terms.Channel()
		terms.Salt[0] = salt
		b.Terms, b.Channel = wire.NewTerms(terms), terms.ID()
		b.Leases = []audit.Lease{f.lease(b, id, uint256.Int{}, 1, "gpu_hour", time.Hour)}
		b.Leases[0].ID[31] = salt
		r := &b.Leases[0].Records[0]
		for i := range r.Evidence.Devices {
			d := &r.Evidence.Devices[i]
			d.Device.Simulated = false
			for _, at := range []*metering.Instant{&d.From, &d.To} {
				at.Mono, at.Wall = at.Mono+int64(later), at.Wall+int64(later)
			}
		}
		return b
	}
	// minutes is a channel whose GPU is rebooted with each minute's record, or hides behind as much paused time in which it was.
	minutes := func(salt byte, later, paused time.Duration) *audit.Bundle {
		b := let(salt, 1, later)
		whole := b.Leases[0].Records[0]
		b.Leases[0].Records = nil
		for i := range int64(60) {
			rec := whole
			rec.Evidence.Devices = slices.Clone(whole.Evidence.Devices)
			for j := range rec.Evidence.Devices {
				d := &rec.Evidence.Devices[j]
				d.Device.BootID = fmt.Sprintf("hidden-%d", i)
				d.Nanos = metering.Nanos{Allocated: int64(time.Minute), Paused: int64(paused)}
				d.From.Wall += i * int64(time.Minute)
				d.To.Wall = d.From.Wall + int64(time.Minute)
				d.To.Mono = d.From.Mono + int64(time.Minute+paused)
				if paused > 0 {
					end := d.From.Mono + int64(time.Minute)
					d.Gaps = []metering.Hole{{From: end, Reason: metering.ReasonReboot, To: end}}
				}
			}
			b.Leases[0].Records = append(b.Leases[0].Records, rec)
		}
		return b
	}
	back := let(2, 1, time.Hour)
	for i := range back.Leases[0].Records[0].Evidence.Devices {
		d := &back.Leases[0].Records[0].Evidence.Devices[i]
		d.From.Wall, d.To.Wall = d.From.Wall-int64(time.Hour), d.To.Wall-int64(time.Hour)
	}
	idle := let(2, 2, 0)
	for i := range idle.Leases[0].Records[0].Evidence.Devices {
		idle.Leases[0].Records[0].Evidence.Devices[i].Nanos = metering.Nanos{Allocated: int64(time.Second), Paused: int64(time.Hour - time.Second)}
	}
	first := let(1, 1, 0)
	for _, row := range []struct {
		name  string
		other *audit.Bundle
		found bool
	}{
		{"afterwards", let(2, 1, time.Hour), false},
		{"at once", let(2, 1, time.Hour-time.Nanosecond), true},
		{"at once, in another boot", let(2, 2, time.Hour/2), true},
		{"afterwards, in another boot", let(2, 2, time.Hour), false},
		{"at once, in another boot that bills little", idle, true},
		{"afterwards, when its clock was set back", back, false},
		{"at once, in a boot for each minute", minutes(2, 0, 0), true},
		{"at once, behind a reboot in each minute", minutes(2, 0, time.Minute), true},
		{"afterwards, in a boot for each minute", minutes(2, time.Hour, 0), false},
		{"afterwards, over a reboot in each minute", minutes(2, time.Hour, time.Minute), false},
		{"the same channel again", let(1, 1, 0), false},
	} {
		t.Run(row.name, func(t *testing.T) {
			if err := audit.Failures(audit.VerifyTogether([]*audit.Bundle{first, f.payer, row.other})); errors.Is(err, wallet.ErrLetTwice) != row.found {
				t.Errorf("%v, want found: %v", err, row.found)
			}
		})
	}
}
