package channel_test

import (
	"context"
	"errors"
	"testing"

	"github.com/gpupay/gpupay/channel"
)

// TestSettledIsNoSignature: what an endpoint says was settled counts in the caps and in what is left, and neither raises
// what was signed nor stands before a voucher for less, so that a lie has nothing signed away and stops no payment.
func TestSettledIsNoSignature(t *testing.T) {
	ctx := context.Background()
	p, _, id := newPayer(t)
	pay(t, p, id, 5)
	s, err := p.Observe(ctx, id, channel.ChainView{Deposit: units(1000), Settled: units(1000)})
	if err != nil || s.Signed != units(5) || len(s.Signature) == 0 {
		t.Fatalf("signed %s with %d bytes of signature, %v", s.Signed.Dec(), len(s.Signature), err)
	}
	if s.Cost() != units(1000) || s.Left() != units(0) || s.Locked() != units(0) {
		cost, left, locked := s.Cost(), s.Left(), s.Locked()
		t.Errorf("cost %s, left %s, locked %s", cost.Dec(), left.Dec(), locked.Dec())
	}
	if v := pay(t, p, id, 7); v.Cumulative != units(7) {
		t.Errorf("a voucher for %s", v.Cumulative.Dec())
	}
	if s, err = p.Observe(ctx, id, channel.ChainView{Deposit: units(1000), Settled: units(6)}); err != nil || s.Signed != units(7) || s.Cost() != units(7) {
		t.Errorf("after the lie: %+v, %v", s, err)
	}
	if _, err := p.Pay(ctx, id, units(6)); !errors.Is(err, channel.ErrLower) {
		t.Errorf("a voucher for less than was signed: %v", err)
	}
}

// TestFalseSettledFreesNoDay: an endpoint that says that all of a channel was settled makes no room in the day's cap for
// another deposit, and what is signed for below it counts in the day as any other.
func TestFalseSettledFreesNoDay(t *testing.T) {
	ctx := context.Background()
	p, _, _ := newCeilingPayer(t)
	p.Caps = channel.Caps{PerChannel: units(1000), PerPayee: channel.MaxAmount(), PerDay: units(2000)} // half of it lies in another channel
	first, second := ceilingTerms("0x02"), ceilingTerms("0x03")
	if err := p.Open(ctx, first, units(900)); err != nil {
		t.Fatal(err)
	}
	for _, settled := range []uint64{0, 900} {
		if _, err := p.Observe(ctx, first.ID(), channel.ChainView{Deposit: units(900), Settled: units(settled)}); err != nil {
			t.Fatal(err)
		}
		if room, _, err := p.Room(ctx, second); err != nil || room != units(100) {
			t.Errorf("%d settled: room for %s beside it, %v", settled, room.Dec(), err)
		}
		var capped *channel.CapError
		if err := p.Open(ctx, second, units(101)); !errors.As(err, &capped) || capped.Cap != channel.CapDay || capped.Wanted != units(2001) {
			t.Errorf("%d settled: a deposit over the day: %v", settled, err)
		}
	}
	pay(t, p, first.ID(), 800)
	p.Caps.PerDay = units(850)
	var capped *channel.CapError
	if _, err := p.Pay(ctx, first.ID(), units(851)); !errors.As(err, &capped) || capped.Cap != channel.CapDay {
		t.Errorf("signed over the day, under what is said to be settled: %v", err)
	}
	pay(t, p, first.ID(), 850)
}

// TestFalseSettledIsGivenBack: an endpoint that says now and again that more was settled fills the payee's cap only while it says so;
// what was signed for counts for ever.
func TestFalseSettledIsGivenBack(t *testing.T) {
	ctx := context.Background()
	p, _, id := newPayer(t)
	p.Caps = channel.Caps{PerChannel: channel.MaxAmount(), PerPayee: units(3000), PerDay: channel.MaxAmount()}
	other := openChannel(t, p, "0x02", 1000)
	pay(t, p, id, 10)
	says := func(settled uint64) {
		t.Helper()
		if _, err := p.Observe(ctx, id, channel.ChainView{Deposit: units(5000), Settled: units(settled)}); err != nil {
			t.Fatal(err)
		}
	}
	var capped *channel.CapError
	for n := range uint64(10) {
		says(2990 + n)
		if _, err := p.Pay(ctx, other, units(21+n)); !errors.As(err, &capped) || capped.Cap != channel.CapPayee {
			t.Fatalf("paid beside what is said to be settled: %v", err)
		}
		says(5)
		pay(t, p, other, 11+n)
	}
	pay(t, p, other, 1000)
	p.Caps.PerPayee = units(1011)
	pay(t, p, id, 11)
	if _, err := p.Pay(ctx, id, units(12)); !errors.As(err, &capped) || capped.Wanted != units(1012) {
		t.Errorf("signed over the payee's cap: %v", err)
	}
}
