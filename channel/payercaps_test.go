package channel_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
)

func modelTerms(payee, salt byte) channel.Terms {
	t := ceilingTerms("0x00")
	t.Payee[19], t.Salt[31] = payee, salt
	return t
}

func lost(t channel.Terms) common.Hash { return t.ID() }

// stake is what a model of the payer knows of a channel: figures of the chain, and what was signed to arrive.
type stake struct {
	terms               channel.Terms
	known               bool
	deposit, authorized uint64 // on the chain, and what it may come to
	settled             uint64
	signed              map[int]uint64 // by day
}

func (s *stake) total() (total uint64) {
	for _, n := range s.signed {
		total += n
	}
	return total
}

func (s *stake) locked() uint64 {
	total, most := s.total(), max(s.deposit, s.authorized)
	return max(most, total) - total
}

// TestDepositsCountInCaps: whatever is opened, funded, paid, refunded and claimed in whatever order, and whoever else
// deposits, what lies in channels or is on its way into them, and what was signed for, never passes a cap by our doing.
func TestDepositsCountInCaps(t *testing.T) {
	const perChannel, perPayee, perDay = 400, 700, 1000
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 3))
		now := &clock{time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
		p := &channel.Payer{Store: openStore(t).Payer(), Signer: payerKey, Domain: ceilingDomain, Now: now.Now,
			Caps: channel.Caps{PerChannel: units(perChannel), PerPayee: units(perPayee), PerDay: units(perDay)}}
		var all []*stake
		for payee := range byte(3) {
			for salt := range byte(3) {
				all = append(all, &stake{terms: modelTerms(payee+1, salt), signed: map[int]uint64{}})
			}
		}
		funded := 0
		for step := range 150 {
			m := &model{T: t, payer: p, all: all, day: now.now.YearDay()}
			s := all[random.IntN(len(all))]
			switch random.IntN(8) {
			case 0, 1, 2:
				if m.fund(s, uint64(random.IntN(500))) {
					funded++
				}
			case 3, 4:
				m.pay(s, uint64(random.IntN(200)))
			case 5:
				s.deposit, s.authorized = max(s.deposit, s.authorized), 0 // it arrives
				m.observe(s)
			case 6: // all but what is signed for is refunded
				s.settled = s.total()
				s.deposit = max(s.settled, 0)
				if s.deposit >= s.authorized {
					s.authorized = 0
				}
				m.observe(s)
			case 7:
				if random.IntN(10) == 0 {
					now.now = now.now.Add(24 * time.Hour)
				}
			}
			if t.Failed() {
				t.Fatalf("seed %d, step %d", seed, step)
			}
		}
		if funded < 10 {
			t.Errorf("seed %d: %d deposits were allowed, the caps leave room for more", seed, funded)
		}
	}
}

type model struct {
	*testing.T
	payer *channel.Payer
	all   []*stake
	day   int
}

// sums are what counts in each cap, with a channel at another stake.
func (m *model) sums(s *stake, locked uint64) (own, payee, day uint64) {
	own = s.total() + locked
	for _, o := range m.all {
		held := o.locked()
		if o == s {
			held = locked
		}
		if o.terms.Payee == s.terms.Payee {
			payee += o.total() + held
		}
		day += o.signed[m.day] + held
	}
	return own, payee, day
}

func (m *model) fits(s *stake, locked uint64) bool {
	own, payee, day := m.sums(s, locked)
	c := m.payer.Caps
	return own <= c.PerChannel.Uint64() && payee <= c.PerPayee.Uint64() && day <= c.PerDay.Uint64()
}

// fund wants exactly what the sums allow to be allowed, and Room to say so before.
func (m *model) fund(s *stake, total uint64) bool {
	m.Helper()
	ctx := context.Background()
	total = max(total, s.deposit, s.authorized) // what may still arrive is not taken back
	after := *s
	after.deposit, after.authorized = total, total
	want := after.locked() <= s.locked() || m.fits(s, after.locked())
	room, _, err := m.payer.Room(ctx, s.terms)
	if err != nil {
		m.Fatal(err)
	}
	if after.locked() > s.locked() && (total <= room.Uint64()) != want {
		m.Errorf("room for %s, %d is allowed: %t", room.Dec(), total, want)
	}
	if s.known {
		err = m.payer.Fund(ctx, lost(s.terms), units(total))
	} else {
		err = m.payer.Open(ctx, s.terms, units(total))
	}
	var capped *channel.CapError
	if (err == nil) != want || (err != nil && !errors.As(err, &capped)) {
		m.Errorf("%d on %+v: %v, want it allowed: %t", total, s, err, want)
	}
	if err != nil {
		if _, err := m.payer.State(ctx, lost(s.terms)); !s.known && !errors.Is(err, channel.ErrUnknown) {
			m.Errorf("a refused channel was kept: %v", err)
		}
		return false
	}
	s.known, s.authorized = true, total
	return true
}

func (m *model) pay(s *stake, growth uint64) {
	m.Helper()
	if !s.known {
		return
	}
	want := s.total() + growth
	if _, err := m.payer.Pay(context.Background(), lost(s.terms), units(want)); err == nil {
		s.signed[m.day] += growth
	}
	own, payee, day := m.sums(s, s.locked())
	if own > 400 || payee > 700 || day > 1000 {
		m.Errorf("after a payment %d on the channel, %d with the payee, %d today", own, payee, day)
	}
}

func (m *model) observe(s *stake) {
	m.Helper()
	if !s.known {
		return
	}
	v := channel.ChainView{Deposit: units(s.deposit), Settled: units(s.settled)}
	if _, err := m.payer.Observe(context.Background(), lost(s.terms), v); err != nil {
		m.Error(err)
	}
}

// TestStrangersUnitFreesNoCap: somebody else's deposit does not make room for a second one of ours while the first may
// still arrive.
func TestStrangersUnitFreesNoCap(t *testing.T) {
	p, _, _ := newCeilingPayer(t)
	ctx := context.Background()
	p.Caps = channel.Caps{PerChannel: units(1000), PerPayee: units(1600), PerDay: units(1600)}
	terms := ceilingTerms("0x02")
	if err := p.Open(ctx, terms, units(600)); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Observe(ctx, terms.ID(), channel.ChainView{Deposit: units(1)}); err != nil {
		t.Fatal(err)
	}
	var capped *channel.CapError
	if err := p.Open(ctx, ceilingTerms("0x03"), units(1)); !errors.As(err, &capped) || capped.Wanted != units(1601) {
		t.Errorf("over what is on its way: %v", err)
	}
	if err := p.Fund(ctx, terms.ID(), units(1)); err != nil { // it expired
		t.Fatal(err)
	}
	if err := p.Open(ctx, ceilingTerms("0x03"), units(599)); err != nil {
		t.Error(err)
	}
}

// TestLostStoreIsBookedOutsideTheCaps: what the chain or our own signature shows was signed before. It is booked whatever
// the caps are, counts for the payee and for no day, and a payment goes on from it.
func TestLostStoreIsBookedOutsideTheCaps(t *testing.T) {
	p, _, _ := newCeilingPayer(t)
	ctx := context.Background()
	terms := ceilingTerms("0x02")
	id := terms.ID()
	shown, err := ceilingDomain.Sign(ctx, payerKey, id, units(700))
	if err != nil {
		t.Fatal(err)
	}
	p.Caps = channel.Caps{PerChannel: units(300), PerPayee: units(900), PerDay: units(100)}
	s, err := p.Adopt(ctx, terms, channel.ChainView{Deposit: units(1000), Settled: units(400)})
	if err != nil || s.Signed != units(0) || s.Cost() != units(400) || s.Deposit != units(1000) || s.Status != channel.Open {
		t.Fatalf("adopted %+v, %v", s, err)
	}
	forged := shown
	forged.Cumulative = units(800)
	if _, err := p.Recall(ctx, forged); !errors.Is(err, channel.ErrSignature) {
		t.Errorf("a voucher that is not ours: %v", err)
	}
	for range 2 {
		if s, err = p.Recall(ctx, shown); err != nil || s.Signed != units(700) {
			t.Fatalf("recalled %+v, %v", s, err)
		}
	}
	pay(t, p, id, 500) // a lower ceiling, as for a refund, asks no cap
	p.Caps.PerChannel = units(1000)
	pay(t, p, id, 800)
	var capped *channel.CapError
	if _, err := p.Pay(ctx, id, units(801)); !errors.As(err, &capped) || capped.Cap != channel.CapDay || capped.Wanted != units(101) {
		t.Errorf("over the day: %v", err)
	}
	p.Caps.PerDay = units(5000)
	pay(t, p, id, 900)
	if _, err := p.Pay(ctx, id, units(901)); !errors.As(err, &capped) || capped.Cap != channel.CapPayee {
		t.Errorf("over the payee: %v", err)
	}
}

// TestDepositsAtOnce: deposits into many channels at once never pass a cap that they share.
func TestDepositsAtOnce(t *testing.T) {
	p, _, _ := newCeilingPayer(t)
	p.Caps.PerDay = units(1500)
	var wait sync.WaitGroup
	opened := make([]bool, 20)
	for i := range opened {
		wait.Go(func() {
			err := p.Open(context.Background(), ceilingTerms(uint256.NewInt(uint64(100+i)).Hex()), units(100))
			var capped *channel.CapError
			if opened[i] = err == nil; err != nil && !errors.As(err, &capped) {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if n := len(slices.DeleteFunc(opened, func(b bool) bool { return !b })); n != 5 {
		t.Errorf("%d channels of 100 beside 1000, the cap is 1500", n)
	}
}
