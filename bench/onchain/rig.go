package onchain

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"math/big"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/bindings"
	"github.com/gpupay/gpupay/bindings/testtoken"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/sdk/chain"
)

// stage is what chaintest wants of a test, outside of one: what is fatal ends measure with an error.
type stage struct {
	testing.TB
	ctx     context.Context
	cleanup []func()
}

type fatal struct{ error }

func (s *stage) Helper()                           {}
func (s *stage) Context() context.Context          { return s.ctx }
func (s *stage) Cleanup(f func())                  { s.cleanup = append(s.cleanup, f) }
func (s *stage) Fatal(args ...any)                 { panic(fatal{errors.New(fmt.Sprint(args...))}) }
func (s *stage) Fatalf(format string, args ...any) { panic(fatal{fmt.Errorf(format, args...)}) }
func (s *stage) Skip(args ...any)                  { s.Fatal(args...) }

// perform runs f on a stage, and cleans up.
func perform(ctx context.Context, f func(t *stage)) (err error) {
	s := &stage{ctx: ctx}
	defer func() {
		for i := range s.cleanup {
			s.cleanup[len(s.cleanup)-1-i]()
		}
		if r := recover(); r != nil {
			failed, ok := r.(fatal)
			if !ok {
				panic(r)
			}
			err = failed.error
		}
	}()
	f(s)
	return nil
}

const deposit = 1_000_000_000 // 1,000 dollars

// A rig is a chain with one payee, and payers who each have one channel.
type rig struct {
	*chaintest.Chain
	t      *stage
	escrow *chain.Escrow
	abi    *bindings.ChannelEscrow
	pack   func([]channel.State) []byte // lays out a batch's rows; nil for how sdk/chain does
	x402   *chain.BatchSettlement
	token  *testtoken.TestToken
	domain common.Hash // the token's
	payee  *channel.Key
	people int
}

func newRig(t *stage) *rig {
	c := chaintest.Anvil(t, "--hardfork", "osaka")
	c.PlaceBatchSettlement(t)
	r := &rig{Chain: c, t: t, abi: bindings.NewChannelEscrow(), token: testtoken.NewTestToken(), payee: channel.NewKey(c.Keys[1])}
	var err error
	if r.escrow, err = chain.NewEscrow(t.ctx, c.Backend, c.Escrow); err != nil {
		t.Fatal(err)
	}
	if r.x402, err = chain.NewBatchSettlement(t.ctx, c.Backend); err != nil {
		t.Fatal(err)
	}
	token, err := chain.NewToken(t.ctx, c.Backend, c.Token)
	if err != nil {
		t.Fatal(err)
	}
	if r.domain, err = token.DomainSeparator(t.ctx); err != nil {
		t.Fatal(err)
	}
	c.Mint(t, r.payee.Address(), 1) // no balance here begins or ends at zero
	return r
}

// person is somebody with coins and tokens, who let the escrow take some of them: more than it will.
func (r *rig) person(allowance *big.Int) *ecdsa.PrivateKey {
	r.people++
	key, err := crypto.ToECDSA(crypto.Keccak256(fmt.Appendf(nil, "payer %d", r.people)))
	if err != nil {
		r.t.Fatal(err)
	}
	who := crypto.PubkeyToAddress(key.PublicKey)
	r.RPC(r.t, nil, "anvil_setBalance", who, (*hexutil.Big)(big.NewInt(1e18)))
	r.Mint(r.t, who, 20*deposit)
	r.do(key, chain.Call{To: r.Token, Data: r.token.PackApprove(r.Escrow, allowance)}, nil)
	return key
}

// do has a transaction mined, and returns what its receipt says it took.
func (r *rig) do(key *ecdsa.PrivateKey, call chain.Call, list types.AccessList) uint64 {
	ctx, cancel := context.WithTimeout(r.t.ctx, 30*time.Second)
	defer cancel()
	nonce, err := r.Backend.PendingNonceAt(ctx, crypto.PubkeyToAddress(key.PublicKey))
	if err != nil {
		r.t.Fatal(err)
	}
	id := new(big.Int).SetUint64(r.escrow.ChainID())
	tx := types.MustSignNewTx(key, types.LatestSignerForChainID(id), &types.DynamicFeeTx{
		ChainID: id, Nonce: nonce, To: &call.To, Data: call.Data, Gas: 16_000_000, AccessList: list,
		GasFeeCap: big.NewInt(5_000_000_000), GasTipCap: big.NewInt(1),
	})
	if err := r.Backend.SendTransaction(ctx, tx); err != nil {
		r.t.Fatalf("%s: %w", call, err)
	}
	for {
		receipt, err := r.Backend.TransactionReceipt(ctx, tx.Hash())
		switch {
		case err == nil && receipt.Status == types.ReceiptStatusSuccessful && len(r.escrow.Skipped(receipt)) == 0:
			return receipt.GasUsed
		case err == nil:
			r.t.Fatalf("%s reverted, or a row of it was skipped", call)
		case !errors.Is(err, ethereum.NotFound) || ctx.Err() != nil:
			r.t.Fatalf("%s: %w", call, err)
		}
		time.Sleep(time.Millisecond)
	}
}

// pays signs the next 1.23 dollars.
func (r *rig) pays(key *ecdsa.PrivateKey, s *channel.State, domain channel.Domain) {
	s.Settled = s.Accepted
	s.Accepted.AddUint64(&s.Accepted, 1_234_567)
	s.Spent = s.Accepted
	v, err := domain.Sign(r.t.ctx, channel.NewKey(key), s.ID, s.Accepted)
	if err != nil {
		r.t.Fatal(err)
	}
	s.Signature = v.Signature
}

func amount(n uint64) uint256.Int { return *uint256.NewInt(n) }
