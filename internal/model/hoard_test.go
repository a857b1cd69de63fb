package model

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"pgregory.net/rapid"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wire"
)

// authorizationEnds is more than the time for which an authorization is good.
const authorizationEnds = 17 * time.Minute

// A hoarder is a provider that keeps what its renters sign, says that it is busy, and has it sent at any time it likes.
type hoarder struct {
	http.Handler // the honest part of it

	mu    sync.Mutex
	opens bool // are kept back, too
	held  []wire.Payload
}

func (h *hoarder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c, err := wire.ParseCredential(r.Header)
	if err != nil || c.Payload.Authorization == nil {
		h.Handler.ServeHTTP(w, r)
		return
	}
	h.mu.Lock()
	h.held = append(h.held, c.Payload)
	keep := h.opens || c.Payload.Action == wire.ActionTopUp
	h.mu.Unlock()
	if keep {
		http.Error(w, "come back later", http.StatusServiceUnavailable)
		return
	}
	h.Handler.ServeHTTP(w, r)
}

// authorizations are those that came, each once.
func (h *hoarder) authorizations() (distinct []wire.Payload) {
	h.mu.Lock()
	defer h.mu.Unlock()
	seen := map[string]bool{}
	for _, p := range h.held {
		if name := p.Signature.String(); !seen[name] {
			seen[name] = true
			distinct = append(distinct, p)
		}
	}
	return distinct
}

// A hoard is a market whose provider is a hoarder.
type hoard struct {
	*market
	*hoarder
	between *between
	leaving atomic.Bool // the renter's clock has come to where the chain's is
	terms   map[common.Hash]channel.Terms
}

// between is an endpoint at which something happens, once, at the next look at the clock after a look at the token.
type between struct {
	chain.Backend
	token common.Address
	mu    sync.Mutex
	asked bool
	do    func()
}

func (b *between) CallContract(ctx context.Context, call ethereum.CallMsg, block *big.Int) ([]byte, error) {
	b.mu.Lock()
	b.asked = b.asked || call.To != nil && *call.To == b.token
	b.mu.Unlock()
	return b.Backend.CallContract(ctx, call, block)
}

func (b *between) HeaderByNumber(ctx context.Context, n *big.Int) (*types.Header, error) {
	b.mu.Lock()
	do := b.do
	if !b.asked {
		do = nil
	}
	if do != nil {
		b.do = nil
	}
	b.mu.Unlock()
	if do != nil {
		do()
	}
	return b.Backend.HeaderByNumber(ctx, n)
}

// arm has something happen. Only what is asked from now on counts.
func (b *between) arm(do func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked, b.do = false, do
}

// TestHoard: whatever a provider does with what its renter signed, and whenever, what it moves stays under the cap, and the
// renter lets go of no channel that holds its money.
func TestHoard(t *testing.T) {
	set(t, "rapid.checks", strconv.Itoa(3*markets(t)))
	set(t, "rapid.steps", "60")
	set(t, "rapid.nofailfile", "true")
	set(t, "rapid.shrinktime", "1ms")
	seen := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		h := newHoard(rt, seen)
		actions := rapid.StateMachineActions(&hoarding{h})
		for i := range 4 {
			actions[fmt.Sprintf("Again (%d)", i)] = actions["Again"]
		}
		for name, action := range actions {
			actions[name] = func(rt *rapid.T) { h.T = rt; action(rt) }
		}
		(&hoarding{h}).Rent(rt)
		rt.Repeat(actions)
	})
	t.Log(seen)
}

// TestLastMoment is the part of TestHoard in which a deposit that was kept back is sent while its renter looks whether it ever
// will be.
func TestLastMoment(t *testing.T) {
	set(t, "rapid.checks", strconv.Itoa(3*markets(t)))
	set(t, "rapid.nofailfile", "true")
	set(t, "rapid.shrinktime", "1ms")
	seen := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		h := newHoard(rt, seen)
		x := &hoarding{h}
		h.rent(rt, true)
		if len(h.deals) == 0 {
			rt.Skip("no deal")
		}
		for !h.deals[0].over {
			h.leave(rt, h.deals[0])
			x.Check(rt)
			if rapid.Bool().Draw(rt, "enough") {
				break
			}
			h.must(h.chain.Advance(60 * uint64(rapid.IntRange(1, 17).Draw(rt, "minutes"))))
		}
	})
	t.Log(seen)
}

func newHoard(t *rapid.T, seen map[string]int) *hoard {
	h := &hoard{market: newMarket(t, seen), terms: map[common.Hash]channel.Terms{}}
	h.hoarder = &hoarder{Handler: h.provider}
	h.server.Config.Handler = h.hoarder
	h.between = &between{Backend: h.chain, token: h.token.Address}
	h.renters = h.renters[:1] // the one with coin, which can leave
	r := h.renters[0]
	h.must(r.Close())
	r.config.Chain.Backend, r.config.Caps.PerLease, r.config.Now = h.between, "0.03", h.now
	h.start(r)
	return h
}

// now is the renter's clock, which the provider's does not follow: its offers are good for as long as a test runs.
func (h *hoard) now() time.Time {
	if mined := time.Unix(int64(h.chain.Time()), 0); h.leaving.Load() && mined.After(time.Now()) {
		return mined
	}
	return time.Now()
}

// submit sends what was kept back, if the chain takes it.
func (h *hoard) submit(p wire.Payload) {
	a := p.Authorization
	escrow, err := chain.NewEscrow(h.ctx, h.chain, h.escrow)
	h.must(err)
	signed := chain.Authorization{Signature: p.Signature, Authorization: channel.Authorization{
		From: common.Address(a.From), To: common.Address(a.To), Value: a.Value.Int, Nonce: a.Nonce, ValidBefore: a.ValidBefore.Uint64()}}
	t := channel.Terms{Scheme: channel.Session, ChainID: escrow.ChainID(), Payer: common.Address(a.From), Payee: h.payee.Address(),
		Token: h.token.Address, Escrow: h.escrow, Salt: *p.Salt}
	call := escrow.OpenAuthorizedCall(t, signed)
	if p.Action == wire.ActionTopUp {
		call = escrow.TopUpAuthorizedCall(h.terms[p.ChannelID], *p.Salt, signed)
	} else if t.ID() != p.ChannelID {
		h.Fatalf("channel %s was signed for, not %s", t.ID(), p.ChannelID)
	}
	if h.send(h.stranger, call) == nil {
		h.seen["sent late: "+p.Action]++
	}
}

// hoarding is what may happen next.
type hoarding struct{ h *hoard }

func (x *hoarding) pick(t *rapid.T) *deal {
	if len(x.h.deals) == 0 {
		t.Skip("no deal")
	}
	if rapid.IntRange(0, 3).Draw(t, "an old one") > 0 {
		return x.h.deals[len(x.h.deals)-1]
	}
	return x.h.deals[rapid.IntRange(0, len(x.h.deals)-1).Draw(t, "deal")]
}

// Rent makes a deal whose deposit lasts for a moment, so that top-ups are asked for.
func (x *hoarding) Rent(t *rapid.T) {
	h := x.h
	if len(h.deals) > 0 && !h.deals[len(h.deals)-1].left {
		t.Skip("one at a time")
	}
	h.rent(t, rapid.Bool().Draw(t, "kept back"))
}

func (h *hoard) rent(t *rapid.T, kept bool) {
	h.mu.Lock()
	h.opens = kept
	h.mu.Unlock()
	ctx, cancel := context.WithTimeout(h.ctx, time.Second)
	defer cancel()
	r := h.renters[0]
	before, err := r.Rentals(h.ctx)
	h.must(err)
	_, err = r.Rent(ctx, h.server.URL, renter.Options{GPUs: gpus, Deposit: "0.002", TopUp: "0.02", PayEvery: 20 * time.Millisecond, Gasless: true})
	after, lost := r.Rentals(h.ctx)
	h.must(lost)
	if len(after) == len(before) {
		t.Log(err)
		return
	}
	for _, s := range after {
		if _, known := h.terms[s.Channel]; known {
			continue
		}
		rental, err := r.Rental(h.ctx, s.Channel)
		h.must(err)
		h.terms[s.Channel] = rental.Terms()
		h.deals = append(h.deals, &deal{by: r, rental: rental, id: s.Channel})
		h.seen["begun: "+string(s.Phase)]++
	}
}

// Again has the renter's program begin anew and run for a moment: it asks for what its deposit lacks at once.
func (x *hoarding) Again(t *rapid.T) {
	h, d := x.h, x.pick(t)
	if d.left || d.rental.Snapshot().Phase == renter.PhaseOpening && rapid.IntRange(0, 3).Draw(t, "asks") > 0 {
		t.Skip()
	}
	h.pause(d)
	ctx, cancel := context.WithTimeout(h.ctx, time.Second)
	defer cancel()
	rental, err := d.by.Resume(ctx, d.id)
	if err != nil {
		h.seen["not again"]++
		t.Log(err)
		return
	}
	d.rental = rental
	h.pay(d)
	time.Sleep(time.Duration(rapid.IntRange(1, 15).Draw(t, "ticks")) * tick)
}

// Gift is a stranger's base unit.
func (x *hoarding) Gift(t *rapid.T) {
	d := x.pick(t)
	escrow, err := chain.NewEscrow(x.h.ctx, x.h.chain, x.h.escrow)
	x.h.must(err)
	_ = x.h.send(x.h.stranger, x.h.token.ApproveCall(x.h.escrow, channel.MaxAmount()))
	if x.h.send(x.h.stranger, escrow.TopUpCall(d.rental.Terms(), units(1))) == nil {
		x.h.gifts[d.id]++
	}
}

// Carry sends something that was kept back.
func (x *hoarding) Carry(t *rapid.T) {
	all := x.h.authorizations()
	if len(all) == 0 {
		t.Skip()
	}
	x.h.submit(all[rapid.IntRange(0, len(all)-1).Draw(t, "which")])
}

// Later is time in which what was signed may end.
func (x *hoarding) Later(t *rapid.T) {
	x.h.must(x.h.chain.Advance(60 * uint64(rapid.IntRange(1, 17).Draw(t, "minutes"))))
}

// Leave has a renter want its money back without its provider, which sends what it kept back in the last moment.
func (x *hoarding) Leave(t *rapid.T) {
	h, d := x.h, x.pick(t)
	opening := d.rental.Snapshot().Phase == renter.PhaseOpening
	if d.over || !d.left && !opening && rapid.IntRange(0, 4).Draw(t, "wants") > 0 {
		t.Skip()
	}
	h.leave(t, d)
}

// leave wants a deal's money back.
func (h *hoard) leave(t *rapid.T, d *deal) {
	h.pause(d)
	d.left = true
	h.leaving.Store(true)
	defer h.leaving.Store(false)
	mine := slices.DeleteFunc(h.authorizations(), func(p wire.Payload) bool { return p.ChannelID != d.id })
	if len(mine) > 0 && rapid.IntRange(0, 3).Draw(t, "in between") > 0 {
		h.between.arm(func() {
			h.submit(mine[len(mine)-1])
			_ = h.chain.Advance(uint64(authorizationEnds / time.Second))
		})
		defer h.between.arm(nil)
	}
	rental, err := d.by.Rental(h.ctx, d.id)
	h.must(err)
	ctx, cancel := context.WithTimeout(h.ctx, 300*time.Millisecond)
	defer cancel()
	if _, err = rental.Leave(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Log(err)
	}
	if d.rental = rental; err == nil {
		d.over = true
		h.seen["left"]++
	}
}

// Check holds at any moment.
func (x *hoarding) Check(t *rapid.T) {
	h := x.h
	h.T = t
	escrow, err := chain.NewEscrow(h.ctx, h.chain, h.escrow)
	h.must(err)
	for _, d := range h.deals {
		view, err := escrow.View(h.ctx, d.id, nil)
		if err != nil {
			continue
		}
		if deposit := view.Deposit.Uint64(); deposit > 30_000+h.gifts[d.id] {
			t.Fatalf("%d are deposited, of which %d are gifts: the cap is 30,000", deposit, h.gifts[d.id])
		}
		if d.over && view.Deposit.Gt(&view.Settled) && !view.Finalized {
			t.Fatalf("%s of %s lie in a channel that its renter let go of", view.Settled.Dec(), view.Deposit.Dec())
		}
	}
}
