package provider

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/limit"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// hostilePayment is a payment that must buy nothing. It is made from a good one
// over the right amount.
type hostilePayment struct {
	name   string
	bad    func(*buyer, *x402.PaymentPayload)
	status int
	code   string // the 402's error; "" where there is none
}

// resign makes the voucher good again for a channel that was changed.
func (b *buyer) resign(p *x402.PaymentPayload, key *channel.Key, domain channel.Domain) {
	b.Helper()
	terms := p.Payload.Config.Terms(p.Accepted.Network)
	v, err := domain.Sign(b.Context(), key, terms.ID(), p.Payload.Voucher.MaxClaimableAmount.Int)
	if err != nil {
		b.Fatal(err)
	}
	voucher, err := x402.VoucherOf(v)
	if err != nil {
		b.Fatal(err)
	}
	p.Payload.Voucher = voucher
}

// config changes the channel and signs for what comes of it.
func config(change func(*x402.ChannelConfig)) func(*buyer, *x402.PaymentPayload) {
	return func(b *buyer, p *x402.PaymentPayload) {
		change(&p.Payload.Config)
		b.resign(p, b.key, b.contract.Domain())
	}
}

// signature changes the voucher's signature.
func signature(change func(*x402.Signature)) func(*buyer, *x402.PaymentPayload) {
	return func(_ *buyer, p *x402.PaymentPayload) { change(&p.Payload.Voucher.Signature) }
}

// accepted changes the offer that is echoed.
func accepted(change func(*x402.Requirements)) func(*buyer, *x402.PaymentPayload) {
	return func(_ *buyer, p *x402.PaymentPayload) {
		// An offer that was read is echoed as it was read: this is another one.
		fresh := x402.Requirements{Network: p.Accepted.Network, Amount: p.Accepted.Amount, Asset: p.Accepted.Asset, PayTo: p.Accepted.PayTo,
			MaxTimeoutSeconds: p.Accepted.MaxTimeoutSeconds, Extra: p.Accepted.Extra}
		change(&fresh)
		p.Accepted = fresh
	}
}

// signedBy signs with another key or another domain.
func signedBy(key func(*buyer) *channel.Key, domain func(*buyer) channel.Domain) func(*buyer, *x402.PaymentPayload) {
	return func(b *buyer, p *x402.PaymentPayload) { b.resign(p, key(b), domain(b)) }
}

func byPayer(b *buyer) *channel.Key { return b.key }
func ours(b *buyer) channel.Domain  { return b.contract.Domain() }
func stranger(*buyer) *channel.Key  { return strangerKey }

var strangerKey = func() *channel.Key {
	private, err := crypto.ToECDSA(crypto.Keccak256([]byte("a stranger")))
	if err != nil {
		panic(err)
	}
	return channel.NewKey(private)
}()

// over has the voucher be over another amount.
func over(n uint64) func(*buyer, *x402.PaymentPayload) {
	return func(b *buyer, p *x402.PaymentPayload) { p.Payload.Voucher = b.voucher(n) }
}

// hostilePayments are vouchers on an open channel.
func hostilePayments() []hostilePayment {
	other := wire.Address{0xbb}
	const refused, bad = http.StatusPaymentRequired, http.StatusBadRequest
	sig := string(x402.CodeVoucherSignature)
	match := string(x402.CodeNoMatch)
	return []hostilePayment{
		{"wrong chain in the signature", signedBy(byPayer, func(b *buyer) channel.Domain { return channel.BatchSettlement.Domain(1, b.contract.Address()) }), refused, sig},
		{"wrong escrow in the signature", signedBy(byPayer, func(b *buyer) channel.Domain {
			return channel.BatchSettlement.Domain(b.contract.ChainID(), b.chain.Escrow)
		}), refused, sig},
		{"signed under the other protocol", signedBy(byPayer, func(b *buyer) channel.Domain { return channel.EscrowDomain(b.contract.ChainID(), b.contract.Address()) }), refused, sig},
		{"signed by a stranger", signedBy(stranger, ours), refused, sig},
		{"signature of another amount", func(b *buyer, p *x402.PaymentPayload) {
			p.Payload.Voucher.Signature = b.voucher(b.charged + 1).Signature
		}, refused, sig},
		{"forged signature", signature(func(s *x402.Signature) { s[5] ^= 1 }), refused, sig},
		{"high s", signature(flipS), refused, sig},
		{"flipped v", signature(func(s *x402.Signature) { s[64] ^= 27 ^ 28 }), refused, sig},
		{"v of 0 or 1", signature(func(s *x402.Signature) { s[64] -= 27 }), refused, sig},
		{"zero signature", signature(func(s *x402.Signature) { *s = x402.Signature{} }), refused, sig},

		{"another receiver", config(func(c *x402.ChannelConfig) { c.Receiver = other }), refused, string(x402.CodeReceiverMismatch)},
		{"another receiver authorizer", config(func(c *x402.ChannelConfig) { c.ReceiverAuthorizer = other }), refused, string(x402.CodeReceiverAuthorizerMismatch)},
		{"another token", config(func(c *x402.ChannelConfig) { c.Token = other }), refused, string(x402.CodeTokenMismatch)},
		{"a shorter delay", config(func(c *x402.ChannelConfig) { c.WithdrawDelay = 900 }), refused, string(x402.CodeWithdrawDelayMismatch)},
		{"no payer authorizer", config(func(c *x402.ChannelConfig) { c.PayerAuthorizer = wire.Address{} }), refused, sig},
		{"a salt that is not the id's", func(_ *buyer, p *x402.PaymentPayload) { p.Payload.Config.Salt[0]++ }, refused, string(x402.CodeChannelIDMismatch)},
		{"the id of another channel", func(_ *buyer, p *x402.PaymentPayload) { p.Payload.Voucher.ChannelID[0]++ }, refused, string(x402.CodeChannelIDMismatch)},
		{"somebody else's channel", config(func(c *x402.ChannelConfig) { c.Payer, c.PayerAuthorizer = other, other }), refused, sig},
		{"an invented channel", config(func(c *x402.ChannelConfig) { c.Salt[0]++ }), refused, string(x402.CodeCumulativeMismatch)},

		{"accepted another network", accepted(func(r *x402.Requirements) { r.Network++ }), refused, match},
		{"accepted a lower amount", accepted(func(r *x402.Requirements) { r.Amount = wireAmount(1) }), refused, match},
		{"accepted a higher amount", accepted(func(r *x402.Requirements) { r.Amount = wireAmount(5000) }), refused, match},
		{"accepted to pay another", accepted(func(r *x402.Requirements) { r.PayTo = other }), refused, match},
		{"accepted another asset", accepted(func(r *x402.Requirements) { r.Asset = other }), refused, match},
		{"accepted another timeout", accepted(func(r *x402.Requirements) { r.MaxTimeoutSeconds++ }), refused, match},
		{"accepted another delay", accepted(func(r *x402.Requirements) { r.Extra.WithdrawDelay = 900 }), refused, match},
		{"accepted another authorizer", accepted(func(r *x402.Requirements) { r.Extra.ReceiverAuthorizer = other }), refused, match},
		{"accepted a lower deposit", accepted(func(r *x402.Requirements) { least := wireAmount(1); r.Extra.MinDeposit = &least }), refused, match},

		{"too low", over(1), refused, string(x402.CodeCumulativeMismatch)},
		{"too high", over(99_999), refused, string(x402.CodeCumulativeMismatch)},
		{"nothing", over(0), refused, string(x402.CodeCumulativeMismatch)},
		{"another's refund", func(b *buyer, p *x402.PaymentPayload) {
			p.Payload.Type = x402.TypeRefund
			p.Payload.Voucher = b.voucher(b.charged)
			b.resign(p, strangerKey, b.contract.Domain())
		}, refused, sig},
		{"a refund over more than was charged", func(b *buyer, p *x402.PaymentPayload) { p.Payload.Type = x402.TypeRefund }, refused, string(x402.CodeCumulativeMismatch)},
	}
}

var order = crypto.S256().Params().N

// flipS makes the other signature of the same key over the same digest.
func flipS(s *x402.Signature) {
	value := new(big.Int).SetBytes(s[32:64])
	value.Sub(order, value).FillBytes(s[32:64])
	s[64] ^= 27 ^ 28
}

// TestHostilePayments: over HTTP, on a channel that is open and idle, nothing is
// served, kept, charged or moved for any of them; then the true client is served.
func TestHostilePayments(t *testing.T) {
	r := newPayRig(t, func(c *Config) { c.Limits.Challenges = limit.Rate{PerSecond: -1} })
	b := r.buyer("/tick")
	b.open(50_000)
	b.idle()
	kept := b.kept()
	for _, h := range hostilePayments() {
		t.Run(h.name, func(t *testing.T) {
			p := b.payment(b.charged + testMost)
			h.bad(b, p)
			resp := b.pay(p)
			body, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != h.status || len(resp.Header.Values(x402.HeaderResponse)) > 0 {
				t.Fatalf("%s: %s, want %d", resp.Status, body, h.status)
			}
			required, err := x402.ParsePaymentRequired(resp.Header)
			if h.code != "" && (err != nil || required.Error != h.code) {
				t.Errorf("error %q (%s), want %q; %v", required.Error, body, h.code, err)
			}
			if strings.Contains(string(body), "0x08c379a0") || len(body) > 2000 {
				t.Errorf("an answer of %d bytes: %.300s", len(body), body)
			}
			if r.provider.leases.Running(b.terms.ID()) != nil {
				t.Error("a lease was begun")
			}
			if now := b.kept(); now.Accepted != kept.Accepted || now.Spent != kept.Spent || b.holds() != 50_000 {
				t.Errorf("the channel moved: %+v, before %+v", now, kept)
			}
		})
	}
	if spent, err := r.provider.GasSpent(t.Context()); err != nil || len(r.transactions(b)) != 1 {
		t.Errorf("%d transactions were sent, gas %s, %v; the deposit is one", len(r.transactions(b)), spent, err)
	}
	b.again()
}

func (r *payRig) transactions(b *buyer) []string {
	r.Helper()
	all, err := r.provider.sender.Find(r.Context(), b.terms.ID())
	if err != nil {
		r.Fatal(err)
	}
	var kinds []string
	for _, tx := range all {
		kinds = append(kinds, string(tx.Call.Kind))
	}
	return kinds
}

// TestHostileDeposits: each is refused before gas is spent on it.
func TestHostileDeposits(t *testing.T) {
	r := newPayRig(t, func(c *Config) { c.Limits.Challenges = limit.Rate{PerSecond: -1} })
	used := r.buyer("/tick")
	first := used.depositing(used.next(), 20_000)
	used.take(used.pay(first))
	for _, h := range []struct {
		name string
		make func(b *buyer) *x402.PaymentPayload
		code x402.Code
	}{
		{"less than the least", func(b *buyer) *x402.PaymentPayload { return b.depositing(testMost, 9_999) }, x402.CodeDepositBelowMinimum},
		{"a voucher over the deposit", func(b *buyer) *x402.PaymentPayload {
			p := b.depositing(testMost, 10_000)
			p.Payload.Voucher = b.voucher(10_001)
			return p
		}, x402.CodeCumulativeMismatch},
		{"expired", func(b *buyer) *x402.PaymentPayload { return b.timed(0, time.Now().Add(-time.Second)) }, x402.CodeValidBefore},
		{"about to expire", func(b *buyer) *x402.PaymentPayload { return b.timed(0, time.Now().Add(10*time.Second)) }, x402.CodeValidBefore},
		{"not valid yet", func(b *buyer) *x402.PaymentPayload {
			return b.timed(time.Hour, time.Now().Add(2*time.Hour))
		}, x402.CodeValidAfter},
		{"more than the payer has", func(b *buyer) *x402.PaymentPayload { return b.depositing(testMost, 2_000_000) }, x402.CodeDepositSimulation},
		{"signed by a stranger", func(b *buyer) *x402.PaymentPayload {
			p := b.depositing(testMost, 20_000)
			p.Payload.Deposit.Authorization.Signature[3] ^= 1
			return p
		}, x402.CodeDepositSimulation},
		{"of another amount than was signed", func(b *buyer) *x402.PaymentPayload {
			p := b.depositing(testMost, 20_000)
			p.Payload.Deposit.Amount = wireAmount(30_000)
			return p
		}, x402.CodeDepositSimulation},
		{"with another channel's authorization", func(b *buyer) *x402.PaymentPayload {
			p := b.depositing(testMost, 20_000)
			p.Payload.Deposit.Authorization = first.Payload.Deposit.Authorization
			return p
		}, x402.CodeDepositSimulation},
	} {
		t.Run(h.name, func(t *testing.T) {
			b := r.buyer("/tick")
			resp := b.pay(h.make(b))
			body, _ := io.ReadAll(resp.Body)
			required, err := x402.ParsePaymentRequired(resp.Header)
			if err != nil || resp.StatusCode != http.StatusPaymentRequired || required.Error != string(h.code) {
				t.Errorf("%s %s %v, want %q", resp.Status, body, err, h.code)
			}
			if sent := r.transactions(b); len(sent) != 0 || b.holds() != 0 {
				t.Errorf("sent %v, the contract holds %d", sent, b.holds())
			}
			b.charged = 0
			b.open(20_000) // the true one is taken
			b.idle()
		})
	}
	t.Run("an authorization that was used", func(t *testing.T) {
		again := used.payment(used.next())
		again.Payload.Type, again.Payload.Deposit = x402.TypeDeposit, first.Payload.Deposit
		resp := used.pay(again)
		if resp.StatusCode == http.StatusPaymentRequired {
			used.corrected(resp)
			again.Payload.Voucher = used.voucher(used.next())
			resp = used.pay(again)
		}
		used.take(resp) // it is there, so the voucher is good
		if sent := r.transactions(used); len(sent) != 1 || used.holds() != 20_000 {
			t.Errorf("sent %v, the contract holds %d", sent, used.holds())
		}
	})
}

// timed is a deposit whose authorization is good from after now until before.
func (b *buyer) timed(after time.Duration, before time.Time) *x402.PaymentPayload {
	b.Helper()
	p := b.depositing(testMost, 20_000)
	if after > 0 {
		p.Payload.Deposit.Authorization.ValidAfter = x402.Seconds(time.Now().Add(after).Unix())
	}
	p.Payload.Deposit.Authorization.ValidBefore = x402.Seconds(before.Unix())
	b.authorize(p)
	return p
}

// TestHostileHeaders: what is no payment at all is told so, once, and briefly.
func TestHostileHeaders(t *testing.T) {
	r := newPayRig(t, func(c *Config) { c.Limits.Challenges = limit.Rate{PerSecond: -1} })
	b := r.buyer("/tick")
	good := headerOf(t, b.depositing(testMost, 20_000)).Get(x402.HeaderSignature)
	raw, err := base64.StdEncoding.DecodeString(good)
	if err != nil {
		t.Fatal(err)
	}
	edit := func(change func(map[string]any)) string {
		var m map[string]any
		if err := json.Unmarshal(raw, &m); err != nil {
			t.Fatal(err)
		}
		change(m)
		text, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return base64.StdEncoding.EncodeToString(text)
	}
	payload := func(m map[string]any) map[string]any { return m["payload"].(map[string]any) }
	const bad = http.StatusBadRequest
	for _, h := range []struct {
		name   string
		values []string
		status int
	}{
		{"empty", []string{""}, bad},
		{"huge", []string{strings.Repeat("A", 100<<10)}, bad},
		{"twice", []string{good, good}, bad},
		{"no base64", []string{"%%%"}, bad},
		{"base64 for addresses", []string{strings.NewReplacer("+", "-", "/", "_", "=", "").Replace(good) + "-_"}, bad},
		{"no JSON", []string{base64.StdEncoding.EncodeToString([]byte("{"))}, bad},
		{"an array", []string{base64.StdEncoding.EncodeToString([]byte("[]"))}, bad},
		{"one name twice", []string{base64.StdEncoding.EncodeToString([]byte(`{"x402Version":2,"x402Version":2}`))}, bad},
		{"another version", []string{edit(func(m map[string]any) { m["x402Version"] = 1 })}, bad},
		{"no payload", []string{edit(func(m map[string]any) { delete(m, "payload") })}, bad},
		{"another type", []string{edit(func(m map[string]any) { payload(m)["type"] = "gift" })}, http.StatusPaymentRequired},
		{"an amount that is a number", []string{edit(func(m map[string]any) { payload(m)["voucher"].(map[string]any)["maxClaimableAmount"] = 501 })}, bad},
		{"an amount below zero", []string{edit(func(m map[string]any) { payload(m)["voucher"].(map[string]any)["maxClaimableAmount"] = "-1" })}, bad},
		{"an amount over 96 bits", []string{edit(func(m map[string]any) {
			payload(m)["voucher"].(map[string]any)["maxClaimableAmount"] = new(big.Int).Lsh(big.NewInt(1), 100).String()
		})}, bad},
		{"a short signature", []string{edit(func(m map[string]any) { payload(m)["voucher"].(map[string]any)["signature"] = "0x1234" })}, bad},
		{"nested deep", []string{base64.StdEncoding.EncodeToString([]byte(`{"x402Version":2,"payload":` + strings.Repeat(`{"a":`, 2000) + "1" + strings.Repeat("}", 2001)))}, bad},
	} {
		t.Run(h.name, func(t *testing.T) {
			resp := r.send("GET", "/tick", http.Header{http.CanonicalHeaderKey(x402.HeaderSignature): h.values})
			body, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != h.status || len(resp.Header.Values(x402.HeaderResponse)) > 0 || len(body) > 2000 {
				t.Errorf("%s: %.300s, want %d", resp.Status, body, h.status)
			}
		})
	}
	for _, method := range []string{"POST", "HEAD", "DELETE"} {
		if resp := r.send(method, "/tick", http.Header{http.CanonicalHeaderKey(x402.HeaderSignature): {good}}); resp.StatusCode != bad {
			t.Errorf("%s: %s", method, resp.Status)
		}
	}
	both := http.Header{http.CanonicalHeaderKey(x402.HeaderSignature): {good}, "Authorization": {"Payment x"}}
	if resp := r.send("GET", "/tick", both); resp.StatusCode != bad {
		t.Errorf("two payments: %s", resp.Status)
	}
	if sent := r.transactions(b); len(sent) != 0 {
		t.Errorf("sent %v", sent)
	}
	b.open(20_000)
}

// TestSessionHasNothingToSayOfX402: a credential of the one protocol does not
// act on a channel of the other.
func TestSessionHasNothingToSayOfX402(t *testing.T) {
	r := newPayRig(t)
	b := r.buyer("/tick")
	b.open(20_000)
	all, err := wire.ParseChallenges(r.send("GET", "/lease", nil).Header)
	if err != nil {
		t.Fatal(err)
	}
	for _, action := range []string{wire.ActionVoucher, wire.ActionRelease, wire.ActionClose} {
		proof, err := wire.Prove(t.Context(), b.key, b.terms, all[0].ID, action)
		if err != nil {
			t.Fatal(err)
		}
		cumulative := wireAmount(b.charged + 100)
		cred := wire.Credential{Challenge: all[0], Source: wire.Source(b.terms.ChainID, b.terms.Payer), Payload: wire.Payload{Action: action, ChannelID: b.terms.ID(), Proof: proof}}
		if action != wire.ActionRelease {
			cred.Payload.CumulativeAmount, cred.Payload.Signature = &cumulative, wire.Bytes(b.sign(b.charged+100))
		}
		text, err := cred.Header()
		if err != nil {
			t.Fatal(err)
		}
		resp := r.send("POST", "/lease", http.Header{"Authorization": {text}})
		if p := wire.ParseProblem(resp); resp.StatusCode != http.StatusGone {
			t.Errorf("%s: %v", action, p)
		}
	}
	if r.provider.leases.Running(b.terms.ID()) == nil {
		t.Error("the lease was ended")
	}
}

func (b *buyer) sign(most uint64) []byte {
	b.Helper()
	v, err := b.contract.Domain().Sign(b.Context(), b.key, b.terms.ID(), *uint256.NewInt(most))
	if err != nil {
		b.Fatal(err)
	}
	return v.Signature
}
