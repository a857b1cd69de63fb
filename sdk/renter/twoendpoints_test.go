package renter_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/bindings"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// word sets the last words of an answer to a call whose data begins with a selector: the n-th from the end to a value.
func word(signature string, words map[int]uint64) badrpc.Fault {
	return badrpc.About(hexutil.Encode(crypto.Keccak256([]byte(signature))[:4]), func(x *badrpc.Exchange) {
		var out hexutil.Bytes
		if json.Unmarshal(x.Result, &out) != nil {
			return
		}
		for n, value := range words {
			if at := len(out) - 32*n; at >= 0 {
				copy(out[at:], uint256.NewInt(value).PaddedBytes(32))
			}
		}
		badrpc.Says(out)(x)
	})
}

// The fields of a channel, counted from the end of an answer that is one channel.
const (
	fieldDeposit, fieldSettled, fieldRequested, fieldOpen, fieldFinalized = 6, 5, 4, 2, 1
	channelsCall                                                          = "channels(bytes32[])"
)

// A falsehood is what one of two endpoints says of a read that money hangs on.
type falsehood struct {
	name, method string
	fault        badrpc.Fault
}

var falsehoods = []falsehood{
	{"the channel is over", "eth_call", word(channelsCall, map[int]uint64{fieldOpen: 0, fieldFinalized: 1})},
	{"the channel is not there", "eth_call", word(channelsCall, map[int]uint64{fieldDeposit: 0, fieldSettled: 0, fieldOpen: 0})},
	{"the deposit is lower", "eth_call", word(channelsCall, map[int]uint64{fieldDeposit: 1, fieldSettled: 0})},
	{"the deposit is higher", "eth_call", word(channelsCall, map[int]uint64{fieldDeposit: 1 << 40})},
	{"all is settled", "eth_call", word(channelsCall, map[int]uint64{fieldDeposit: 3_000, fieldSettled: 3_000})},
	{"the authorization is used", "eth_call", word("authorizationState(address,bytes32)", map[int]uint64{1: 1})},
	{"no authorization is used", "eth_call", word("authorizationState(address,bytes32)", map[int]uint64{1: 0})},
	{"the token has other decimals", "eth_call", word("decimals()", map[int]uint64{1: 4})},
	{"the token has another domain", "eth_call", word("DOMAIN_SEPARATOR()", map[int]uint64{1: 1})},
	{"the payer has nothing", "eth_call", word("balanceOf(address)", map[int]uint64{1: 0})},
	{"the grace period is another", "eth_call", word("gracePeriod()", map[int]uint64{1: 900})},
	{"the escrow has other code", "eth_getCode", badrpc.Says(bindings.ChannelEscrowRuntime)},
	{"nothing has code", "eth_getCode", badrpc.Says("0x")},
	{"the chain is far ahead", "eth_blockNumber", badrpc.Says("0xffffffff")},
	{"the chain is at its beginning", "eth_blockNumber", badrpc.Says("0x0")},
	{"it is much later", "eth_getBlockByNumber", badrpc.With("timestamp", "0xfffffff0")},
	{"all calls revert", "eth_call", badrpc.Fail(3, "execution reverted")},
}

// Of a renter's two endpoints the first or the second lies about what it reads, for a while, at any moment of a rental that
// is funded by a transaction or without a coin: no money moves beyond the caps, nothing is lost, what fails says so in one
// line, and the rental ends as if nothing had been.
func TestRenterOfTwoEndpoints(t *testing.T) {
	m := testrig.NewMarket(t)
	var running sync.WaitGroup
	turns := make(chan struct{}, 8) // they mostly wait
	long, turn := os.Getenv(LongEndpoints) == "1", 0
	for _, l := range falsehoods {
		for first := range 2 {
			for i, moment := range moments {
				if !long && (turn+first)%len(moments) != i {
					continue
				}
				gasless := (turn/2+i)%2 == 0
				key := channel.NewKey(m.Newcomer(t))
				payee, err := crypto.GenerateKey()
				if err != nil {
					t.Fatal(err)
				}
				keys := [2]*channel.Key{key, channel.NewKey(payee)}
				for _, k := range keys[btoi(gasless):] {
					m.RPC(t, nil, "anvil_setBalance", k.Address(), "0x56bc75e2d63100000") // 100 coins
				}
				turns <- struct{}{}
				running.Go(func() {
					defer func() { <-turns }()
					t.Run(fmt.Sprintf("%s at %s, endpoint %d, gasless %t", l.name, moment, first+1, gasless), func(t *testing.T) {
						w := newTale(t, m, story{method: l.method, moment: moment, side: "renter", misdeed: misdeed{l.name, func(string) badrpc.Fault { return l.fault }}}, keys)
						w.gasless = gasless
						if w.rpc = w.renter.URL + "," + m.URL; first == 1 {
							w.rpc = m.URL + "," + w.renter.URL
						}
						w.perLease = "0.023" // the deposit and one top-up
						w.tell()
					})
				})
			}
		}
		turn++
	}
	running.Wait()
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// A database keeps how many decimals its token has: an endpoint that says another number is refused, alone too.
func TestDecimalsNeverChange(t *testing.T) {
	m := testrig.NewMarket(t)
	config, bad := behindEndpoint(t, m)
	r := renterrig.Open(t, config)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	bad.On("eth_call", word("decimals()", map[int]uint64{1: 4}))
	if _, err := renter.New(t.Context(), config); !errors.Is(err, wallet.ErrToken) || strings.Contains(err.Error(), "\n") {
		t.Errorf("want one line about the token, got %v", err)
	}
	bad.Heal()
	renterrig.Open(t, config)
}

// A deposit that was seen does not count as lower on one endpoint's word, not even the only one's, until as many blocks lie
// over it as nothing undoes: no top-up passes the cap.
func TestDepositSeenDoesNotFall(t *testing.T) {
	m := testrig.NewMarket(t)
	d := newDrawer(t, m)
	config, bad := behindEndpoint(t, m)
	config.Caps.PerLease = "1"
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), d.Server.URL, renter.Options{Deposit: "1", TopUp: "0.5"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Lease().Detach()
	bad.On("eth_call", word(channelsCall, map[int]uint64{fieldDeposit: 1}))
	look := func() uint64 {
		t.Helper()
		seen, err := l.Lease().Look(t.Context(), 1)
		if err != nil || seen.Deposit != l.Lease().Row.Deposit {
			t.Fatal(seen, err)
		}
		return l.Lease().Row.Deposit.Uint64()
	}
	got, step := look(), l.Lease().Step()
	if got != 1_000_000 || !step.IsZero() {
		t.Errorf("the deposit is %d, and there is room for a top-up", got)
	}
	m.Mine(t, rental.Finality)
	if got := look(); got != 1 {
		t.Errorf("the deposit is %d, and no re-org would bring it back", got)
	}
	bad.Heal()
	if got := look(); got != 1_000_000 {
		t.Errorf("the deposit is %d", got)
	}
}

// The only endpoint says falsely that channels are over, for so long that the books take it for final: whoever leaves them, or
// recovers, finds them on the chain and gets the deposit back.
func TestFinishedIsLookedAtAgain(t *testing.T) {
	m := testrig.NewMarket(t)
	d := newDrawer(t, m)
	config, bad := behindEndpoint(t, m)
	config.Chain.ClockTolerance = time.Hour // each leaving takes the grace period
	r := renterrig.Open(t, config)
	for _, recover := range []bool{false, true} {
		l, err := r.Rent(t.Context(), d.Server.URL, renter.Options{Deposit: "1"})
		if err != nil {
			t.Fatal(err)
		}
		l.Lease().Detach()
		m.Mine(t, rental.Finality+2)
		bad.On("eth_call", word(channelsCall, map[int]uint64{fieldOpen: 0, fieldFinalized: 1}))
		if _, err := l.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		if open, err := r.Rentals(t.Context()); err != nil || len(open) != 0 {
			t.Fatalf("not over in the books: %v, %v", open, err)
		}
		bad.Heal()
		if recover {
			found, err := r.Recover(t.Context(), m.Escrow, 0)
			if err != nil || len(found) != 1 || found[0] != l.ID() {
				t.Errorf("found %v, %v", found, err)
			}
		}
		if l, err = r.Rental(t.Context(), l.ID()); err != nil {
			t.Fatal(err)
		}
		leave(t, m, l)
		if got := m.Tokens(t, r.Address()); got != testrig.Thousand {
			t.Errorf("%d of %d are back", got, testrig.Thousand)
		}
	}
}

// A channel of ours whose vouchers another key signs, and one that an endpoint makes up, keep no channel behind them from
// being found; it is not paid, and its deposit comes back.
func TestRecoverGoesOn(t *testing.T) {
	m := testrig.NewMarket(t)
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	escrow, err := chain.NewEscrow(t.Context(), m.Backend, m.Escrow)
	if err != nil {
		t.Fatal(err)
	}
	var want []common.Hash
	var others *renter.Rental
	var salt common.Hash
	open := func(signer common.Address) common.Hash {
		t.Helper()
		salt[31]++
		terms := channel.Terms{ChainID: escrow.ChainID(), Escrow: m.Escrow, Payer: r.Address(), Payee: m.PayeeAddress(), Token: m.Token, Salt: salt, AuthorizedSigner: signer}
		if err := r.Wallet().Token.Allow(t.Context(), r.Wallet().Sender, m.Escrow, *uint256.NewInt(1_000_000), 1); err != nil {
			t.Fatal(err)
		}
		id, err := r.Wallet().Sender.SubmitAfter(t.Context(), escrow.OpenCall(terms, *uint256.NewInt(1_000_000)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Wallet().Sender.Wait(t.Context(), id, 1); err != nil {
			t.Fatal(err)
		}
		return terms.ID()
	}
	want = append(want, open(common.Address{7}), open(common.Address{}))
	found, err := r.Recover(t.Context(), m.Escrow, 0)
	if err != nil || len(found) != 2 || found[0] != want[0] || found[1] != want[1] {
		t.Fatalf("found %v, %v; want %v", found, err, want)
	}
	if others, err = r.Rental(t.Context(), want[0]); err != nil {
		t.Fatal(err)
	}
	if _, err := others.Lease().Payer.Pay(t.Context(), want[0], *uint256.NewInt(1)); !errors.Is(err, channel.ErrTerms) {
		t.Errorf("a voucher that another key must sign: %v", err)
	}
	leave(t, m, others)
	if got := m.Tokens(t, r.Address()); got != testrig.Thousand-1_000_000 {
		t.Errorf("%d are back", got)
	}
}
