package channel_test

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
)

var ceilingDomain = channel.BatchSettlement.Domain(testChain, testEscrow)

func ceilingTerms(salt string) channel.Terms {
	t := testTerms(salt)
	t.Scheme, t.PayeeAuthorizer, t.WithdrawDelay = channel.BatchSettlement, payeeKey.Address(), 900
	return t
}

// newCeilingPayer is newPayer for the scheme whose vouchers are ceilings.
func newCeilingPayer(t testing.TB) (*channel.Payer, *counter, common.Hash) {
	t.Helper()
	key := &counter{Signer: payerKey}
	p := &channel.Payer{Store: openStore(t).Payer(), Signer: key, Domain: ceilingDomain, Caps: noCaps}
	if err := p.Open(context.Background(), ceilingTerms("0x01"), units(1000)); err != nil {
		t.Fatal(err)
	}
	return p, key, ceilingTerms("0x01").ID()
}

// checkCeiling fails unless the highest voucher is for amount and settles it.
func checkCeiling(t testing.TB, p *channel.Payer, id common.Hash, amount uint64) {
	t.Helper()
	s := payerState(t, p, id)
	v := channel.Voucher{ChannelID: id, Cumulative: s.Signed, Signature: s.Signature}
	if s.Signed != units(amount) || ceilingDomain.Verify(v, payerKey.Address()) != nil {
		t.Errorf("the channel can cost %s by %x, want %d", s.Signed.Dec(), s.Signature, amount)
	}
}

// TestCeilingMayFall: after a small charge the next ceiling is lower than the last one. What the channel can cost is the
// highest that was ever signed.
func TestCeilingMayFall(t *testing.T) {
	p, key, id := newCeilingPayer(t)
	high := pay(t, p, id, 500)
	for _, amount := range []uint64{100, 499, 0} {
		v := pay(t, p, id, amount)
		if err := ceilingDomain.Verify(v, payerKey.Address()); err != nil || v.Cumulative != units(amount) {
			t.Errorf("ceiling of %d: voucher for %s, %v", amount, v.Cumulative.Dec(), err)
		}
		checkCeiling(t, p, id, 500)
	}
	if again := pay(t, p, id, 500); !bytes.Equal(again.Signature, high.Signature) || key.asked != 4 {
		t.Errorf("the highest asked the key again (%d times in all)", key.asked)
	}
	pay(t, p, id, 501)
	checkCeiling(t, p, id, 501)
	if _, err := p.Pay(context.Background(), id, units(1001)); !errors.Is(err, channel.ErrExceedsDeposit) {
		t.Errorf("over the deposit: %v", err)
	}
}

// TestSessionNeverFalls: what ceilings may do, a session's vouchers may not, in the same store.
func TestSessionNeverFalls(t *testing.T) {
	p, key, id := newPayer(t)
	ceilings := &channel.Payer{Store: p.Store, Signer: key, Domain: ceilingDomain, Caps: noCaps}
	if err := ceilings.Open(context.Background(), ceilingTerms("0x01"), units(1000)); err != nil {
		t.Fatal(err)
	}
	pay(t, p, id, 500)
	pay(t, ceilings, ceilingTerms("0x01").ID(), 500)
	pay(t, ceilings, ceilingTerms("0x01").ID(), 400)
	if v, err := p.Pay(context.Background(), id, units(400)); !errors.Is(err, channel.ErrLower) || v.Signature != nil {
		t.Errorf("session: %v, want %v", err, channel.ErrLower)
	}
	if v, err := ceilings.Pay(context.Background(), id, units(400)); !errors.Is(err, channel.ErrTerms) || v.Signature != nil {
		t.Errorf("a session's channel under ceilings: %v, want %v", err, channel.ErrTerms)
	}
}

// TestCeilingBudgetCountsTheHighest: lower ceilings cost no budget, and only what goes above the highest does.
func TestCeilingBudgetCountsTheHighest(t *testing.T) {
	day := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name string
		caps channel.Caps
	}{
		{channel.CapChannel, channel.Caps{PerChannel: units(300), PerPayee: channel.MaxAmount(), PerDay: channel.MaxAmount()}},
		{channel.CapPayee, channel.Caps{PerChannel: channel.MaxAmount(), PerPayee: units(300), PerDay: channel.MaxAmount()}},
		{channel.CapDay, channel.Caps{PerChannel: channel.MaxAmount(), PerPayee: channel.MaxAmount(), PerDay: units(300)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, key, id := newCeilingPayer(t)
			p.Caps, p.Now = c.caps, func() time.Time { return day }
			for _, amount := range []uint64{200, 50, 250, 10, 250, 300, 1} {
				pay(t, p, id, amount)
			}
			asked := key.asked
			var capped *channel.CapError
			_, err := p.Pay(context.Background(), id, units(301))
			if !errors.As(err, &capped) || capped.Cap != c.name || capped.Wanted != units(301) {
				t.Errorf("301 over a cap of 300: %v", err)
			}
			if key.asked != asked {
				t.Error("a refused ceiling reached the key")
			}
			checkCeiling(t, p, id, 300)
		})
	}
}

// TestLoweredCapsLetLowerCeilingsThrough: what was signed for is lost to the caps already; a ceiling below it costs nothing.
func TestLoweredCapsLetLowerCeilingsThrough(t *testing.T) {
	p, _, id := newCeilingPayer(t)
	pay(t, p, id, 500)
	p.Caps = channel.Caps{PerChannel: units(100), PerPayee: units(100), PerDay: units(100)}
	pay(t, p, id, 400)
	var capped *channel.CapError
	if _, err := p.Pay(context.Background(), id, units(501)); !errors.As(err, &capped) {
		t.Errorf("over the cap: %v", err)
	}
}

// TestCeilingSignedButNotKept: a crash between the key and the disk leaves the amount reserved. A lower ceiling then
// costs nothing more, does not pass for the lost one, and the lost one can be had again.
func TestCeilingSignedButNotKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gpupay.db")
	open := func() (*channel.Payer, *store.DB) {
		db, err := store.Open(context.Background(), path)
		if err != nil {
			t.Fatal(err)
		}
		return &channel.Payer{Store: db.Payer(), Signer: payerKey, Domain: ceilingDomain, Caps: noCaps}, db
	}
	p, db := open()
	id := ceilingTerms("0x01").ID()
	if err := p.Open(context.Background(), ceilingTerms("0x01"), units(1000)); err != nil {
		t.Fatal(err)
	}
	p.Caps.PerDay = units(500)
	pay(t, p, id, 100)
	p.Signer = dies{payerKey, db} // the disk is gone when the signature is there
	if v, err := p.Pay(context.Background(), id, units(500)); err == nil || v.Signature != nil {
		t.Fatalf("a voucher that was not kept was handed out: %x, %v", v.Signature, err)
	}
	p, db = open()
	p.Caps.PerDay = units(500)
	defer db.Close()
	if s := payerState(t, p, id); s.Signed != units(500) || len(s.Signature) != 0 {
		t.Fatalf("after the crash: %+v", s)
	}
	v := pay(t, p, id, 300)
	if err := ceilingDomain.Verify(v, payerKey.Address()); err != nil {
		t.Error(err)
	}
	if s := payerState(t, p, id); s.Signed != units(500) || len(s.Signature) != 0 {
		t.Errorf("a lower ceiling was kept as the highest: %+v", s)
	}
	pay(t, p, id, 500) // within the cap: it was counted once
	checkCeiling(t, p, id, 500)
	var capped *channel.CapError
	if _, err := p.Pay(context.Background(), id, units(501)); !errors.As(err, &capped) {
		t.Errorf("over the cap: %v", err)
	}
}

// dies signs and takes the store away.
type dies struct {
	channel.Signer
	db *store.DB
}

func (d dies) Sign(ctx context.Context, digest common.Hash) ([]byte, error) {
	sig, err := d.Signer.Sign(ctx, digest)
	return sig, errors.Join(err, d.db.Close())
}

// TestConcurrentCeilings: of many at once each is handed out with its own signature, and the highest stays.
func TestConcurrentCeilings(t *testing.T) {
	p, _, id := newCeilingPayer(t)
	var wait sync.WaitGroup
	for n := range uint64(100) {
		wait.Go(func() {
			v, err := p.Pay(context.Background(), id, units(n+1))
			if err != nil || v.Cumulative != units(n+1) || ceilingDomain.Verify(v, payerKey.Address()) != nil {
				t.Errorf("ceiling %d: voucher for %s, %v", n+1, v.Cumulative.Dec(), err)
			}
		})
	}
	wait.Wait()
	checkCeiling(t, p, id, 100)
}
