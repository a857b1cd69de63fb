package chain_test

import (
	"context"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/accounts/abi/bind/v2"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/sdk/chain"
)

// failing is an endpoint that answers one question badly: the one at which its countdown comes to zero.
type failing struct {
	chain.Backend
	left    int
	garbage bool // a contract's answer of one byte instead of none
}

var errGone = errors.New("connection reset by peer")

func (f *failing) now() bool {
	f.left--
	return f.left == 0
}

func (f *failing) HeaderByNumber(ctx context.Context, n *big.Int) (*types.Header, error) {
	if f.now() {
		return nil, errGone
	}
	return f.Backend.HeaderByNumber(ctx, n)
}

func (f *failing) CallContract(ctx context.Context, call ethereum.CallMsg, n *big.Int) ([]byte, error) {
	switch {
	case !f.now():
		return f.Backend.CallContract(ctx, call, n)
	case f.garbage:
		return []byte{1}, nil
	}
	return nil, errGone
}

func (f *failing) ChainID(ctx context.Context) (*big.Int, error) {
	if f.now() {
		return nil, errGone
	}
	return f.Backend.ChainID(ctx)
}

// Whichever answer is missing or makes no sense, what is made of the answers is an error, and no zero that somebody
// takes for a time, a grace period or a price.
func TestEveryMissingAnswerIsAnError(t *testing.T) {
	w := newWorld(t)
	optional := map[string]map[int]bool{
		"time":           {2: true},          // the block in the making, which not every node tells of
		"token's domain": {2: true, 3: true}, // its name and symbol as people see them
	}
	for name, ask := range map[string]func(context.Context, chain.Backend) error{
		"escrow": func(ctx context.Context, b chain.Backend) error {
			_, err := chain.NewEscrow(ctx, b, w.Escrow)
			return err
		},
		"time": func(ctx context.Context, b chain.Backend) error {
			_, err := chain.Now(ctx, b)
			return err
		},
		"token's domain": func(ctx context.Context, b chain.Backend) error {
			token, err := chain.NewToken(ctx, b, w.Token)
			if err == nil {
				_, _, err = token.Domain(ctx)
			}
			return err
		},
		"price": func(ctx context.Context, b chain.Backend) error {
			s := &chain.Sender{Backend: b, Key: w.payer, MaxFee: big.NewInt(1e12)}
			_, err := s.GasPrice(ctx)
			return err
		},
	} {
		for _, garbage := range []bool{false, true} {
			asked := &failing{Backend: w.Backend}
			if err := ask(t.Context(), asked); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			for n := 1; n <= -asked.left; n++ {
				if optional[name][n] {
					continue
				}
				bad := &failing{Backend: w.Backend, left: n, garbage: garbage}
				if err := ask(t.Context(), bad); err == nil {
					t.Errorf("%s: without answer %d of %d there is no error (garbage %t)", name, n, -asked.left, garbage)
				}
			}
		}
	}
}

// A database that cannot be read is an error wherever a budget is reckoned by it.
func TestBudgetsNeedTheirBooks(t *testing.T) {
	w := newWorld(t)
	store, db := openStore(t, file(t))
	s := &chain.Sender{Backend: w.Backend, Key: w.payer, Store: store, Poll: 20 * time.Millisecond}
	about := common.Hash{7}
	call := w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1))
	call.Channels = []common.Hash{about}
	send(t, s, call)
	hour := time.Now().Add(-time.Hour)
	if calls, err := s.Newest(t.Context(), about, 5, 0, chain.Approve); err != nil || len(calls) != 1 || calls[0].To != call.To {
		t.Errorf("the newest call is %+v, %v", calls, err)
	}
	if all, err := s.Recent(t.Context(), hour, chain.Approve); err != nil || len(all) != 1 {
		t.Errorf("recent are %+v, %v", all, err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for name, ask := range map[string]func() error{
		"newest": func() error { _, err := s.Newest(t.Context(), about, 5, 0, chain.Approve); return err },
		"recent": func() error { _, err := s.Recent(t.Context(), hour, chain.Approve); return err },
		"coin":   func() error { _, err := s.Coin(t.Context()); return err },
		"wasted": func() error { _, _, err := s.Wasted(t.Context(), hour, chain.Approve); return err },
		"sponsored": func() error {
			_, _, err := s.Sponsored(t.Context(), hour, time.Now(), w.payer.Address(), chain.Approve)
			return err
		},
		"in flight": func() error { _, err := s.InFlight(t.Context()); return err },
	} {
		if ask() == nil {
			t.Errorf("%s: a closed database is no error", name)
		}
	}
}

// Two endpoints read at a block's hash as one does.
func TestEndpointsReadAtAHash(t *testing.T) {
	w := newWorld(t)
	backend, _, _, _ := w.pair(t)
	head, err := backend.HeaderByNumber(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	code, err := backend.(bind.BlockHashContractCaller).CodeAtHash(t.Context(), w.Escrow, head.Hash())
	if err != nil || len(code) == 0 {
		t.Errorf("%d bytes of code, %v", len(code), err)
	}
}

// A node that answers for fewer channels than it was asked about is not believed for any.
func TestShortMulticall(t *testing.T) {
	d := newDesk(t)
	terms := d.fund(1, 1000)
	bad := badrpc.New(t, d.URL)
	client, err := chain.Dial(t.Context(), bad.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	contract, err := chain.NewBatchSettlement(t.Context(), client)
	if err != nil {
		t.Fatal(err)
	}
	none := make(hexutil.Bytes, 64)
	none[31] = 32 // an array of no bytes
	bad.On("eth_call", badrpc.Says(none))
	if views, _, err := contract.Confirmed(t.Context(), []common.Hash{terms.ID()}, 1); err == nil {
		t.Errorf("it is believed to be %+v", views)
	}
}

// A replacement is with the node as soon as it is in the outbox.
func TestReplacementIsSentAtOnce(t *testing.T) {
	w := newWorld(t)
	s, bad, _ := w.badSender(t)
	s.Resend = time.Hour
	w.Automine(t, false)
	bad.Instead("eth_sendRawTransaction", badrpc.Fail(-32000, "out of order"))
	if _, err := s.Submit(t.Context(), w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1))); err != nil {
		t.Fatal(err)
	}
	bad.Heal()
	within(t, "a replacement", func() bool {
		w.looks(t, s, 1)
		return len(versions(t, s)) > 1
	})
	hash := versions(t, s)[1].Signed.Hash()
	if _, _, err := w.Backend.TransactionByHash(t.Context(), hash); err != nil {
		t.Errorf("the node has not heard of %s: %v", hash, err)
	}
}
