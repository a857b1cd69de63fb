package provider

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/x402server"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// blind is an allocator that does not say what is free.
type blind struct{ gpu.Allocator }

// TestNothingMovesForAnX402RequestThatIsRefused: what cannot be served is told
// before the deposit is sent, whatever it is that stands against it.
func TestNothingMovesForAnX402RequestThatIsRefused(t *testing.T) {
	r := newPayRig(t)
	runs := r.buyer("/tick")
	runs.open(20_000)
	route, err := r.provider.Metered(Route{Devices: []string{r.provider.leases.Offered.Devices[0].UUID}, MaxTime: time.Second}, http.NotFoundHandler())
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/", r.provider)
	mux.Handle("/infer", route)
	r.server.Config.Handler = mux
	stranger := r.buyer("/tick")
	for name, c := range map[string]struct {
		b    *buyer
		path string
	}{
		"more GPUs than are free":          {stranger, "/tick?gpus=2"},
		"more GPUs than there are":         {stranger, "/lease?gpus=99"},
		"more GPUs than the lease has":     {runs, "/tick?gpus=2"},
		"far more GPUs than the lease has": {runs, "/lease?gpus=99"},
		"a metered route beside a lease":   {runs, "/infer"},
	} {
		b := *c.b
		b.path = c.path
		before := b.holds()
		resp := b.pay(b.depositing(b.next(), 50_000))
		if resp.StatusCode == http.StatusPaymentRequired && b.refused(resp).Error == string(x402.CodeCumulativeMismatch) {
			resp = b.pay(b.depositing(b.told(resp), 50_000))
		}
		if resp.StatusCode != http.StatusConflict && resp.StatusCode != http.StatusServiceUnavailable || b.holds() != before {
			t.Errorf("%s: %s %v, the contract holds %d after %d", name, resp.Status, wire.ParseProblem(resp), b.holds(), before)
		}
		if sent := r.transactions(&b); len(sent) > 0 && before == 0 {
			t.Errorf("%s: sent %v", name, sent)
		}
	}
}

// TestNothingMovesWhereNobodySaysWhatIsFree: an allocator that does not count
// still has no more GPUs than its source.
func TestNothingMovesWhereNobodySaysWhatIsFree(t *testing.T) {
	source := testclock.GPUs(2)
	host, err := gpu.NewHostAllocator(context.Background(), source)
	if err != nil {
		t.Fatal(err)
	}
	r := newPayRig(t, func(c *Config) { c.Source, c.Allocator = source, blind{host} })
	b := r.buyer("/tick?gpus=3")
	if resp := b.pay(b.depositing(b.next(), 50_000)); resp.StatusCode != http.StatusServiceUnavailable || b.holds() != 0 {
		t.Errorf("%s %v, the contract holds %d", resp.Status, wire.ParseProblem(resp), b.holds())
	}
}

// TestNothingMovesForASessionThatIsRefused: the same of the session's opens and
// top-ups, alone and merged with a voucher.
func TestNothingMovesForASessionThatIsRefused(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Deposits.Min = "0.0001" })
	known := r.open(1, 10_000, "")
	known.release()
	merged := func(c *wire.Credential, amount uint64, sign func() wire.Bytes) *wire.Credential {
		open := c.Payload
		open.VoucherSignature, open.CumulativeAmount = nil, nil
		cumulative := wireAmount(amount)
		c.Payload = wire.Payload{Action: wire.ActionVoucher, ChannelID: open.ChannelID, CumulativeAmount: &cumulative, Signature: sign(), Deposit: &open}
		return c
	}
	topUp := func(amount uint64, salt byte) *wire.Credential {
		c := known.credential(wire.ActionVoucher, amount)
		c.Payload.Deposit, c.Payload.LeaseSecret = known.topUp(50_000, salt), known.lease.Secret
		return c
	}
	fresh := r.terms(r.payer.Address(), 9)
	other := r.terms(r.payer.Address(), 10)
	for name, c := range map[string]struct {
		method, query string
		cred          func() *wire.Credential
	}{
		"open: more GPUs than there are":   {"GET", "?gpus=3", func() *wire.Credential { return r.openCredential(r.payer, fresh, 50_000, 0) }},
		"open: too little for its GPUs":    {"GET", "?gpus=2", func() *wire.Credential { return r.openCredential(r.payer, fresh, 400, 0) }},
		"open: a voucher over its deposit": {"POST", "", func() *wire.Credential { return r.openCredential(r.payer, fresh, 50_000, 50_001) }},
		"merged open: more GPUs": {"GET", "?gpus=3", func() *wire.Credential {
			return merged(r.openCredential(r.payer, fresh, 50_000, 0), 5, func() wire.Bytes { return r.sign(r.payer, fresh, 5) })
		}},
		"merged open: another's voucher": {"POST", "", func() *wire.Credential {
			return merged(r.openCredential(r.payer, fresh, 50_000, 0), 5, func() wire.Bytes { return r.sign(r.payer, other, 5) })
		}},
		"top-up: more GPUs than there are": {"GET", "?gpus=3", func() *wire.Credential { return topUp(5_000, 1) }},
		"top-up: a voucher over the sum":   {"POST", "", func() *wire.Credential { return topUp(60_001, 2) }},
		"top-up: another's voucher": {"POST", "", func() *wire.Credential {
			c := topUp(5_000, 3)
			c.Payload.Signature = r.sign(r.payer, other, 5_000)
			return c
		}},
		"top-up: a stream without a secret": {"GET", "", func() *wire.Credential { c := topUp(5_000, 4); c.Payload.LeaseSecret = ""; return c }},
	} {
		before := r.balance(r.payer.Address())
		resp := r.do(c.method, c.query, c.cred())
		if resp.StatusCode == http.StatusOK || r.balance(r.payer.Address()) != before {
			t.Errorf("%s: %s %v, the payer has %d after %d", name, resp.Status, wire.ParseProblem(resp), r.balance(r.payer.Address()), before)
		}
	}
	if resp := r.do("POST", "", topUp(5_000, 5)); resp.StatusCode != http.StatusOK {
		t.Errorf("a good one: %v", wire.ParseProblem(resp))
	}
}

// TestNothingMovesIntoAWithdrawal: a withdrawal that the watcher has not seen yet
// is seen before a deposit is sent into it, also where the channel was read before.
func TestNothingMovesIntoAWithdrawal(t *testing.T) {
	r := newPayRig(t, func(c *Config) { c.Chain.Poll = 1500 * time.Millisecond })
	b := r.buyer("/tick")
	b.open(20_000)
	b.again() // the first payment of a channel that is known reads it
	b.idle()
	before := b.kept()
	r.chain.RPC(t, nil, "anvil_setBalance", b.key.Address(), "0xde0b6b3a7640000")
	p := b.depositing(b.next(), 50_000)
	r.chain.Transact(t, b.private, r.contract.Address(), r.contract.InitiateWithdrawCall(b.terms, *uint256.NewInt(10_000)).Data)
	if refused := b.refused(b.pay(p)); !strings.Contains(refused.Error, "withdrawal") || b.holds() != 20_000 {
		t.Errorf("refused with %q, the contract holds %d", refused.Error, b.holds())
	}
	request := &x402server.PaidRequest{ID: b.terms.ID(), Terms: b.terms}
	if err := x402Of(r.provider).WorthDepositing(t.Context(), request, x402server.Account{State: before, Known: true}, *uint256.NewInt(50_000)); !errors.Is(err, x402server.ErrWithdrawing) {
		t.Errorf("by books from before it: %v", err)
	}
}
