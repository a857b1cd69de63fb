package x402client

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// shark is a stall that says something else in every 402 and keeps what it is given, as it likes.
type shark struct {
	*stall
	random *rand.Rand
	payees []*ecdsa.PrivateKey
	mu     sync.Mutex
	kept   []x402.PaymentPayload // deposits that were signed and not sent
}

func (k *shark) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p, err := x402.ParsePaymentPayload(r.Header)
	if err != nil {
		k.demand(w, x402.FirstError)
		return
	}
	if p.Payload.Deposit != nil {
		k.kept = append(k.kept, p)
	}
	if len(k.kept) > 0 && k.random.IntN(2) == 0 { // it sends one, also one of long ago
		i := k.random.IntN(len(k.kept))
		k.bank(k.kept[i])
		k.kept = append(k.kept[:i:i], k.kept[i+1:]...)
	}
	switch k.random.IntN(4) {
	case 0:
		w.WriteHeader(http.StatusBadGateway)
	case 1:
		k.demand(w, string(x402.CodeCumulativeMismatch))
	case 2:
		k.demand(w, string(x402.CodeCumulativeExceedsBalance))
	default:
		receipt := x402.SettleResponse{Success: true, Network: 31337, ChargedAmount: ptr(wireUnits(uint64(k.random.IntN(testrig.SellerPrice))))}
		if err := receipt.Set(w.Header()); err != nil {
			k.Error(err)
		}
	}
}

func (k *shark) demand(w http.ResponseWriter, reason string) {
	offer := k.Offer
	offer.PayTo = wire.Address(crypto.PubkeyToAddress(k.payees[k.random.IntN(len(k.payees))].PublicKey))
	offer.Extra.ReceiverAuthorizer = offer.PayTo
	if k.random.IntN(2) == 0 { // what it said before is what it gets deposits by
		offer.Extra.WithdrawDelay += uint64(k.random.IntN(5))
		offer.Extra.ReceiverAuthorizer[0] += byte(k.random.IntN(2))
	}
	offer.Amount = wireUnits(1 + uint64(k.random.IntN(testrig.SellerPrice)))
	offer.MaxTimeoutSeconds = uint64(k.random.IntN(1 << 30))
	least := wireUnits(uint64(k.random.IntN(20_000)))
	if offer.Extra.MinDeposit = &least; k.random.IntN(3) == 0 {
		offer.Extra.MinDeposit = nil
	}
	offer.Extra.Name, offer.Extra.Version = fmt.Sprint(k.random.Uint32()), fmt.Sprint(k.random.Uint32())
	required := x402.PaymentRequired{Error: reason, Resource: x402.Resource{URL: k.Server.URL}, Accepts: []x402.Requirements{offer, k.Offer}}
	if err := required.Set(w.Header()); err != nil {
		k.Error(err)
	}
	w.WriteHeader(http.StatusPaymentRequired)
}

// TestX402ServerLocksNoMoreThanTheCaps: whatever a server says in its 402s, and whether it sends the deposits that it gets,
// keeps them or sends them late: what is locked and what it could still lock stays within every cap, and what is on disk is
// what was signed for.
func TestX402ServerLocksNoMoreThanTheCaps(t *testing.T) {
	m := testrig.NewX402Market(t)
	const perLease, perDay, perPayee = 30_000, 60_000, 45_000
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			s := newStall(t, m)
			s.Payer = m.Newcomer(t)
			k := &shark{stall: s, random: rand.New(rand.NewPCG(seed, 9))}
			for range 3 {
				key, err := crypto.GenerateKey()
				if err != nil {
					t.Fatal(err)
				}
				k.payees = append(k.payees, key)
			}
			s.Server.Config.Handler = k
			x := s.client(wallet.Caps{PricePerGPUHour: "1", PerLease: "0.03", PerDay: "0.06", PerPayee: "0.045"}, stallOptions)
			signed := map[common.Hash]bool{}
			for range 80 {
				_, _ = s.get(x)
				for _, p := range k.kept {
					signed[common.Hash(p.Payload.Voucher.ChannelID)] = true
				}
				k.within(x, perLease, perDay, perPayee)
			}
			all, err := x.Channels(t.Context())
			if err != nil || len(all) == 0 || len(all) > 3 {
				t.Errorf("%d channels with 3 payees, %v", len(all), err)
			}
			for _, c := range all {
				if c.Signed.IsZero() {
					t.Errorf("channel %s is on disk and nothing was signed for it", c.ID)
				}
			}
			if k.Tokens(t, k.PayerAddress()) == testrig.Thousand {
				t.Error("nothing was locked: the test showed nothing")
			}
		})
	}
}

// within holds what is gone from the payer, and what was signed and could still go, to the caps.
func (k *shark) within(x *Client, perLease, perDay, perPayee uint64) {
	k.Helper()
	all, err := x.Channels(k.Context())
	if err != nil {
		k.Fatal(err)
	}
	byPayee, byChannel, total := map[common.Address]uint64{}, map[common.Hash]uint64{}, uint64(0)
	for _, c := range all {
		s, err := k.Contract.State(k.Context(), c.ID)
		if err != nil {
			k.Fatal(err)
		}
		byChannel[c.ID] += s.View.Deposit.Uint64()
		byPayee[c.Terms.Payee] += s.View.Deposit.Uint64()
		total += s.View.Deposit.Uint64()
	}
	seen := map[x402.Hash]bool{}
	for _, p := range k.kept {
		if d := p.Payload.Deposit; !seen[d.Authorization.Salt] && !k.used(x, p) {
			seen[d.Authorization.Salt] = true
			byChannel[common.Hash(p.Payload.Voucher.ChannelID)] += d.Amount.Uint64()
			byPayee[common.Address(p.Payload.Config.Receiver)] += d.Amount.Uint64()
			total += d.Amount.Uint64()
		}
	}
	if gone := testrig.Thousand - k.Tokens(k.T, k.PayerAddress()); total < gone {
		k.Errorf("%d are gone, channels and authorizations explain %d", gone, total)
	}
	for id, n := range byChannel {
		if n > perLease {
			k.Errorf("%d in channel %s, the cap is %d", n, id, perLease)
		}
	}
	for payee, n := range byPayee {
		if n > perPayee {
			k.Errorf("%d with payee %s, the cap is %d", n, payee, perPayee)
		}
	}
	if total > perDay {
		k.Errorf("%d locked, the cap is %d", total, perDay)
	}
}

func (k *shark) used(x *Client, p x402.PaymentPayload) bool {
	k.Helper()
	nonce := channel.DepositNonce(common.Hash(p.Payload.Voucher.ChannelID), common.Hash(p.Payload.Deposit.Authorization.Salt))
	used, err := x.w.Token.AuthorizationUsed(k.Context(), k.PayerAddress(), nonce)
	if err != nil {
		k.Fatal(err)
	}
	return used
}

// bank sends a deposit unless it was sent before.
func (k *shark) bank(p x402.PaymentPayload) {
	call := k.Contract.DepositCall(p.Payload.Config.Terms(p.Accepted.Network), common.Hash(p.Payload.Deposit.Authorization.Salt),
		chain.Authorization{Authorization: p.Payload.Authorization(), Signature: p.Payload.Deposit.Authorization.Signature[:]})
	if k.Contract.Simulate(k.Context(), crypto.PubkeyToAddress(k.Payee.PublicKey), call) == nil {
		k.Transact(k.T, k.Payee, call.To, call.Data)
	}
}

// TestX402ServerHasOneChannel: a server that names other terms each time gets no second channel while there is money in the
// first, and its refusal fills no disk. When the first is empty, other terms are taken.
func TestX402ServerHasOneChannel(t *testing.T) {
	s := newStall(t, testrig.NewX402Market(t))
	x := s.client(stallCaps, stallOptions)
	s.buy(x)
	first := s.only(x)
	honest := s.Offer
	for i := range uint64(20) {
		switch s.Offer = honest; i % 3 {
		case 0:
			s.Offer.Extra.WithdrawDelay += 1 + i
		case 1:
			s.Offer.Extra.ReceiverAuthorizer[0] += byte(1 + i)
		case 2:
			s.Offer.Extra.WithdrawDelay, s.Offer.Extra.ReceiverAuthorizer = 7200+i, wire.Address{byte(i)}
		}
		if _, err := s.get(x); !errors.Is(err, ErrNotOffered) {
			t.Fatalf("other terms: %v", err)
		}
	}
	if c := s.only(x); c.ID != first.ID || s.Tokens(t, s.PayerAddress()) != testrig.Thousand-testrig.SellerDeposit {
		t.Errorf("%+v", c)
	}
	kept, err := x.accounts().Load(t.Context(), first.ID)
	if err != nil {
		t.Fatal(err)
	}
	kept.Charged = first.Deposit // all of it is used
	if err := x.accounts().Save(t.Context(), kept); err != nil {
		t.Fatal(err)
	}
	s.Base, s.Newest = 0, nil
	s.buy(x)
	if all, err := x.Channels(t.Context()); err != nil || len(all) != 2 {
		t.Errorf("%d channels, %v", len(all), err)
	}
}

// TestX402RefusedOffersLeaveNoTrace: what a cap or the balance refuses is not on disk.
func TestX402RefusedOffersLeaveNoTrace(t *testing.T) {
	s := newStall(t, testrig.NewX402Market(t))
	x := s.client(wallet.Caps{PricePerGPUHour: "1", PerLease: "1", PerDay: "0.009", PerPayee: "1"}, stallOptions)
	for i := range uint64(10) {
		s.Offer.Extra.WithdrawDelay = 900 + i
		var capped *channel.CapError
		if _, err := s.get(x); !errors.As(err, &capped) || !errors.Is(err, wallet.ErrDeposit) {
			t.Fatal(err)
		}
	}
	known, err := x.payer.Channels(t.Context())
	all, err2 := x.accounts().List(t.Context())
	if len(known) != 0 || len(all) != 0 || len(s.Paid) != 0 {
		t.Errorf("%d channels, %d accounts, %d payments, %v", len(known), len(all), len(s.Paid), errors.Join(err, err2))
	}
}

// TestX402CaughtServerIsNotPaidElsewhere: a server that was caught is not paid at another payee, nor over another path, until
// the channel was left. Its payee, whose signature proves nothing of it, is paid at another site, and rented from: anybody can
// name it in his 402.
func TestX402CaughtServerIsNotPaidElsewhere(t *testing.T) {
	s := newStall(t, testrig.NewX402Market(t))
	x := s.client(stallCaps, stallOptions)
	s.buy(x)
	s.Receipt = func(r *x402.SettleResponse) { r.ChargedAmount = ptr(wireUnits(testrig.SellerPrice + 1)) }
	var d *wallet.Dispute
	if _, err := s.get(x); !errors.As(err, &d) {
		t.Fatal(err)
	}
	s.Receipt = nil
	paid, honest := len(s.Paid), s.Offer
	elsewhere := httptest.NewServer(s)
	defer elsewhere.Close()
	try := func(name, url string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := x.Client().Do(req)
		if !errors.As(err, &d) || len(s.Paid) != paid {
			t.Errorf("%s: %v, %v", name, resp, err)
		}
	}
	s.Offer.Extra.WithdrawDelay++
	try("other terms", s.Server.URL)
	s.Offer = honest
	s.Offer.PayTo[0]++
	s.Offer.Extra.ReceiverAuthorizer = s.Offer.PayTo
	try("another payee", s.Server.URL+"/other")
	s.Offer = honest
	try("with its own payee again", s.Server.URL)
	s.Base, s.Newest = 0, nil // there it is paid from another channel
	if resp, err := x.Client().Get(elsewhere.URL); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("its payee elsewhere: %v, %v", resp, err)
	}
	if err := x.w.Vet(t.Context(), common.Address(honest.PayTo), "http://elsewhere"); err != nil {
		t.Errorf("a rental of its payee elsewhere: %v", err)
	}
	if err := x.w.Vet(t.Context(), common.Address{1}, peer.Site(parsed(t, s.Server.URL))); !errors.As(err, &d) {
		t.Errorf("a rental there: %v", err)
	}
	other := newStall(t, s.Market)
	other.wallet = nil
	if resp, err := x.Client().Get(other.Server.URL); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("somebody else: %v, %v", resp, err)
	}
}

func parsed(t *testing.T, address string) *url.URL {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// TestX402ClientsOfOneRenterTakeTurns: two clients of one renter share its channels: no deposit is made twice and nothing is
// reported lost.
func TestX402ClientsOfOneRenterTakeTurns(t *testing.T) {
	s := newStall(t, testrig.NewX402Market(t))
	first := s.client(stallCaps, stallOptions)
	second, err := New(t.Context(), s.wallet, stallOptions)
	if err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for i := range 16 {
		wait.Go(func() {
			x := []*Client{first, second}[i%2]
			if resp, err := s.get(x); err != nil || resp.StatusCode != http.StatusOK {
				t.Errorf("%v, %v", resp, err)
			}
		})
	}
	wait.Wait()
	deposits := 0
	for _, p := range s.Paid {
		deposits += count(p.Payload.Deposit != nil)
	}
	if c := s.only(first); deposits != 1 || c.Charged.Uint64() != 16*testrig.SellerCharge || c.Deposit.Uint64() != testrig.SellerDeposit {
		t.Errorf("%d deposits, %+v", deposits, c)
	}
}

// ahead is an endpoint whose blocks are from the future, or that does not say when they are from.
type ahead struct {
	chain.Backend
	by     time.Duration
	silent bool
}

func (a *ahead) HeaderByNumber(ctx context.Context, n *big.Int) (*types.Header, error) {
	if a.silent {
		return nil, chain.ErrUnreachable
	}
	head, err := a.Backend.HeaderByNumber(ctx, n)
	if err == nil {
		head = types.CopyHeader(head)
		head.Time += uint64(a.by / time.Second)
	}
	return head, err
}

// TestX402LyingClock: an endpoint that lies about the time, and a clock of our own that is wrong, have no deposit signed that
// is good for long, and none beside one that is still good. One that does not say the time has none signed.
func TestX402LyingClock(t *testing.T) {
	const years = 10 * 365 * 24 * time.Hour
	s := newStall(t, testrig.NewX402Market(t))
	x := s.client(stallCaps, stallOptions)
	lying := &ahead{Backend: x.w.Backend, by: years}
	x.w.Backend = lying
	for _, lying.by = range []time.Duration{years, -24 * time.Hour} { // the latter is a clock of ours that is a day ahead, too
		if _, err := s.get(x); !errors.Is(err, chain.ErrClock) || len(s.Paid) != 0 {
			t.Errorf("%s: %v, %d payments", lying.by, err, len(s.Paid))
		}
	}
	lying.by, lying.silent = 0, true
	if _, err := s.get(x); !errors.Is(err, chain.ErrUnreachable) || len(s.Paid) != 0 {
		t.Errorf("an endpoint that does not say the time: %v, %d payments", err, len(s.Paid))
	}
	lying.silent = false
	s.Instead = func(_ *testrig.Seller, w http.ResponseWriter, _ x402.PaymentPayload) bool {
		w.WriteHeader(http.StatusBadGateway)
		return true
	}
	for _, lying.by = range []time.Duration{0, time.Hour, years, years} {
		if resp, err := s.get(x); err != nil || resp.StatusCode != http.StatusBadGateway {
			t.Fatal(resp, err)
		}
	}
	latest := time.Now().Add(5*time.Minute + 2*time.Minute).Unix()
	for i, p := range s.Paid {
		if d := p.Payload.Deposit; d == nil || *d != *s.Paid[0].Payload.Deposit || int64(d.Authorization.ValidBefore) > latest {
			t.Errorf("payment %d: %+v", i, d)
		}
	}
}

// gift puts money of somebody else into a channel, by writing what the contract would keep of it.
func gift(t *testing.T, net *chaintest.Chain, contract *chain.BatchSettlement, id common.Hash, amount uint64) {
	t.Helper()
	net.Mint(t, channel.BatchSettlementEscrow, amount)
	rewrite(t, net, contract, id, 16, amount, func(v channel.ChainView) uint256.Int { return v.Deposit })
}

// rewrite adds an amount to what the contract keeps of a channel, at so many bytes of a word.
func rewrite(t *testing.T, net *chaintest.Chain, contract *chain.BatchSettlement, id common.Hash, at int, amount uint64, of func(channel.ChainView) uint256.Int) {
	t.Helper()
	read := func() uint64 {
		s, err := contract.State(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		v := of(s.View)
		return v.Uint64()
	}
	before := read()
	for slot := range byte(20) {
		key := crypto.Keccak256Hash(id[:], common.Hash{31: slot}.Bytes())
		var word common.Hash
		net.RPC(t, &word, "eth_getStorageAt", channel.BatchSettlementEscrow, key, "latest")
		given := word
		kept := new(big.Int).SetBytes(word[at : at+16])
		kept.Add(kept, new(big.Int).SetUint64(amount)).FillBytes(given[at : at+16])
		net.RPC(t, nil, "anvil_setStorageAt", channel.BatchSettlementEscrow, key, given)
		if read() == before+amount {
			return
		}
		net.RPC(t, nil, "anvil_setStorageAt", channel.BatchSettlementEscrow, key, word)
	}
	t.Fatal("the contract keeps it somewhere else")
}

// TestX402FalseClaimIsNotSignedFor: a renter has lost its database, and its endpoint says that most of a channel was claimed.
// Nothing above what was signed before is signed on that word alone, whatever the server says; a server that shows no
// voucher of ours is paid on where a second endpoint says the same.
func TestX402FalseClaimIsNotSignedFor(t *testing.T) {
	const claim = 6000
	m := testrig.NewX402Market(t)
	second := badrpc.New(t, m.URL)
	for name, row := range map[string]struct {
		shows, two bool
		most       uint64 // that is signed
	}{
		"it shows our voucher": {true, false, 2*testrig.SellerCharge + testrig.SellerPrice},
		"it shows none":        {false, false, testrig.SellerPrice},
		"two endpoints":        {false, true, claim + testrig.SellerPrice},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStall(t, m)
			s.Payer = m.Newcomer(t)
			x := s.client(stallCaps, stallOptions)
			for range 3 {
				s.buy(x)
			}
			rewrite(t, m.Chain, s.Contract, s.only(x).ID, 0, claim, func(v channel.ChainView) uint256.Int { return v.Settled })
			s.database, s.Paid = filepath.Join(t.TempDir(), "new.db"), nil
			if !row.shows {
				s.Base, s.Newest = claim, nil
			}
			x = s.client(stallCaps, stallOptions)
			if row.two {
				var err error
				if x.w.Backend, err = chain.Connect(t.Context(), m.URL+","+second.URL, nil); err == nil {
					x.escrow, err = chain.NewBatchSettlement(t.Context(), x.w.Backend)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				resp, err := s.get(x)
				if err != nil {
					t.Fatal(err)
				}
				if served := resp.StatusCode == http.StatusOK; served != row.two {
					t.Errorf("served: %t", served)
				}
				for _, p := range s.Paid {
					if v := p.Payload.Voucher.MaxClaimableAmount; v.Uint64() > row.most {
						t.Errorf("%s was signed, at most %d may be", v.Dec(), row.most)
					}
				}
				row.most += testrig.SellerCharge
			}
		})
	}
}

// TestX402LostDatabase: with a new database, under caps that the old channel alone is above, the next request is served at
// once, reports nothing lost and deposits nothing, whether the server claimed or not and whoever deposited.
func TestX402LostDatabase(t *testing.T) {
	m := testrig.NewX402Market(t)
	for _, row := range []struct {
		name   string
		bought int
		claim  bool
		gift   uint64
	}{
		{"one answer", 1, false, 0},
		{"some answers", 5, false, 0},
		{"some answers, claimed", 5, true, 0},
		{"a stranger deposited", 5, false, 100_000},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newStall(t, m)
			s.Payer = m.Newcomer(t)
			x := s.client(stallCaps, stallOptions)
			for range row.bought {
				s.buy(x)
			}
			c := s.only(x)
			if row.claim {
				s.Claim(c.Terms)
			}
			if row.gift > 0 {
				gift(t, s.Chain, s.Contract, c.ID, row.gift)
			}
			s.database = filepath.Join(t.TempDir(), "new.db")
			x = s.client(wallet.Caps{PricePerGPUHour: "1", PerLease: "0.009", PerDay: "0.0025", PerPayee: "0.009"}, stallOptions)
			s.buy(x)
			s.buy(x)
			got := s.only(x)
			if want := uint64(row.bought+2) * testrig.SellerCharge; got.Charged.Uint64() != want || got.Signed.Uint64() != want+testrig.SellerPrice-testrig.SellerCharge {
				t.Errorf("%+v, want %d charged", got, want)
			}
			if got.Deposit.Uint64() != testrig.SellerDeposit+row.gift || s.Tokens(t, s.PayerAddress()) != testrig.Thousand-testrig.SellerDeposit {
				t.Errorf("deposited anew: %+v", got)
			}
		})
	}
}

// TestX402StalledRefusal: a 402 whose body never ends does not hold the channel's turn.
func TestX402StalledRefusal(t *testing.T) {
	s := newStall(t, testrig.NewX402Market(t))
	x := s.client(stallCaps, stallOptions)
	s.buy(x)
	done := make(chan struct{})
	s.Server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := x402.ParsePaymentPayload(r.Header)
		if paid := err == nil; !paid {
			s.ServeHTTP(w, r)
			return
		}
		s.Mu.Lock()
		s.Correct(w, testrig.SellerCharge-1, s.Newest)
		s.Mu.Unlock()
		w.(http.Flusher).Flush()
		<-done
	})
	defer close(done)
	ended := make(chan error, 1)
	go func() { _, err := s.get(x); ended <- err }()
	select {
	case <-ended:
	case <-time.After(10 * drainTimeout):
		t.Error("a body that stalls is waited for")
	}
}

// TestX402TakesTheCheapestOffer: of offers that fit, the cheapest is paid, wherever it stands.
func TestX402TakesTheCheapestOffer(t *testing.T) {
	s := newStall(t, testrig.NewX402Market(t))
	x := s.client(stallCaps, stallOptions)
	dear, cheap, foreign := s.Offer, s.Offer, s.Offer
	cheap.Amount, foreign.Amount, foreign.Network = wireUnits(testrig.SellerPrice/2), wireUnits(1), 8453
	for i, accepts := range [][]x402.Requirements{{dear, cheap, foreign}, {foreign, cheap, dear}, {cheap, dear}} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.Server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := x.choose(t.Context(), &request{req: req}, x402.PaymentRequired{Accepts: accepts}, x.maxPrice)
		if err != nil || b.offer.Amount != cheap.Amount || b.offer.Network != cheap.Network {
			t.Errorf("%d: %+v, %v", i, b, err)
		}
	}
}

// oldNode is an endpoint that, while it is told to, answers every call to x402's
// contract as of an old block.
type oldNode struct {
	*httptest.Server
	lies atomic.Bool
}

func newOldNode(t *testing.T, target string, block uint64) *oldNode {
	t.Helper()
	p := &oldNode{}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var call struct {
			Version string            `json:"jsonrpc"`
			ID      json.RawMessage   `json:"id"`
			Method  string            `json:"method"`
			Params  []json.RawMessage `json:"params"`
		}
		if err := json.NewDecoder(r.Body).Decode(&call); err != nil {
			t.Error(err)
		}
		if p.lies.Load() && call.Method == "eth_call" && len(call.Params) > 1 && strings.Contains(strings.ToLower(string(call.Params[0])), strings.ToLower(channel.BatchSettlementEscrow.Hex())) {
			call.Params[1] = json.RawMessage(fmt.Sprintf(`"0x%x"`, block))
		}
		body, err := json.Marshal(call)
		if err != nil {
			t.Error(err)
		}
		resp, err := http.Post(target, "application/json", bytes.NewReader(body))
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.Copy(w, resp.Body)
	}))
	t.Cleanup(p.Close)
	return p
}

// TestX402LowerViewOfOneEndpoint: of two endpoints, the first says that a channel holds nothing of what was deposited. No second
// deposit is signed on its word alone: not where the server says the same, not once a deposit that was kept back has ended,
// and no other channel is opened in its place.
func TestX402LowerViewOfOneEndpoint(t *testing.T) {
	for _, name := range []string{"drained", "expired", "another channel"} {
		t.Run(name, func(t *testing.T) {
			m := testrig.NewX402Market(t)
			head, err := m.Backend.BlockNumber(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			lying := newOldNode(t, m.URL, head)
			s := newStall(t, m)
			x := s.client(wallet.Caps{PricePerGPUHour: "1", PerLease: "0.015", PerDay: "1", PerPayee: "1"}, stallOptions)
			if x.w.Backend, err = chain.Connect(t.Context(), lying.URL+","+m.URL, nil); err != nil {
				t.Fatal(err)
			}
			if x.escrow, err = chain.NewBatchSettlement(t.Context(), x.w.Backend); err != nil {
				t.Fatal(err)
			}
			if x.w.Token, err = chain.NewToken(t.Context(), x.w.Backend, m.Token); err != nil {
				t.Fatal(err)
			}
			x.w.Alone = false
			var kept x402.PaymentPayload
			keeps := func(_ *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
				kept = p
				w.WriteHeader(http.StatusBadGateway)
				return true
			}
			switch name {
			case "drained":
				s.buy(x)
				s.Instead = func(s *testrig.Seller, w http.ResponseWriter, p x402.PaymentPayload) bool {
					s.Refuse(w, string(x402.CodeCumulativeExceedsBalance), s.Offer)
					return true
				}
			case "expired":
				s.Instead = keeps
				if _, err := s.get(x); err != nil {
					t.Fatal(err)
				}
				s.Instead = nil
				s.Bank(kept)
				const later = 20 * time.Minute
				m.AdvanceTime(t, later)
				m.Mine(t, 1)
				x.w.Now = func() time.Time { return time.Now().Add(later) }
			case "another channel":
				s.buy(x)
				s.Offer.Extra.WithdrawDelay++
				s.Base, s.Newest = 0, nil
			}
			lying.lies.Store(true)
			for range 3 {
				_, err := s.get(x)
				t.Log(err)
			}
			deposits := make(map[x402.Hash]bool)
			for _, p := range s.Paid {
				if d := p.Payload.Deposit; d != nil {
					deposits[d.Authorization.Salt] = true
				}
			}
			if len(deposits) != 1 {
				t.Errorf("%d deposits were signed", len(deposits))
			}
			lying.lies.Store(false)
			if all, err := x.Channels(t.Context()); err != nil || len(all) != 1 || all[0].Deposit.Uint64() != testrig.SellerDeposit {
				t.Errorf("%+v, %v", all, err)
			}
		})
	}
}

// TestX402DeniedDepositsCountForTheDay: a server keeps each deposit back until it has ended, or the only endpoint says so. What
// was signed for it stays within the caps for the day.
func TestX402DeniedDepositsCountForTheDay(t *testing.T) {
	for name, change := range map[string]func(*wallet.Caps){
		"PerLease": func(c *wallet.Caps) { c.PerLease = "0.025" },
		"PerDay":   func(c *wallet.Caps) { c.PerDay = "0.025" },
		"PerPayee": func(c *wallet.Caps) { c.PerPayee = "0.025" },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStall(t, testrig.NewX402Market(t))
			s.PassToMidnight(t)
			caps := wallet.Caps{PricePerGPUHour: "1000", PerLease: "100", PerDay: "100", PerPayee: "100"}
			change(&caps)
			x := s.client(caps, stallOptions)
			x.w.Now, x.payer.Now, x.w.ClockOff = s.Now, s.Now, 10_000*time.Hour
			s.Instead = func(_ *testrig.Seller, w http.ResponseWriter, _ x402.PaymentPayload) bool {
				w.WriteHeader(http.StatusBadGateway)
				return true
			}
			signed := func(rounds int) int {
				for range rounds {
					_, _ = s.get(x)
					s.Pass(t, 10*time.Minute)
				}
				distinct := make(map[x402.Deposit]bool)
				for _, p := range s.Paid {
					distinct[*p.Payload.Deposit] = true
				}
				return len(distinct)
			}
			if got := signed(6); got != 2 {
				t.Errorf("%d deposits were signed in a day, there is room for 2", got)
			}
			s.PassToMidnight(t)
			if got := signed(6); got != 4 {
				t.Errorf("%d deposits were signed in two days, there is room for 4", got)
			}
		})
	}
}
