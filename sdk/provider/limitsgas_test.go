package provider

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/internal/admit"
	"github.com/gpupay/gpupay/sdk/wire"
)

// poorKey gives the provider a key with so much coin.
func (r *rig) poorKey(wei int64) {
	r.Helper()
	private, err := crypto.GenerateKey()
	if err != nil {
		r.Fatal(err)
	}
	r.config.Key = channel.NewKey(private)
	if err := r.chain.Fund(r.Context(), r.config.Key.Address(), big.NewInt(wei), uint256.Int{}); err != nil {
		r.Fatal(err)
	}
}

// A renter that has the provider send top-up after top-up gets no further than the reserve: what it vouchered is settled
// when it wants its deposit back.
func TestTopUpsLeaveGasToSettle(t *testing.T) {
	r := newAnvilRig(t, func(c *Config) { c.Limits.Deposits.PerSecond = -1 })
	lease := r.open(1, 400_000, "")
	lease.pay(390_000)
	f, err := r.provider.sponsor.Funds(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	coin := new(big.Int).Add(f.Reserve, new(big.Int).Mul(f.Gift, big.NewInt(5)))
	r.anvil.RPC(t, nil, "anvil_setBalance", r.config.Key.Address(), (*hexutil.Big)(coin))
	before := r.nonce()
	for i := range 229 {
		if err := problemIn(wire.PaymentInsufficient, lease.do("POST", "", &wire.Credential{Challenge: lease.challenge(), Payload: *lease.topUp(1, byte(i))})); err != nil {
			t.Fatal(err)
		}
	}
	if n := r.nonce() - before; n != 0 {
		t.Errorf("%d transactions moved one base unit each", n)
	}
	refused := false
	for i := 0; i < 100 && !refused; i++ {
		resp := lease.do("POST", "", &wire.Credential{Challenge: lease.challenge(), Payload: *lease.topUp(1000, byte(i))})
		refused = resp.StatusCode != http.StatusOK
		if refused {
			if err := problemIn(wire.Unavailable, resp); err != nil {
				t.Error(err)
			}
		}
	}
	f, err = r.provider.sponsor.Funds(t.Context())
	if err != nil || !refused || f.Coin.Cmp(f.Reserve) < 0 {
		t.Errorf("refused %v after %d transactions, %s wei are left of a reserve of %s (%v)", refused, r.nonce()-before, f.Coin, f.Reserve, err)
	}
	requestClose(t, r.rig, r.anvil.Keys[1], lease.terms)
	waitFor(t, func() bool { return r.balance(r.config.Key.Address()) == 390_000 })
}

// What is sent for one payer in a day is bounded, for all likewise, and a restart forgets neither.
func TestSponsoredGasIsBounded(t *testing.T) {
	t.Parallel()
	for name, one := range map[string]struct {
		limit func(*Limits, *big.Int)
		other bool // whether another payer is still served
		want  wire.Problem
	}{
		"of one payer": {func(l *Limits, wei *big.Int) { l.SponsoredGasPerPayer = wei }, true, wire.TooMany},
		"of all":       {func(l *Limits, wei *big.Int) { l.SponsoredGas = wei }, false, wire.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, generousCredit)
			lease := r.open(1, 100_000, "")
			r.open(3, 100_000, "") // what both cost is enough for another payer's, at whatever margin
			spent, err := r.provider.sponsor.SpentFor(t.Context(), r.payer.Address())
			if err != nil {
				t.Fatal(err)
			}
			one.limit(&r.config.Limits, spent.All)
			r.restart()
			topUp := &wire.Credential{Challenge: lease.challenge(), Payload: *lease.topUp(5000, 1)}
			if err := problemIn(one.want, lease.do("POST", "", topUp)); err != nil {
				t.Error(err)
			}
			r.restart()
			second := r.openCredential(r.payer, r.terms(r.payer.Address(), 2), 100_000, 0)
			if err := problemIn(one.want, r.do("POST", "", second)); err != nil {
				t.Error(err)
			}
			other := r.fund(t, 1_000_000)
			resp := r.do("POST", "", r.openCredential(other, r.terms(other.Address(), 1), 100_000, 0))
			if served := resp.StatusCode == http.StatusOK; served != one.other {
				t.Errorf("another payer: %s", resp.Status)
			}
			lease.close(0) // what is given back is not held up
			one.limit(&r.config.Limits, big.NewInt(1))
			r.restart()
			if err := r.provider.sponsor.AffordReturn(t.Context(), r.payer.Address()); !errors.Is(problemOf(err), &one.want) {
				t.Errorf("what is given back to one payer once more: %v", err)
			}
			if err := r.provider.sponsor.AffordReturn(t.Context(), other.Address()); err != nil {
				t.Errorf("what is given back to another: %v", err)
			}
		})
	}
}

// Fees rise a hundredfold while as many top-ups as may be in flight stand before a settlement: it is mined, what was sent for
// the renter may cost what the day's budget allows, and costs a nonce each, and the renter hears that it may ask again.
func TestSettlementPassesGiftsThatAreStuck(t *testing.T) {
	budget := big.NewInt(1e16)
	r := newAnvilRig(t, func(c *Config) {
		c.Limits.Deposits.PerSecond, c.Limits.SponsoredGas, c.Limits.SponsoredGasPerPayer, c.Limits.LostGas = -1, budget, budget, big.NewInt(1e18)
		c.Limits.Pending = 8 * 2 * admit.MaxInFlight
		c.Chain.stuck, c.Chain.resend = 200*time.Millisecond, 50*time.Millisecond
	})
	lease := r.open(1, 400_000, "")
	lease.pay(390_000)
	r.anvil.Automine(t, false)
	before, answers := r.nonce(), make(chan error, admit.MaxInFlight+1)
	topUp := func(salt byte) {
		resp := lease.do("POST", "", &wire.Credential{Challenge: lease.challenge(), Payload: *lease.topUp(1000, salt)})
		answers <- problemIn(wire.Unavailable, resp)
	}
	for i := range byte(admit.MaxInFlight) {
		go topUp(i)
	}
	waitFor(t, func() bool { return r.nonce() == before+admit.MaxInFlight })
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := r.provider.sponsor.AwaitRoom(ctx); !errors.Is(problemOf(err), &wire.Unavailable) {
		t.Errorf("one more finds a place: %v", err)
	}
	dear := func() {
		r.anvil.RPC(t, nil, "anvil_setNextBlockBaseFeePerGas", (*hexutil.Big)(big.NewInt(100e9)))
		r.anvil.Mine(t, 1)
		time.Sleep(r.config.Chain.Poll)
	}
	for range 10 {
		dear()
	}
	if s, err := r.provider.sponsor.SpentFor(t.Context(), lease.terms.Payer); err != nil || s.All.Cmp(budget) > 0 {
		t.Errorf("what is in flight may cost %s of %s wei (%v)", s.All, budget, err)
	}
	settled := make(chan error, 1)
	go func() { settled <- r.provider.Settle(t.Context()) }()
	waitFor(t, func() bool { dear(); return r.balance(r.config.Key.Address()) == 390_000 })
	if err := <-settled; err != nil {
		t.Error(err)
	}
	for range admit.MaxInFlight {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
	s, err := r.provider.sponsor.SpentFor(t.Context(), lease.terms.Payer)
	if most := big.NewInt(budget.Int64() + admit.MaxInFlight*21_000*102e9); err != nil || s.All.Cmp(most) > 0 {
		t.Errorf("it cost %s of %s wei (%v)", s.All, most, err)
	}
	r.anvil.RPC(t, nil, "anvil_setNextBlockBaseFeePerGas", (*hexutil.Big)(big.NewInt(1e9)))
	r.anvil.Automine(t, true)
}

// Health and metrics say what coin the key has; without enough for one settlement the provider is not healthy.
func TestHealthKnowsTheCoin(t *testing.T) {
	r := newRig(t)
	ask := func(of http.Handler) (int, string) {
		w := httptest.NewRecorder()
		of.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		return w.Code, w.Body.String()
	}
	var h health
	code, body := ask(r.provider.Health())
	if err := json.Unmarshal([]byte(body), &h); err != nil || code != http.StatusOK || h.Status != "ok" {
		t.Fatalf("%d %s %v", code, body, err)
	}
	f, err := r.provider.sponsor.Funds(t.Context())
	if err != nil || h.Coin != f.Coin.String() || h.Reserve == "" || f.Reserve.Sign() == 0 {
		t.Errorf("health says %s, the key has %s (%v)", body, f.Coin, err)
	}
	if _, text := ask(r.provider.Metrics()); !strings.Contains(text, fmt.Sprintf("gpupay_coin_wei %v\n", float(f.Coin))) || !strings.Contains(text, "gpupay_coin_reserve_wei ") {
		t.Errorf("metrics: %s", text)
	}
	r.shut()
	r.poorKey(1)
	r.start()
	if code, body = ask(r.provider.Health()); code != http.StatusServiceUnavailable || !strings.Contains(body, r.config.Key.Address().Hex()) {
		t.Errorf("without coin: %d %s", code, body)
	}
	resp := r.do("GET", "", r.openCredential(r.payer, r.terms(r.payer.Address(), 1), 100_000, 0))
	if err := problemIn(wire.Unavailable, resp); err != nil {
		body, _ := io.ReadAll(resp.Body)
		t.Errorf("%v %s", err, body)
	}
}
