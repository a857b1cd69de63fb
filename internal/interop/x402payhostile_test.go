package interop

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"github.com/gpupay/gpupay/metering"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// without asks for a tick as a stranger does that has a payment's header, or none.
func (c *counter) without(payment string) *http.Response {
	c.Helper()
	req, err := http.NewRequestWithContext(c.Context(), http.MethodGet, c.server.URL+"/tick", nil)
	if err != nil {
		c.Fatal(err)
	}
	if payment != "" {
		req.Header.Set(x402.HeaderSignature, payment)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { resp.Body.Close() })
	return resp
}

// terms are those of the client's channel, made from the offer as its packages make them.
func (s *shopper) terms() channel.Terms {
	s.Helper()
	required, err := x402.ParsePaymentRequired(s.without("").Header)
	if err != nil {
		s.Fatal(err)
	}
	offer := required.Accepts[0]
	terms := x402.ChannelConfig{Payer: wire.Address(s.address()), PayerAuthorizer: wire.Address(s.address()), Receiver: offer.PayTo,
		ReceiverAuthorizer: offer.Extra.ReceiverAuthorizer, Token: offer.Asset, WithdrawDelay: offer.Extra.WithdrawDelay}.Terms(offer.Network)
	if terms.ID() != s.id {
		s.Fatalf("the client's channel is %s, not %s", s.id, terms.ID())
	}
	return terms
}

// eventually waits for something that must come.
func (c *counter) eventually(what string, f func() bool) {
	c.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			c.Fatal("never: " + what)
		}
	}
}

// withdrawal: a payer that takes its money back without asking is not served while it does, and what it has used is
// fetched at once.
func withdrawal(t *testing.T, s *stock) {
	c := newCounter(t, s, 1, func(c *counter) {
		c.config.X402.WithdrawDelay, c.config.X402.MaxTimeout = channel.MinWithdrawDelay, 2*time.Hour
	})
	b := c.shopper(c.payer(), nil)
	b.tick()
	b.tick()
	terms := b.terms()
	send := func(call chain.Call) {
		t.Helper()
		c.chain.RPC(t, nil, "anvil_setBalance", b.address(), "0xde0b6b3a7640000")
		c.chain.Transact(t, b.key, call.To, call.Data)
		c.chain.RPC(t, nil, "anvil_setBalance", b.address(), "0x0")
	}
	send(c.contract.InitiateWithdrawCall(terms, *uint256.NewInt(b.holds())))
	c.eventually("the provider claims what was used", func() bool { claimed := c.on(b.id).View.Settled; return claimed.Uint64() >= b.spent+b.gaps })
	d := b.asked(nil)
	if d.Status != http.StatusPaymentRequired || !strings.Contains(d.Requests[len(d.Requests)-1].Reason, "withdrawal") {
		t.Errorf("served during a withdrawal: %+v", d)
	}
	claimed := c.on(b.id).View.Settled
	c.chain.AdvanceTime(t, channel.MinWithdrawDelay+time.Second)
	send(c.contract.FinalizeWithdrawCall(terms))
	if got := c.chain.Tokens(t, b.address()); got != purse-claimed.Uint64() || b.holds() != claimed.Uint64() {
		t.Errorf("the payer has %d, the channel holds %d of %s claimed", got, b.holds(), claimed.Dec())
	}
	again := c.shopper(b.key, nil)
	again.id, again.spent, again.gaps = b.id, b.spent, claimed.Uint64()-b.spent
	d.Requests = nil
	c.eventually("the provider sees that the withdrawal is over", func() bool {
		before := d.Requests // it may be corrected while it is refused
		d = again.asked(nil)
		d.Requests = append(before, d.Requests...)
		return d.Status == http.StatusOK
	})
	again.took(d)
	again.refunds("")
	c.audit(again)
}

// spendControls: what a client must set so that it pays a token which is not in its packages' list, and what it can set so
// that it does not pay too much. It signs nothing that it does not want to pay.
func spendControls(t *testing.T, s *stock) {
	c := newCounter(t, s, 2)
	payer := c.payer()
	allowed := func(more map[string]any) map[string]any {
		asset := map[string]any{"network": "eip155:31337", "asset": c.chain.Token.Hex()}
		maps.Copy(asset, more)
		return map[string]any{"spend": map[string]any{"allowedAssets": []any{asset}}}
	}
	for name, options := range map[string]map[string]any{
		"by default":              {"spend": map[string]any{}},
		"under a cap that is low": allowed(map[string]any{"maxAmountPerPayment": "750"}),
	} {
		d := c.shopper(payer, options).asked(nil)
		if !strings.Contains(d.Error, "rejected by spendControls") || d.Signed != 0 || len(d.Requests) != 1 {
			t.Errorf("%s the client pays: %+v", name, d)
		}
	}
	poor := c.shopper(payer, allowed(map[string]any{"maxAmountPerPayment": "751"})) // it deposits five times that at most
	if d := poor.asked(nil); d.Status != http.StatusPaymentRequired || d.Requests[1].Reason != string(x402.CodeDepositBelowMinimum) {
		t.Errorf("a deposit below the least that is taken: %+v", d)
	}
	capped := c.shopper(payer, allowed(map[string]any{"maxAmountPerPayment": "2000"}))
	capped.tick()
	open := c.shopper(payer, map[string]any{"spend": map[string]any{"allowedAssets": true}, "salt": "0x" + strings.Repeat("01", 32)})
	open.tick()
	c.audit(capped, open)
}

// strangerWithVoucher: who reads a voucher from a claim, or a payment as it was sent, gets nothing for it, moves nothing,
// and does not stand in the payer's way.
func strangerWithVoucher(t *testing.T, s *stock) {
	c := newCounter(t, s, 1)
	b := c.shopper(c.payer(), nil)
	b.tick()
	last := b.tick()
	used := last.Requests[len(last.Requests)-1].Payment
	if err := c.provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	held := b.holds()
	refund := asRefund(t, used)
	for name, payment := range map[string]string{"payment": used, "refund": refund, "part": partOf(t, refund)} {
		resp := c.without(payment)
		body, _ := io.ReadAll(resp.Body)
		required, err := x402.ParsePaymentRequired(resp.Header)
		if resp.StatusCode != http.StatusPaymentRequired || err != nil || required.Error != string(x402.CodeCumulativeMismatch) {
			t.Errorf("a stranger's %s: %s %s %v", name, resp.Status, body, err)
		}
		if len(resp.Header.Values(x402.HeaderResponse)) > 0 {
			t.Errorf("a stranger's %s has a receipt", name)
		}
	}
	if b.holds() != held {
		t.Errorf("the channel held %d, now %d", held, b.holds())
	}
	b.tick()
	b.refunds("")
	c.audit(b)
}

// stalling is a source whose readings can be late, as on a host that has too much to do.
type stalling struct {
	metering.Source
	until atomic.Int64 // unix nanoseconds
}

func (s *stalling) Read(ctx context.Context, uuid string) (metering.Reading, error) {
	time.Sleep(time.Until(time.Unix(0, s.until.Load())))
	return s.Source.Read(ctx, uuid)
}

// lateReadings: whatever the provider's host does, a client is charged no more than it has signed for. One that is would
// throw the answer away, or refuse to be corrected, and its channel would be dead.
func lateReadings(t *testing.T, s *stock) {
	late := &stalling{Source: testclock.GPUs(1)}
	c := newCounter(t, s, 1, func(c *counter) { c.config.Source, c.config.Metering.MaxGap = late, 10*time.Second })
	b := c.shopper(c.payer(), nil)
	b.credit = uint64(payWindow.Milliseconds()) // in between the lease may use up all that was signed for
	for _, after := range []time.Duration{0, payWindow / 4, payWindow - 20*time.Millisecond} {
		b.tick()
		late.until.Store(time.Now().Add(after + paySlack).UnixNano()) // the lease runs on, and nobody looks
		time.Sleep(after + 2*paySlack)
		answers := b.asks(nil)
		time.Sleep(after)
		late.until.Store(time.Now().Add(2 * paySlack).UnixNano()) // in the middle of a window
		b.took(receive(t, answers))
	}
	b.refunds("")
	c.audit(b)
}

// asRefund makes a refund of a payment with the same voucher.
func asRefund(t *testing.T, payment string) string {
	t.Helper()
	return altered(t, payment, func(payload map[string]any) {
		payload["type"] = x402.TypeRefund
		delete(payload, "deposit")
	})
}

func partOf(t *testing.T, refund string) string {
	t.Helper()
	return altered(t, refund, func(payload map[string]any) { payload["amount"] = "100" })
}

// altered is a payment's header with another payload.
func altered(t *testing.T, payment string, change func(payload map[string]any)) string {
	t.Helper()
	text, err := base64.StdEncoding.DecodeString(payment)
	if err != nil {
		t.Fatal(err)
	}
	var p map[string]any
	if err := json.Unmarshal(text, &p); err != nil {
		t.Fatal(err)
	}
	change(p["payload"].(map[string]any))
	if text, err = json.Marshal(p); err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(text)
}
