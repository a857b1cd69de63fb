package provider

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/verify"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/settle"
	"github.com/gpupay/gpupay/sdk/wire"
)

// rig is a provider under test on an embedded chain, served over real HTTP,
// and a renter that speaks the wire by hand so that it can say anything.
type rig struct {
	atWork
	chain *devchain.Chain
	payer *channel.Key
	class string // that its requests are for; empty: they do not say
}

// atWork is a provider that runs behind a server, and can be stopped and started again.
type atWork struct {
	*testing.T
	config   Config
	provider *Server
	server   *httptest.Server
	tune     func(*Server) // of one that does not run yet; may be nil
	stop     context.CancelFunc
	ran      chan error
}

// hour is the price in the tests: 1 token an hour, which is 1,000,000 base
// units for 3,600 GPU-seconds.
const hour = "3.60" // 1000 base units a GPU-second

func newRig(t *testing.T, change ...func(*Config)) *rig {
	t.Helper()
	t.Parallel()
	net, err := devchain.Start(t.Context(), devchain.Options{BlockTime: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { net.Close() })
	return rigOn(t, net, func(r *rig) *channel.Key { return r.fund(t, 1_000_000) }, change...)
}

// rigOn is a rig on a chain that is there already.
func rigOn(t *testing.T, net *devchain.Chain, payer func(*rig) *channel.Key, change ...func(*Config)) *rig {
	t.Helper()
	source := testclock.GPUs(2)
	r := &rig{chain: net, atWork: atWork{T: t, config: Config{
		RPC: net.URL, Escrow: net.Escrow, Token: net.Token, Key: channel.NewKey(net.Keys[0]),
		Database: filepath.Join(t.TempDir(), "provider.db"), PricePerGPUHour: hour, Source: source, Metering: Metering{Clock: testclock.Process(), Tick: 50 * time.Millisecond, MaxGap: 500 * time.Millisecond, RecordEvery: 100 * time.Millisecond},
		Terms:    Terms{Credit: 2 * time.Second, SuspendTimeout: time.Minute},
		Deposits: Deposits{Min: "0.01", Timeout: time.Minute}, Chain: Chain{ClockTolerance: 24 * time.Hour, Poll: 100 * time.Millisecond, Finality: 4},
		Settlement: settle.Policy{Interval: time.Hour, LeastRow: *uint256.NewInt(1)},
		Log:        testrig.Warnings(t),
	}}}
	if strings.Contains(t.Name(), onPostgres) {
		r.config.Database = pgtest.URL(t)
	}
	for _, c := range change {
		c(&r.config)
	}
	if strings.Contains(r.config.Database, "://") && r.config.Records.HighWater == "" {
		r.config.Records.HighWater = filepath.Join(t.TempDir(), "high-water.db")
	}
	r.payer = payer(r)
	r.start()
	t.Cleanup(r.shut)
	return r
}

// generousCredit is for tests that are not about credit: on a busy machine two seconds are used up before a renter's next step.
func generousCredit(c *Config) { c.Terms.Credit = time.Hour }

// fund makes an account with tokens and no native coin.
func (r *rig) fund(t *testing.T, tokens uint64) *channel.Key {
	t.Helper()
	private, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	key := channel.NewKey(private)
	if err := r.chain.Fund(t.Context(), key.Address(), new(big.Int), *uint256.NewInt(tokens)); err != nil {
		t.Fatal(err)
	}
	return key
}

func (r *atWork) start() {
	r.Helper()
	p, err := New(r.Context(), r.config)
	if err != nil {
		r.Fatal(err)
	}
	if r.tune != nil {
		r.tune(p)
	}
	ctx, stop := context.WithCancel(context.Background())
	r.provider, r.stop, r.ran = p, stop, make(chan error, 1)
	go func() { r.ran <- p.Run(ctx) }()
	r.server = httptest.NewServer(p)
}

// shut stops the provider as a signal would, without draining.
func (r *atWork) shut() {
	if r.server == nil {
		return
	}
	r.stop()
	if err := <-r.ran; err != nil {
		r.Errorf("Run: %v", err)
	}
	if err := r.provider.Close(); err != nil {
		r.Errorf("Close: %v", err)
	}
	r.server.CloseClientConnections()
	r.server.Close()
	r.server = nil
}

func (r *atWork) restart() {
	r.Helper()
	r.shut()
	r.start()
}

// do sends one request for the lease.
func (r *rig) do(method, query string, cred *wire.Credential, header ...string) *http.Response {
	r.Helper()
	if r.class != "" {
		query = "?class=" + r.class + strings.Replace(query, "?", "&", 1)
	}
	req, err := http.NewRequestWithContext(r.Context(), method, r.server.URL+"/lease"+query, nil)
	if err != nil {
		r.Fatal(err)
	}
	if cred != nil {
		text, err := cred.Header()
		if err != nil {
			r.Fatal(err)
		}
		req.Header.Set("Authorization", text)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { resp.Body.Close() })
	return resp
}

func (r *rig) challenge() wire.Challenge {
	r.Helper()
	resp := r.do("GET", "", nil)
	if resp.StatusCode != http.StatusPaymentRequired || resp.Header.Get("Cache-Control") != "no-store" {
		r.Fatalf("no challenge: %s %v", resp.Status, resp.Header)
	}
	all, err := wire.ParseChallenges(resp.Header)
	if err != nil || len(all) != 1 {
		r.Fatalf("challenges: %v %v", all, err)
	}
	return all[0]
}

// tab is a channel as the hand-made renter knows it.
type tab struct {
	*rig
	key   *channel.Key
	terms channel.Terms
	lease wire.Lease
	body  io.ReadCloser
	in    *wire.Events
}

func (r *rig) terms(payer common.Address, salt byte) channel.Terms {
	return channel.Terms{ChainID: r.provider.escrow.ChainID(), Escrow: r.chain.Escrow, Payer: payer, Payee: r.config.Key.Address(), Token: r.chain.Token, Salt: common.Hash{31: salt}}
}

// openCredential is a gasless open over a deposit in base units.
func (r *rig) openCredential(key *channel.Key, terms channel.Terms, deposit, first uint64) *wire.Credential {
	r.Helper()
	token, err := chain.NewToken(r.Context(), r.chain.Backend, r.chain.Token)
	if err != nil {
		r.Fatal(err)
	}
	domain, err := token.DomainSeparator(r.Context())
	if err != nil {
		r.Fatal(err)
	}
	auth, err := chain.SignAuthorization(r.Context(), key, domain, channel.Authorization{
		From: terms.Payer, To: terms.Escrow, Value: *uint256.NewInt(deposit), ValidBefore: uint64(time.Now().Add(48 * time.Hour).Unix()), Nonce: channel.OpenNonce(terms.Payer, terms)})
	if err != nil {
		r.Fatal(err)
	}
	cred := &wire.Credential{Challenge: r.challenge(), Source: wire.Source(terms.ChainID, terms.Payer), Payload: wire.Payload{
		Action: wire.ActionOpen, Type: wire.TypeAuthorization, ChannelID: terms.ID(), Salt: &terms.Salt,
		Authorization: &wire.Authorization{From: wire.Address(auth.From), To: wire.Address(auth.To), Value: wire.NewAmount(auth.Value),
			ValidAfter: wireAmount(auth.ValidAfter), ValidBefore: wireAmount(auth.ValidBefore), Nonce: auth.Nonce},
		Signature: auth.Signature, VoucherSignature: r.sign(key, terms, first)}}
	cumulative := wireAmount(first)
	cred.Payload.CumulativeAmount = &cumulative
	return cred
}

func randomHash() (h common.Hash) {
	_, _ = rand.Read(h[:])
	return h
}

func wireAmount(n uint64) wire.Amount { return wire.NewAmount(*uint256.NewInt(n)) }

func (r *rig) sign(key *channel.Key, terms channel.Terms, amount uint64) wire.Bytes {
	r.Helper()
	v, err := channel.EscrowDomain(terms.ChainID, terms.Escrow).Sign(r.Context(), key, terms.ID(), *uint256.NewInt(amount))
	if err != nil {
		r.Fatal(err)
	}
	return v.Signature
}

// open opens a channel without gas and begins a lease on it.
func (r *rig) open(salt byte, deposit uint64, query string) *tab {
	r.Helper()
	terms := r.terms(r.payer.Address(), salt)
	resp := r.do("GET", query, r.openCredential(r.payer, terms, deposit, 0))
	t := &tab{rig: r, key: r.payer, terms: terms}
	t.attach(resp)
	return t
}

func (t *tab) attach(resp *http.Response) {
	t.Helper()
	if resp.StatusCode != http.StatusOK {
		t.Fatal(wire.ParseProblem(resp))
	}
	t.lease = wire.Lease{}
	t.body, t.in = resp.Body, wire.NewEvents(resp.Body)
	t.read(wire.EventLease, &t.lease)
}

// next returns the next event of a name, skipping others.
func (t *tab) next(name string) wire.Event {
	t.Helper()
	for {
		e, err := t.in.Next()
		if err != nil {
			t.Fatalf("waiting for %s: %v", name, err)
		}
		if e.Name == name {
			return e
		}
	}
}

func (t *tab) read(name string, into any) {
	t.Helper()
	if err := json.Unmarshal(t.next(name).Data, into); err != nil {
		t.Fatal(err)
	}
}

func (t *tab) record() metering.SignedRecord {
	t.Helper()
	var rec metering.SignedRecord
	t.read(wire.EventUsage, &rec)
	return rec
}

// status waits for a state of the lease.
func (t *tab) status(state leasestore.State) wire.Status {
	t.Helper()
	for {
		var s wire.Status
		t.read(wire.EventStatus, &s)
		if s.State == string(state) {
			return s
		}
	}
}

// credential is a voucher credential with a fresh challenge.
func (t *tab) credential(action string, amount uint64) *wire.Credential {
	t.Helper()
	cumulative := wireAmount(amount)
	return &wire.Credential{Challenge: t.challenge(), Source: wire.Source(t.terms.ChainID, t.terms.Payer), Payload: wire.Payload{
		Action: action, ChannelID: t.terms.ID(), CumulativeAmount: &cumulative, Signature: t.sign(t.key, t.terms, amount)}}
}

func (t *tab) pay(amount uint64) wire.Receipt {
	t.Helper()
	resp := t.do("POST", "", t.credential(wire.ActionVoucher, amount))
	if resp.StatusCode != http.StatusOK {
		t.Fatal(wire.ParseProblem(resp))
	}
	receipt, err := wire.ParseReceipt(resp.Header)
	if err != nil {
		t.Fatal(err)
	}
	return receipt
}

// release ends the lease and returns its final record.
func (t *tab) release() metering.SignedRecord {
	t.Helper()
	cred := &wire.Credential{Challenge: t.challenge(), Payload: wire.Payload{Action: wire.ActionRelease, ChannelID: t.terms.ID(), LeaseSecret: t.lease.Secret}}
	resp := t.do("POST", "", cred)
	if resp.StatusCode != http.StatusOK {
		t.Fatal(wire.ParseProblem(resp))
	}
	var answer struct{ Record metering.SignedRecord }
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	return answer.Record
}

func (t *tab) close(amount uint64) wire.Receipt {
	t.Helper()
	cred := t.credential(wire.ActionClose, amount)
	cred.Payload.LeaseSecret = t.lease.Secret
	resp := t.do("POST", "", cred)
	if resp.StatusCode != http.StatusOK {
		t.Fatal(wire.ParseProblem(resp))
	}
	receipt, err := wire.ParseReceipt(resp.Header)
	if err != nil {
		t.Fatal(err)
	}
	return receipt
}

func (r *rig) balance(of common.Address) uint64 {
	r.Helper()
	token, err := chain.NewToken(r.Context(), r.chain.Backend, r.chain.Token)
	if err != nil {
		r.Fatal(err)
	}
	b, err := token.Balance(r.Context(), of)
	if err != nil {
		r.Fatal(err)
	}
	return b.Uint64()
}

func TestLeaseFromOpenToRefund(t *testing.T) {
	r := newRig(t)
	lease := r.open(1, 100_000, "?gpus=2")
	if len(lease.lease.Devices) != 2 || lease.lease.Secret == "" || !json.Valid(lease.lease.Access) {
		t.Fatalf("lease is %+v", lease.lease)
	}
	checker, err := verify.New(verify.Config{
		Lease: metering.Lease{ID: lease.lease.LeaseID, ChannelID: lease.terms.ID(), OfferHash: r.provider.Offer().Hash, ChainID: devchain.ChainID,
			Escrow: r.chain.Escrow, Price: r.provider.rates[""].Price, Devices: lease.lease.Devices, Simulated: true},
		Key: r.config.Key.Address(), Tolerance: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	var paid uint64
	for range 5 {
		rec := lease.record()
		if err := checker.Check(rec); err != nil {
			t.Fatal(err)
		}
		if paid = rec.Owed.Uint64(); paid > 0 {
			if got := lease.pay(paid); got.AcceptedCumulative.Uint64() != paid {
				t.Fatalf("receipt says %s, paid %d", got.AcceptedCumulative.Dec(), paid)
			}
		}
	}
	final := lease.release()
	if !final.Final || final.Owed.Uint64() < paid {
		t.Fatalf("final record is %+v", final.Record)
	}
	owed := final.Owed.Uint64()
	lease.pay(owed)
	receipt := lease.close(owed)
	if receipt.TxHash == nil {
		t.Fatal("a close without a transaction")
	}
	if got := r.balance(r.payer.Address()); got != 1_000_000-owed {
		t.Errorf("the payer has %d, want %d back", got, 1_000_000-owed)
	}
	if got := r.balance(r.config.Key.Address()); got != owed {
		t.Errorf("the payee has %d, is owed %d", got, owed)
	}
}

func TestSuspendsAtItsCreditAndResumesWhenPaid(t *testing.T) {
	r := newRig(t)
	lease := r.open(1, 500_000, "")
	lease.status(leasestore.Suspended)
	var need wire.NeedVoucher
	lease.read(wire.EventNeedVoucher, &need)
	s, err := r.provider.payee.State(t.Context(), lease.terms.ID())
	if err != nil {
		t.Fatal(err)
	}
	if credit := uint64(2000); s.Spent.Uint64() > credit || s.Spent.Uint64() < credit/2 {
		t.Fatalf("suspended at %s base units; the credit is %d", s.Spent.Dec(), credit)
	}
	if need.RequiredCumulative.Int != s.Spent {
		t.Fatalf("asked for %s, owed is %s", need.RequiredCumulative.Dec(), s.Spent.Dec())
	}
	testclock.Sleep(300 * time.Millisecond)
	later, err := r.provider.payee.State(t.Context(), lease.terms.ID())
	if err != nil || later.Spent != s.Spent {
		t.Fatalf("a suspended lease went on to charge: %s, then %s (%v)", s.Spent.Dec(), later.Spent.Dec(), err)
	}
	lease.pay(need.RequiredCumulative.Uint64())
	lease.status(leasestore.Active)
	for rec := lease.record(); !rec.Owed.Gt(&s.Spent); rec = lease.record() { // until the meter goes on
	}
}

func TestUnpaidLeaseEndsAndItsDevicesAreFree(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Terms.SuspendTimeout = 300 * time.Millisecond })
	lease := r.open(1, 500_000, "?gpus=2")
	if s := lease.status(leasestore.Ended); !strings.Contains(s.Reason, "unpaid") {
		t.Fatalf("ended because %q", s.Reason)
	}
	lease.next(wire.EventReceipt)
	if _, err := lease.in.Next(); err != io.EOF {
		t.Fatalf("after the receipt: %v", err)
	}
	if free := r.provider.config.Allocator.(*gpu.HostAllocator).Free(); free != 2 {
		t.Fatalf("%d devices are free", free)
	}
}

func TestLeaseOutlivesItsConnection(t *testing.T) {
	r := newRig(t)
	lease := r.open(1, 500_000, "")
	first := lease.record()
	lease.body.Close()
	time.Sleep(400 * time.Millisecond)
	cred := lease.credential(wire.ActionVoucher, 1)
	cred.Payload.LeaseSecret = lease.lease.Secret
	id := lease.lease.LeaseID
	lease.attach(r.do("GET", "", cred, "Last-Event-ID", "1"))
	if lease.lease.LeaseID != id || lease.lease.Secret != "" {
		t.Fatalf("attached to %+v", lease.lease)
	}
	second := lease.record()
	if second.Sequence != first.Sequence+1 {
		t.Fatalf("the stream goes on at record %d after %d", second.Sequence, first.Sequence)
	}
	third := lease.record()
	if third.Previous != second.Digest(metering.Domain(devchain.ChainID, r.chain.Escrow)) {
		t.Fatal("the chain of records is broken")
	}
}

func TestNewStreamReplacesTheOld(t *testing.T) {
	r := newRig(t)
	lease := r.open(1, 500_000, "")
	old := *lease
	cred := lease.credential(wire.ActionVoucher, 1)
	cred.Payload.LeaseSecret = lease.lease.Secret
	lease.attach(r.do("GET", "", cred))
	lease.record()
	for {
		e, err := old.in.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if e.Name == wire.EventReceipt {
			t.Fatal("the replaced stream got the last receipt")
		}
	}
}

func TestRestartGoesOnWithLeases(t *testing.T) {
	r := newRig(t)
	lease := r.open(1, 500_000, "")
	lease.record()
	paid := owedIn(lease.record())
	lease.pay(paid)
	id := lease.lease.LeaseID
	secret := lease.lease.Secret
	r.restart()
	before, err := r.provider.store.Records.Last(t.Context(), id)
	if err != nil || before == nil {
		t.Fatal(before, err)
	}
	cred := lease.credential(wire.ActionVoucher, paid)
	cred.Payload.LeaseSecret = secret
	lease.attach(r.do("GET", "", cred, "Last-Event-ID", "0"))
	if lease.lease.LeaseID != id {
		t.Fatalf("the lease is another: %s", lease.lease.LeaseID)
	}
	domain := metering.Domain(devchain.ChainID, r.chain.Escrow)
	var last metering.SignedRecord
	for last.Sequence <= before.Sequence+1 {
		rec := lease.record()
		if rec.Sequence != last.Sequence+1 || rec.Sequence > 1 && rec.Previous != last.Digest(domain) {
			t.Fatalf("record %d does not follow %d", rec.Sequence, last.Sequence)
		}
		if rec.Owed.Lt(&last.Owed) {
			t.Fatalf("record %d owes less than before", rec.Sequence)
		}
		last = rec
	}
	state, err := r.provider.payee.State(t.Context(), lease.terms.ID())
	if err != nil || state.Accepted.Uint64() != paid {
		t.Fatalf("accepted is %s after the restart, %d was acknowledged (%v)", state.Accepted.Dec(), paid, err)
	}
}

func TestChannelIsResumedWithANewLease(t *testing.T) {
	r := newRig(t)
	lease := r.open(1, 500_000, "")
	lease.record()
	final := lease.release()
	owed := final.Owed.Uint64()
	first := lease.lease.LeaseID
	cred := lease.credential(wire.ActionVoucher, owed)
	proof, err := wire.Prove(t.Context(), r.payer, lease.terms, cred.Challenge.ID, "attach")
	if err != nil {
		t.Fatal(err)
	}
	cred.Payload.Proof = proof
	lease.attach(r.do("GET", "", cred))
	if lease.lease.LeaseID == first || lease.lease.OwedBefore.Uint64() != owed {
		t.Fatalf("second lease is %+v, the first owed %d", lease.lease, owed)
	}
	if rec := lease.record(); rec.OwedBefore.Uint64() != owed || rec.Sequence != 1 {
		t.Fatalf("its first record is %+v", rec.Record)
	}
}

func TestTopUpLetsALeaseGoOn(t *testing.T) {
	r := newRig(t, func(c *Config) {
		c.Terms.Credit, c.Deposits.Min, c.Metering.MaxGap = 30*time.Second, "0.001", 2*c.Metering.Tick
	})
	lease := r.open(1, 1_500, "") // 1.5 GPU-seconds
	lease.status(leasestore.Suspended)
	var need wire.NeedVoucher
	lease.read(wire.EventNeedVoucher, &need)
	if !need.RequiredCumulative.Gt(&need.Deposit.Int) {
		t.Fatalf("the deposit of %s ran out, and %s is asked for", need.Deposit.Dec(), need.RequiredCumulative.Dec())
	}
	s, err := r.provider.payee.State(t.Context(), lease.terms.ID())
	if err != nil || s.Spent.Gt(&s.Deposit) {
		t.Fatalf("charged %s of a deposit of %s (%v)", s.Spent.Dec(), s.Deposit.Dec(), err)
	}
	// The top-up comes merged with the voucher that pays what is owed.
	cred := lease.credential(wire.ActionVoucher, s.Spent.Uint64())
	cred.Payload.Deposit = lease.topUp(100_000, 7)
	resp := r.do("POST", "", cred)
	if resp.StatusCode != http.StatusOK {
		t.Fatal(wire.ParseProblem(resp))
	}
	lease.status(leasestore.Active)
	if s, err = r.provider.payee.State(t.Context(), lease.terms.ID()); err != nil || s.Deposit.Uint64() != 101_500 {
		t.Fatalf("the deposit is %s (%v)", s.Deposit.Dec(), err)
	}
}

// topUp is a top-up that the payer authorizes.
func (t *tab) topUp(amount uint64, salt byte) *wire.Payload {
	t.Helper()
	return t.topUpBy(t.key, amount, salt)
}

// topUpBy is a top-up that anybody authorizes.
func (t *tab) topUpBy(key *channel.Key, amount uint64, salt byte) *wire.Payload {
	t.Helper()
	token, err := chain.NewToken(t.Context(), t.chain.Backend, t.chain.Token)
	if err != nil {
		t.Fatal(err)
	}
	domain, err := token.DomainSeparator(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	topUpSalt := common.Hash{31: salt}
	auth, err := chain.SignAuthorization(t.Context(), key, domain, channel.Authorization{
		From: key.Address(), To: t.terms.Escrow, Value: *uint256.NewInt(amount), ValidBefore: uint64(time.Now().Add(48 * time.Hour).Unix()),
		Nonce: channel.TopUpNonce(t.terms.ID(), *uint256.NewInt(amount), key.Address(), topUpSalt)})
	if err != nil {
		t.Fatal(err)
	}
	additional := wireAmount(amount)
	return &wire.Payload{Action: wire.ActionTopUp, Type: wire.TypeAuthorization, ChannelID: t.terms.ID(), AdditionalDeposit: &additional, Salt: &topUpSalt,
		Authorization: &wire.Authorization{From: wire.Address(auth.From), To: wire.Address(auth.To), Value: additional,
			ValidAfter: wireAmount(0), ValidBefore: wireAmount(auth.ValidBefore), Nonce: auth.Nonce},
		Signature: auth.Signature}
}

func TestCloseRequestOnChainEndsTheLeaseAndIsSettled(t *testing.T) {
	r := newRig(t)
	// This payer has gas: it asks the contract itself.
	private := r.chain.Keys[1]
	r.payer = channel.NewKey(private)
	if err := r.chain.Fund(t.Context(), r.payer.Address(), new(big.Int), *uint256.NewInt(1_000_000)); err != nil {
		t.Fatal(err)
	}
	lease := r.open(1, 500_000, "")
	lease.record()
	paid := owedIn(lease.record())
	lease.pay(paid)
	requestClose(t, r, private, lease.terms)
	if s := lease.status(leasestore.Ended); !strings.Contains(s.Reason, "closing") {
		t.Fatalf("ended because %q", s.Reason)
	}
	waitFor(t, func() bool { return r.balance(r.config.Key.Address()) == paid })
	resp := r.do("POST", "", lease.credential(wire.ActionVoucher, paid+1))
	if p := wire.ParseProblem(resp); !errors.Is(p, &wire.ChannelFinalized) {
		t.Fatalf("a voucher on a closing channel: %v", p)
	}
}

func requestClose(t *testing.T, r *rig, private *ecdsa.PrivateKey, terms channel.Terms) {
	t.Helper()
	escrow, err := chain.NewEscrow(t.Context(), r.chain.Backend, r.chain.Escrow)
	if err != nil {
		t.Fatal(err)
	}
	db, err := database.Open(t.Context(), filepath.Join(t.TempDir(), "payer.db"), "provider", leasestore.Migrations, "migrations/provider")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	txs, err := chain.OpenStore(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	sender := &chain.Sender{Backend: r.chain.Backend, Key: channel.NewKey(private), Store: txs, Poll: 100 * time.Millisecond}
	id, err := sender.Submit(t.Context(), escrow.RequestCloseCall(terms))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sender.Wait(t.Context(), id, 1); err != nil {
		t.Fatal(err)
	}
}

// eventually waits for something that another goroutine brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	testrig.Eventually(t, what, ok)
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	testrig.Each(t, 50*time.Millisecond, "what the test waits for", ok)
}

func owedIn(rec metering.SignedRecord) uint64 { return rec.Owed.Uint64() }

// mintedBy sends a transaction that has nothing to do with the escrow.
func (r *rig) mintedBy(private *ecdsa.PrivateKey) common.Hash {
	r.Helper()
	signer := types.LatestSignerForChainID(big.NewInt(devchain.ChainID))
	from := crypto.PubkeyToAddress(private.PublicKey)
	nonce, err := r.chain.Backend.PendingNonceAt(r.Context(), from)
	if err != nil {
		r.Fatal(err)
	}
	tx, err := types.SignNewTx(private, signer, &types.DynamicFeeTx{ChainID: big.NewInt(devchain.ChainID), Nonce: nonce, To: &from,
		Gas: 21_000, GasFeeCap: big.NewInt(100e9), GasTipCap: big.NewInt(1e9)})
	if err != nil {
		r.Fatal(err)
	}
	if err := r.chain.Backend.SendTransaction(r.Context(), tx); err != nil {
		r.Fatal(err)
	}
	return tx.Hash()
}
