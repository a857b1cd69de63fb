package provider

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// hostile is one thing a renter may try, and the answer it must get.
type hostile struct {
	name   string
	method string // POST if empty
	cred   func(t *tab) *wire.Credential
	want   wire.Problem
}

func problemIn(want wire.Problem, resp *http.Response) error {
	got := wire.ParseProblem(resp)
	if !errors.Is(got, &want) || resp.StatusCode != want.Status {
		return fmt.Errorf("got %d %v, want %d %s", resp.StatusCode, got, want.Status, want.Type)
	}
	if resp.Header.Get("Cache-Control") != "no-store" {
		return errors.New("the answer may be cached")
	}
	challenges, err := wire.ParseChallenges(resp.Header)
	if err != nil {
		return err
	}
	if want.Status == http.StatusPaymentRequired && len(challenges) != 1 {
		return errors.New("a failed payment came without a fresh challenge")
	}
	return nil
}

// mutate changes a right voucher credential of 5,000 base units.
func mutate(change func(t *tab, c *wire.Credential)) func(*tab) *wire.Credential {
	return func(t *tab) *wire.Credential {
		c := t.credential(wire.ActionVoucher, 5000)
		change(t, c)
		return c
	}
}

func (t *tab) signed(domain channel.Domain, key *channel.Key, amount uint64) wire.Bytes {
	t.Helper()
	v, err := domain.Sign(t.Context(), key, t.terms.ID(), *uint256.NewInt(amount))
	if err != nil {
		t.Fatal(err)
	}
	return v.Signature
}

// highS is the other valid form of a signature, which the contract refuses.
func highS(sig wire.Bytes) wire.Bytes {
	out := bytes.Clone(sig)
	s := new(big.Int).Sub(crypto.S256().Params().N, new(big.Int).SetBytes(sig[32:64]))
	s.FillBytes(out[32:64])
	out[64] = 55 - sig[64]
	return out
}

// hostileVouchers are the draft's server rules, one way of breaking each.
var hostileVouchers = []hostile{
	{name: "no credential", cred: func(*tab) *wire.Credential { return nil }, want: wire.PaymentRequired},
	{name: "forged challenge", cred: mutate(func(t *tab, c *wire.Credential) { c.Challenge.ID = "AAAA" }), want: wire.InvalidChallenge},
	{name: "challenge with another price", cred: mutate(func(t *tab, c *wire.Credential) { c.Challenge.Request = "e30" }), want: wire.InvalidChallenge},
	{name: "expired challenge", cred: mutate(func(t *tab, c *wire.Credential) {
		past := *sessionOf(t.provider).Challenges.Minter
		past.Now = func() time.Time { return time.Now().Add(-time.Hour) }
		req, err := c.Challenge.Decode()
		if err != nil {
			t.Fatal(err)
		}
		if c.Challenge, err = past.Mint(req, "old"); err != nil {
			t.Fatal(err)
		}
	}), want: wire.PaymentExpired},
	{name: "another method", cred: mutate(func(t *tab, c *wire.Credential) { c.Challenge = t.mint("tempo", "session") }), want: wire.MethodUnsupported},
	{name: "another intent", cred: mutate(func(t *tab, c *wire.Credential) { c.Challenge = t.mint("evm", "charge") }), want: wire.MethodUnsupported},
	{name: "unknown action", cred: mutate(func(t *tab, c *wire.Credential) { c.Payload.Action = "steal" }), want: wire.MalformedCredential},
	{name: "no signature", cred: mutate(func(t *tab, c *wire.Credential) { c.Payload.Signature = nil }), want: wire.MalformedCredential},
	{name: "unknown channel", cred: mutate(func(t *tab, c *wire.Credential) { c.Payload.ChannelID = common.Hash{1} }), want: wire.ChannelNotFound},
	{name: "short signature", cred: mutate(func(t *tab, c *wire.Credential) { c.Payload.Signature = c.Payload.Signature[:64] }), want: wire.InvalidSignature},
	{name: "high s", cred: mutate(func(t *tab, c *wire.Credential) { c.Payload.Signature = highS(c.Payload.Signature) }), want: wire.InvalidSignature},
	{name: "v of 0 or 1", cred: mutate(func(t *tab, c *wire.Credential) { c.Payload.Signature[64] -= 27 }), want: wire.InvalidSignature},
	{name: "flipped v", cred: mutate(func(t *tab, c *wire.Credential) { c.Payload.Signature[64] = 55 - c.Payload.Signature[64] }), want: wire.SignerMismatch},
	{name: "a stranger's signature", cred: mutate(func(t *tab, c *wire.Credential) {
		c.Payload.Signature = t.signed(t.provider.payee.Domain, channel.NewKey(t.chain.Keys[2]), 5000)
	}), want: wire.SignerMismatch},
	{name: "signed for another amount", cred: mutate(func(t *tab, c *wire.Credential) { c.Payload.Signature = t.sign(t.key, t.terms, 4999) }), want: wire.SignerMismatch},
	{name: "signed for another chain", cred: mutate(func(t *tab, c *wire.Credential) {
		c.Payload.Signature = t.signed(channel.EscrowDomain(1, t.terms.Escrow), t.key, 5000)
	}), want: wire.SignerMismatch},
	{name: "signed for another escrow", cred: mutate(func(t *tab, c *wire.Credential) {
		c.Payload.Signature = t.signed(channel.EscrowDomain(t.terms.ChainID, common.Address{1}), t.key, 5000)
	}), want: wire.SignerMismatch},
	{name: "over the deposit", cred: func(t *tab) *wire.Credential { return t.credential(wire.ActionVoucher, 500_001) }, want: wire.AmountExceedsDeposit},
	{name: "over the deposit by all of 96 bits", cred: mutate(func(t *tab, c *wire.Credential) {
		most := wire.NewAmount(channel.MaxAmount())
		c.Payload.CumulativeAmount = &most
		v, err := t.provider.payee.Domain.Sign(t.Context(), t.key, t.terms.ID(), most.Int)
		if err != nil {
			t.Fatal(err)
		}
		c.Payload.Signature = v.Signature
	}), want: wire.AmountExceedsDeposit},
	{name: "delta below the minimum", cred: func(t *tab) *wire.Credential { return t.credential(wire.ActionVoucher, 1001) }, want: wire.DeltaTooSmall},
	// A settled voucher is public calldata. Whoever replays it gets nothing.
	{name: "stream for a voucher alone", method: "GET", cred: func(t *tab) *wire.Credential { return t.credential(wire.ActionVoucher, 1000) }, want: wire.VerificationFailed},
	{name: "stream for a wrong secret", method: "GET", cred: func(t *tab) *wire.Credential {
		c := t.credential(wire.ActionVoucher, 1000)
		c.Payload.LeaseSecret = strings.Repeat("0", 64)
		return c
	}, want: wire.VerificationFailed},
	{name: "stream for a proof over another challenge", method: "GET", cred: func(t *tab) *wire.Credential {
		c := t.credential(wire.ActionVoucher, 1000)
		c.Payload.Proof = t.proof(t.challenge().ID, "attach")
		return c
	}, want: wire.VerificationFailed},
	{name: "stream for a proof to close", method: "GET", cred: func(t *tab) *wire.Credential {
		c := t.credential(wire.ActionVoucher, 1000)
		c.Payload.Proof = t.proof(c.Challenge.ID, "close")
		return c
	}, want: wire.VerificationFailed},
	{name: "close by a voucher alone", cred: func(t *tab) *wire.Credential { return t.credential(wire.ActionClose, 1000) }, want: wire.VerificationFailed},
	{name: "close by a proof to attach", cred: func(t *tab) *wire.Credential {
		c := t.credential(wire.ActionClose, 1000)
		c.Payload.Proof = t.proof(c.Challenge.ID, "attach")
		return c
	}, want: wire.VerificationFailed},
	{name: "close with a stranger's voucher", cred: func(t *tab) *wire.Credential {
		c := t.credential(wire.ActionClose, 1000)
		c.Payload.Signature = t.signed(t.provider.payee.Domain, channel.NewKey(t.chain.Keys[2]), 1000)
		c.Payload.LeaseSecret = t.lease.Secret
		return c
	}, want: wire.SignerMismatch},
	{name: "release without proof", cred: func(t *tab) *wire.Credential {
		return &wire.Credential{Challenge: t.challenge(), Payload: wire.Payload{Action: wire.ActionRelease, ChannelID: t.terms.ID()}}
	}, want: wire.VerificationFailed},
	{name: "the open, sent again", method: "GET", cred: func(t *tab) *wire.Credential { return t.openCredential(t.key, t.terms, 500_000, 0) }, want: wire.VerificationFailed},
	{name: "top-up that was signed for another channel", cred: mutate(func(t *tab, c *wire.Credential) {
		other := *t
		other.terms.Salt = common.Hash{9}
		top := other.topUp(1000, 1)
		top.ChannelID = t.terms.ID()
		c.Payload.Deposit = top
	}), want: wire.VerificationFailed},
	{name: "top-up of more than was signed", cred: mutate(func(t *tab, c *wire.Credential) {
		top := t.topUp(1000, 1)
		more := wire.NewAmount(*uint256.NewInt(11))
		top.AdditionalDeposit = &more
		c.Payload.Deposit = top
	}), want: wire.VerificationFailed},
	{name: "top-up without the money", cred: func(t *tab) *wire.Credential {
		return &wire.Credential{Challenge: t.challenge(), Payload: *t.topUp(900_000_000, 1)}
	}, want: wire.TransactionReverted},
	{name: "top-up with a forged signature", cred: func(t *tab) *wire.Credential {
		top := t.topUp(1000, 1)
		top.Signature[3] ^= 1
		return &wire.Credential{Challenge: t.challenge(), Payload: *top}
	}, want: wire.TransactionReverted},
}

// mint makes a challenge of another kind that this provider really signed.
func (t *tab) mint(method, intent string) wire.Challenge {
	t.Helper()
	c := t.challenge()
	c.Method, c.Intent = method, intent
	c.ID = sessionOf(t.provider).Challenges.Minter.Bind(c)
	return c
}

func (t *tab) proof(challengeID, action string) wire.Bytes {
	t.Helper()
	proof, err := wire.Prove(t.Context(), t.key, t.terms, challengeID, action)
	if err != nil {
		t.Fatal(err)
	}
	return proof
}

func TestHostileRequests(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Terms.Credit = time.Hour })
	r.provider.payee.MinDelta = *uint256.NewInt(100)
	lease := r.open(1, 500_000, "")
	lease.pay(1000)
	for _, row := range hostileVouchers {
		t.Run(row.name, func(t *testing.T) {
			sub := *lease
			rig := *r
			rig.T, sub.rig = t, &rig
			method := cmp.Or(row.method, "POST")
			if err := problemIn(row.want, rig.do(method, "", row.cred(&sub))); err != nil {
				t.Error(err)
			}
			s, err := r.provider.payee.State(t.Context(), lease.terms.ID())
			if err != nil || s.Accepted.Uint64() != 1000 || s.Deposit.Uint64() != 500_000 || s.Status != channel.Open {
				t.Errorf("it changed the channel: accepted %s, deposit %s, %s (%v)", s.Accepted.Dec(), s.Deposit.Dec(), s.Status, err)
			}
		})
	}
	if v, _ := r.provider.leases.Running(lease.terms.ID()).Status.Snapshot(); v.State != leasestore.Active || v.Stream != 1 {
		t.Errorf("the lease is %s and has had %d streams", v.State, v.Stream)
	}
	lease.record() // and its stream is still the renter's
}

// Replays, lower and equal vouchers are no errors: they change nothing.
func TestReplayedAndStaleVouchersChangeNothing(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Terms.Credit = time.Hour })
	lease := r.open(1, 500_000, "")
	for _, row := range []struct{ amount, want uint64 }{{2000, 2000}, {2000, 2000}, {1500, 2000}, {3000, 3000}, {2000, 3000}} {
		if got := lease.pay(row.amount); got.AcceptedCumulative.Uint64() != row.want {
			t.Errorf("voucher for %d: accepted is %s, want %d", row.amount, got.AcceptedCumulative.Dec(), row.want)
		}
	}
	// The signature is looked at before the idempotent answer is given.
	cred := lease.credential(wire.ActionVoucher, 1500)
	cred.Payload.Signature = lease.signed(r.provider.payee.Domain, channel.NewKey(r.chain.Keys[2]), 1500)
	if err := problemIn(wire.SignerMismatch, r.do("POST", "", cred)); err != nil {
		t.Error(err)
	}
}

// A proof is fresh: the challenge under it works once.
func TestProofWorksOnce(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Terms.Credit = time.Hour })
	lease := r.open(1, 500_000, "")
	cred := lease.credential(wire.ActionVoucher, 1000)
	cred.Payload.Proof = lease.proof(cred.Challenge.ID, "attach")
	lease.attach(r.do("GET", "", cred))
	if lease.lease.Secret == "" {
		t.Fatal("who proved himself got no secret")
	}
	if err := problemIn(wire.ChallengeNotFound, r.do("GET", "", cred)); err != nil {
		t.Error(err)
	}
	lease.record() // the replay did not take the stream
}

var hostileOpens = []struct {
	name   string
	change func(r *rig, c *wire.Credential, terms channel.Terms)
	want   wire.Problem
}{
	{"source on another chain", func(r *rig, c *wire.Credential, terms channel.Terms) { c.Source = wire.Source(1, terms.Payer) }, wire.VerificationFailed},
	{"somebody else's channel id", func(r *rig, c *wire.Credential, _ channel.Terms) { c.Payload.ChannelID = common.Hash{5} }, wire.VerificationFailed},
	{"another salt", func(r *rig, c *wire.Credential, _ channel.Terms) { c.Payload.Salt = &common.Hash{5} }, wire.VerificationFailed},
	{"voucher of a stranger", func(r *rig, c *wire.Credential, terms channel.Terms) {
		c.Payload.VoucherSignature = r.sign(channel.NewKey(r.chain.Keys[2]), terms, 0)
	}, wire.SignerMismatch},
	{"authorization to another contract", func(r *rig, c *wire.Credential, _ channel.Terms) { c.Payload.Authorization.To = wire.Address{1} }, wire.VerificationFailed},
	{"authorization of another payer", func(r *rig, c *wire.Credential, _ channel.Terms) { c.Payload.Authorization.From = wire.Address{1} }, wire.VerificationFailed},
	{"authorization with a free nonce", func(r *rig, c *wire.Credential, _ channel.Terms) { c.Payload.Authorization.Nonce = common.Hash{1} }, wire.VerificationFailed},
	{"authorization that has ended", func(r *rig, c *wire.Credential, _ channel.Terms) { c.Payload.Authorization.ValidBefore = wireAmount(1) }, wire.VerificationFailed},
	{"authorization of the far future", func(r *rig, c *wire.Credential, _ channel.Terms) {
		c.Payload.Authorization.ValidAfter = wireAmount(1 << 40)
	}, wire.VerificationFailed},
	{"deposit under the minimum", func(r *rig, c *wire.Credential, _ channel.Terms) { c.Payload.Authorization.Value = wireAmount(10) }, wire.PaymentInsufficient},
	{"forged authorization", func(r *rig, c *wire.Credential, _ channel.Terms) { c.Payload.Signature[5] ^= 1 }, wire.TransactionReverted},
	{"more than was authorized", func(r *rig, c *wire.Credential, _ channel.Terms) { c.Payload.Authorization.Value = wireAmount(100_001) }, wire.TransactionReverted},
	{"transaction about nothing", func(r *rig, c *wire.Credential, _ channel.Terms) {
		tx := r.mintedBy(r.chain.Keys[2])
		c.Payload.Type, c.Payload.Hash = wire.TypeHash, &tx
		c.Payload.Signature = c.Payload.VoucherSignature
	}, wire.VerificationFailed},
	{"transaction that does not exist", func(r *rig, c *wire.Credential, _ channel.Terms) {
		c.Payload.Type, c.Payload.Hash = wire.TypeHash, &common.Hash{1}
		c.Payload.Signature = c.Payload.VoucherSignature
	}, wire.Unavailable},
}

func TestHostileOpens(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Deposits.Timeout = 5 * time.Second })
	gas, err := r.chain.Backend.NonceAt(t.Context(), r.config.Key.Address(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, row := range hostileOpens {
		t.Run(row.name, func(t *testing.T) {
			rig := *r
			rig.T = t
			terms := rig.terms(r.payer.Address(), byte(i+1))
			cred := rig.openCredential(r.payer, terms, 100_000, 0)
			row.change(&rig, cred, terms)
			if err := problemIn(row.want, rig.do("GET", "", cred)); err != nil {
				t.Error(err)
			}
			if _, err := r.provider.payee.State(t.Context(), terms.ID()); !errors.Is(err, channel.ErrUnknown) {
				t.Errorf("the channel is known now: %v", err)
			}
		})
	}
	after, err := r.chain.Backend.NonceAt(t.Context(), r.config.Key.Address(), nil)
	if err != nil || after != gas {
		t.Errorf("strangers made the provider send %d transactions (%v)", after-gas, err)
	}
	if free := r.provider.config.Allocator.(*gpu.HostAllocator).Free(); free != 2 {
		t.Errorf("%d devices are free", free)
	}
}

// What a header may cost is bounded.
func TestHugeHeadersAreRefused(t *testing.T) {
	r := newRig(t)
	resp := r.do("POST", "", nil, "Authorization", "Payment "+strings.Repeat("A", 40_000))
	if err := problemIn(wire.MalformedCredential, resp); err != nil {
		t.Error(err)
	}
	resp = r.do("GET", "?gpus=-1", nil)
	if err := problemIn(wire.MalformedCredential, resp); err != nil {
		t.Error(err)
	}
	resp = r.do("GET", "?gpus=3", r.openCredential(r.payer, r.terms(r.payer.Address(), 1), 100_000, 0))
	if err := problemIn(wire.NoCapacity, resp); err != nil {
		t.Error(err)
	}
	if got := r.balance(r.payer.Address()); got != 1_000_000 {
		t.Errorf("the renter was turned away and has %d left", got)
	}
}

// A stranger may top up any channel, and may name a transaction that never
// comes. The renter's own vouchers must not wait for it.
func TestStrangersTopUpHoldsNobodyUp(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Terms.Credit = time.Hour })
	lease := r.open(1, 500_000, "")
	sessionOf(r.provider).OpenTimeout = 6 * time.Second // nobody is being served now
	one := wire.NewAmount(*uint256.NewInt(1))
	cred := &wire.Credential{Challenge: r.challenge(), Payload: wire.Payload{Action: wire.ActionTopUp, Type: wire.TypeHash,
		ChannelID: lease.terms.ID(), Hash: &common.Hash{1}, AdditionalDeposit: &one}}
	stranger := make(chan error, 1)
	go func() { stranger <- problemIn(wire.Unavailable, r.do("POST", "", cred)) }()
	for amount := uint64(1000); ; amount += 1000 {
		lease.pay(amount)
		select {
		case err := <-stranger:
			if err != nil {
				t.Error(err)
			}
			if amount < 5000 {
				t.Errorf("%d vouchers were counted while the stranger waited for 6 s", amount/1000)
			}
			return
		default:
			time.Sleep(20 * time.Millisecond)
		}
	}
}

// TestStrangersTopUpUsesUpNobodysBudget: what is sent for a channel counts for its payer. A top-up that somebody else authorizes
// is not sent, and the payer's own is.
func TestStrangersTopUpUsesUpNobodysBudget(t *testing.T) {
	r := newAnvilRig(t)
	stranger := r.payerWith(t, 2, 1_000_000)
	lease := r.open(1, 100_000, "")
	before := r.nonce()
	resp := r.do("POST", "", &wire.Credential{Challenge: r.challenge(), Payload: *lease.topUpBy(stranger, 50_000, 1)})
	if problem := wire.ParseProblem(resp); resp.StatusCode != http.StatusPaymentRequired || !strings.Contains(problem.Error(), "send the transaction yourself") || r.nonce() != before {
		t.Errorf("a stranger's top-up: %v, and %d transactions were sent", problem, r.nonce()-before)
	}
	resp = r.do("POST", "", &wire.Credential{Challenge: r.challenge(), Payload: *lease.topUp(50_000, 2)})
	if resp.StatusCode != http.StatusOK || r.nonce() != before+1 {
		t.Errorf("the payer's top-up: %v", wire.ParseProblem(resp))
	}
}

// HEAD is for vouchers where no body is wanted.
func TestVoucherByHEAD(t *testing.T) {
	r := newRig(t)
	lease := r.open(1, 500_000, "")
	resp := r.do("HEAD", "", lease.credential(wire.ActionVoucher, 1234))
	receipt, err := wire.ParseReceipt(resp.Header)
	if err != nil || resp.StatusCode != http.StatusOK || receipt.AcceptedCumulative.Uint64() != 1234 {
		t.Fatalf("%s, receipt %+v, %v", resp.Status, receipt, err)
	}
}
