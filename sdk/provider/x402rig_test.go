package provider

import (
	"crypto/ecdsa"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/chain"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/settle"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// payRig is a provider that takes x402, on anvil with x402's contracts where
// they are everywhere, served over HTTP. Its clients are made by hand so that
// they can say anything; internal/interop has the stock ones.
type payRig struct {
	atWork
	chain    *chaintest.Chain
	contract *chain.BatchSettlement
	token    *chain.Token
}

// The tests' window costs 300 base units a GPU, a tick at most 501.
const (
	testWindow = 300 * time.Millisecond
	testSlack  = 200 * time.Millisecond
	testMost   = 501
)

func newPayRig(t *testing.T, change ...func(*Config)) *payRig {
	t.Helper()
	t.Parallel()
	net := chaintest.Anvil(t)
	net.PlaceBatchSettlement(t)
	return payRigOn(t, net, change...)
}

func payConfig(t *testing.T, key *channel.Key, url, escrow, token, database string) Config {
	return Config{
		RPC: url, Escrow: common.HexToAddress(escrow), Token: common.HexToAddress(token), Key: key, X402: &X402{Window: testWindow, Slack: testSlack},
		Database: database, PricePerGPUHour: hour, Source: testclock.GPUs(2), Metering: Metering{Clock: testclock.Process(), Tick: 20 * time.Millisecond, MaxGap: 10 * time.Second, RecordEvery: 50 * time.Millisecond},
		Terms:    Terms{Credit: 2 * time.Second, SuspendTimeout: time.Minute},
		Deposits: Deposits{Min: "0.01", Timeout: time.Minute}, Chain: Chain{MinGrace: time.Minute, ClockTolerance: 24 * time.Hour, Poll: 50 * time.Millisecond, Finality: 4},
		Settlement: settle.Policy{Interval: time.Hour, LeastRow: *uint256.NewInt(1), Dust: *uint256.NewInt(1)},
		Log:        testrig.Warnings(t),
	}
}

func payRigOn(t *testing.T, net *chaintest.Chain, change ...func(*Config)) *payRig {
	t.Helper()
	r := &payRig{chain: net, atWork: atWork{T: t, config: payConfig(t, channel.NewKey(net.Keys[0]), net.URL, net.Escrow.Hex(), net.Token.Hex(), filepath.Join(t.TempDir(), "provider.db"))}}
	if strings.Contains(t.Name(), onPostgres) {
		r.config.Database = pgtest.URL(t)
	}
	for _, c := range change {
		c(&r.config)
	}
	if strings.Contains(r.config.Database, "://") && r.config.Records.HighWater == "" { // not the one of whoever runs the tests
		r.config.Records.HighWater = filepath.Join(t.TempDir(), "high-water.db")
	}
	var err error
	if r.contract, err = chain.NewBatchSettlement(t.Context(), net.Backend); err != nil {
		t.Fatal(err)
	}
	if r.token, err = chain.NewToken(t.Context(), net.Backend, net.Token); err != nil {
		t.Fatal(err)
	}
	r.start()
	t.Cleanup(r.shut)
	return r
}

// buyer is a client of x402 with an account and one channel.
type buyer struct {
	*payRig
	key     *channel.Key
	private *ecdsa.PrivateKey
	path    string
	terms   channel.Terms
	charged uint64 // as the receipts say
	salt    byte   // of the newest deposit
}

// buyer makes an account with a million base units and no native coin.
func (r *payRig) buyer(path string) *buyer {
	r.Helper()
	private, err := crypto.GenerateKey()
	if err != nil {
		r.Fatal(err)
	}
	key := channel.NewKey(private)
	r.chain.Mint(r, key.Address(), 1_000_000)
	b := &buyer{payRig: r, key: key, private: private, path: path}
	b.terms = b.accept().terms(key.Address())
	return b
}

type offers x402.Requirements

// terms is the one channel that a stock client has for an offer.
func (o offers) terms(payer common.Address) channel.Terms {
	return x402.ChannelConfig{Payer: wire.Address(payer), PayerAuthorizer: wire.Address(payer), Receiver: o.PayTo,
		ReceiverAuthorizer: o.Extra.ReceiverAuthorizer, Token: o.Asset, WithdrawDelay: o.Extra.WithdrawDelay}.Terms(o.Network)
}

// send sends one request.
func (r *payRig) send(method, path string, header http.Header) *http.Response {
	r.Helper()
	req, err := http.NewRequestWithContext(r.Context(), method, r.server.URL+path, nil)
	if err != nil {
		r.Fatal(err)
	}
	if header != nil {
		req.Header = header
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { resp.Body.Close() })
	return resp
}

// accept is what an unpaid request is offered.
func (b *buyer) accept() offers {
	b.Helper()
	resp := b.send("GET", b.path, nil)
	required, err := x402.ParsePaymentRequired(resp.Header)
	if resp.StatusCode != http.StatusPaymentRequired || err != nil || len(required.Accepts) != 1 {
		b.Fatalf("no offer: %s %v %v", resp.Status, required, err)
	}
	return offers(required.Accepts[0])
}

// payment is a voucher over an amount for the request.
func (b *buyer) payment(most uint64) *x402.PaymentPayload {
	b.Helper()
	config, err := x402.ConfigOf(b.terms)
	if err != nil {
		b.Fatal(err)
	}
	return &x402.PaymentPayload{Accepted: x402.Requirements(b.accept()), Payload: x402.Payload{Type: x402.TypeVoucher, Config: config, Voucher: b.voucher(most)}}
}

func (b *buyer) voucher(most uint64) x402.Voucher {
	b.Helper()
	v, err := b.contract.Domain().Sign(b.Context(), b.key, b.terms.ID(), *uint256.NewInt(most))
	if err != nil {
		b.Fatal(err)
	}
	voucher, err := x402.VoucherOf(v)
	if err != nil {
		b.Fatal(err)
	}
	return voucher
}

// depositing is a payment that brings money.
func (b *buyer) depositing(most, value uint64) *x402.PaymentPayload {
	b.Helper()
	p := b.payment(most)
	b.salt++
	p.Payload.Type = x402.TypeDeposit
	p.Payload.Deposit = &x402.Deposit{Amount: wireAmount(value), Authorization: x402.Authorization{
		ValidBefore: x402.Seconds(time.Now().Add(48 * time.Hour).Unix()), Salt: x402.Hash{31: b.salt}}}
	b.authorize(p)
	return p
}

// authorize signs a payment's deposit as it stands.
func (b *buyer) authorize(p *x402.PaymentPayload) {
	b.Helper()
	separator, err := b.token.DomainSeparator(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	a, err := chain.SignAuthorization(b.Context(), b.key, separator, p.Payload.Authorization())
	if err != nil {
		b.Fatal(err)
	}
	copy(p.Payload.Deposit.Authorization.Signature[:], a.Signature)
}

func headerOf(t *testing.T, p *x402.PaymentPayload) http.Header {
	t.Helper()
	h := make(http.Header)
	if err := p.Set(h); err != nil {
		t.Fatal(err)
	}
	return h
}

// pay sends a payment.
func (b *buyer) pay(p *x402.PaymentPayload) *http.Response {
	b.Helper()
	return b.send("GET", b.path, headerOf(b.T, p))
}

// keyed sends a payment with an idempotency key.
func (b *buyer) keyed(p *x402.PaymentPayload, key string) *http.Response {
	b.Helper()
	header := headerOf(b.T, p)
	header.Set("Idempotency-Key", key)
	return b.send("GET", b.path, header)
}

// fresh is the same client in a new process, with nothing in its storage.
func (b *buyer) fresh() *buyer {
	new := *b
	new.charged = 0
	return &new
}

// paid is an answer to a payment that was taken.
type paid struct {
	x402.SettleResponse
	wire.Tick
}

// take reads an answer that must be one, and keeps the books of a stock client.
func (b *buyer) take(resp *http.Response) paid {
	b.Helper()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		b.Fatalf("%s: %s %v %v", resp.Status, body, resp.Header, err)
	}
	var p paid
	if p.SettleResponse, err = x402.ParseSettleResponse(resp.Header); err != nil {
		b.Fatal(err)
	}
	if len(resp.Header.Values(x402.HeaderRequired)) > 0 {
		b.Fatal("a receipt and a 402's header in one answer")
	}
	if p.ChargedAmount != nil {
		b.charged += p.ChargedAmount.Uint64()
		if got := p.ChannelState.ChargedCumulativeAmount.Uint64(); got != b.charged {
			b.Fatalf("charged %d in all, the receipt says %d", b.charged, got)
		}
		if err := json.Unmarshal(body, &p.Tick); err != nil && resp.Header.Get("Content-Type") == "application/json" {
			b.Fatalf("%s: %v", body, err)
		}
	}
	return p
}

// open deposits and pays the first request.
func (b *buyer) open(value uint64) paid {
	b.Helper()
	return b.take(b.pay(b.depositing(b.next(), value)))
}

// next is what the next voucher must be over.
func (b *buyer) next() uint64 {
	b.Helper()
	amount := b.accept().Amount.Int
	return b.charged + amount.Uint64()
}

// holds is what the contract holds of the channel.
func (b *buyer) holds() uint64 {
	b.Helper()
	deposit := b.on().View.Deposit
	return deposit.Uint64()
}

// again pays the next request by a voucher and, as a stock client does, once
// more if it is corrected: the lease uses its slack meanwhile. Where the machine
// is slow each correction comes late, until the slack is used.
func (b *buyer) again() paid {
	b.Helper()
	resp := b.pay(b.payment(b.next()))
	for n := 0; resp.StatusCode == http.StatusPaymentRequired && n < 10; n++ {
		b.corrected(resp)
		resp = b.pay(b.payment(b.next()))
	}
	return b.take(resp)
}

// refused is an answer that asks for a payment.
func (b *buyer) refused(resp *http.Response) x402.PaymentRequired {
	b.Helper()
	body, _ := io.ReadAll(resp.Body)
	required, err := x402.ParsePaymentRequired(resp.Header)
	if err != nil || resp.StatusCode != http.StatusPaymentRequired {
		b.Fatalf("%s: %s %v", resp.Status, body, err)
	}
	if len(resp.Header.Values(x402.HeaderResponse)) > 0 {
		b.Fatal("a receipt in a 402")
	}
	if said := mustBeOver.FindSubmatch(body); said != nil { // a refund's is over what was charged
		charged, next := required.Accepts[0].Extra.ChannelState.ChargedCumulativeAmount.Dec(), fmt.Sprint(b.told(resp))
		if over := string(said[1]); over != charged && over != next {
			b.Errorf("it says that the next voucher must be over %s; %s was charged, and %s comes next", over, charged, next)
		}
	}
	return required
}

var mustBeOver = regexp.MustCompile(`the next one must be over (\d+)`)

// corrected makes the client's books those that a 402 tells, if it may.
func (b *buyer) corrected(resp *http.Response) {
	b.Helper()
	required := b.refused(resp)
	if required.Error != string(x402.CodeCumulativeMismatch) {
		b.Fatalf("refused with %q, want a correction", required.Error)
	}
	extra := required.Accepts[0].Extra
	charged := extra.ChannelState.ChargedCumulativeAmount.Int
	if v := extra.VoucherState; v != nil {
		voucher := channel.Voucher{ChannelID: b.terms.ID(), Cumulative: v.SignedMaxClaimable.Int, Signature: v.Signature[:]}
		if err := b.contract.Domain().Verify(voucher, b.terms.Signer()); err != nil || charged.Gt(&v.SignedMaxClaimable.Int) {
			b.Fatalf("a client does not believe this: %+v: %v", v, err)
		}
	} else if on := b.on(); on.View.Settled != charged {
		b.Fatalf("a client without a voucher takes %s, told was %s", on.View.Settled.Dec(), charged.Dec())
	}
	b.charged = charged.Uint64()
}

// told is what the next voucher must be over by a correction.
func (b *buyer) told(resp *http.Response) uint64 {
	b.Helper()
	required, err := x402.ParsePaymentRequired(resp.Header)
	if err != nil {
		b.Fatal(err)
	}
	extra, amount := required.Accepts[0].Extra, required.Accepts[0].Amount
	charged := extra.ChannelState.ChargedCumulativeAmount
	return charged.Uint64() + amount.Uint64()
}

// on is what the contract says of the channel.
func (b *buyer) on() chain.BatchSettlementState {
	b.Helper()
	s, err := b.contract.State(b.Context(), b.terms.ID())
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// kept is what the provider says of the channel.
func (b *buyer) kept() channel.State {
	b.Helper()
	s, err := x402Of(b.provider).Book.State(b.Context(), b.terms.ID())
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// idle ends the channel's lease and takes over what it was charged.
func (b *buyer) idle() {
	b.Helper()
	b.provider.leases.EndSoon(b.provider.leases.Running(b.terms.ID()), "the test wants it idle")
	eventually(b.T, "the lease ends", func() bool { return b.provider.leases.Running(b.terms.ID()) == nil })
	kept := b.kept()
	b.charged = kept.Spent.Uint64()
}

// used is what was used and is covered by vouchers: what the provider can claim.
// A reading that came late may have used more.
func (b *buyer) used() uint256.Int {
	b.Helper()
	kept := b.kept()
	return kept.Payable()
}

func (b *buyer) receives(want uint64) {
	b.Helper()
	if got := b.chain.Tokens(b.T, b.config.Key.Address()); got != want {
		b.Errorf("the provider has %d, want %d", got, want)
	}
}
