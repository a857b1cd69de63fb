package onchain

import (
	"crypto/ecdsa"
	"encoding/binary"
	"math/big"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/math"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/sdk/chain"
)

// An account is a channel and the key that signs for it.
type account struct {
	key   *ecdsa.PrivateKey
	state channel.State
}

// Figures is what operations took, in gas. OpenAll takes all of an allowance, as a Renter gives it.
type Figures struct {
	Open, OpenUnlimited, OpenAll, TopUp, Settle, Close, RequestClose, Withdraw uint64
	Payout                                                                     uint64         // where settling does not pay
	Batch                                                                      map[int]uint64 // by its channels
}

// marginal is what each channel more takes in a batch, between two sizes.
func (f Figures) marginal(small, large int) uint64 {
	return (f.Batch[large] - f.Batch[small]) / uint64(large-small)
}

func salt(n int) (s common.Hash) {
	binary.BigEndian.PutUint32(s[28:], uint32(n)|1<<31)
	return s
}

// limited is an allowance that stays above zero and is written at every deposit.
var limited = big.NewInt(9 * deposit)

func (r *rig) terms(key *ecdsa.PrivateKey, salt common.Hash) channel.Terms {
	return channel.Terms{ChainID: r.escrow.ChainID(), Escrow: r.Escrow, Payer: crypto.PubkeyToAddress(key.PublicKey), Payee: r.payee.Address(), Token: r.Token, Salt: salt}
}

// opened is n channels of n payers, each claimed once before; shape may change the terms.
func (r *rig) opened(n int, shape func(*channel.Terms)) []*account {
	var all []*account
	for range n {
		key := r.person(limited)
		t := r.terms(key, salt(r.people))
		if shape != nil {
			shape(&t)
		}
		r.do(key, r.escrow.OpenCall(t, amount(deposit)), nil)
		all = append(all, &account{key, channel.State{ID: t.ID(), Terms: t, Deposit: amount(deposit)}})
	}
	r.batch(all, nil)
	return all
}

// batch settles a new voucher of each channel, as a Settler would.
func (r *rig) batch(all []*account, list types.AccessList) uint64 {
	states := make([]channel.State, len(all))
	for i, a := range all {
		r.pays(a.key, &a.state, r.escrow.Domain())
		states[i] = a.state
	}
	call := r.settlement(states)
	if r.pack != nil {
		call.Data = r.abi.PackSettleBatch(r.payee.Address(), r.Token, r.pack(states))
	}
	return r.do(r.Keys[2], call, list)
}

func (r *rig) settlement(states []channel.State) chain.Call {
	call, err := r.escrow.SettleBatchCall(r.payee.Address(), r.Token, states)
	if err != nil {
		r.t.Fatal(err)
	}
	return call
}

// opens is what it takes somebody new to open a channel, with that allowance.
func (r *rig) opens(allowance *big.Int, list func(chain.Call, *ecdsa.PrivateKey) types.AccessList) uint64 {
	key := r.person(allowance)
	call := r.escrow.OpenCall(r.terms(key, salt(9_999)), amount(deposit))
	if list == nil {
		return r.do(key, call, nil)
	}
	return r.do(key, call, list(call, key))
}

// ours measures the escrow; most bounds a batch.
func (r *rig) ours(most int) Figures {
	f := Figures{Batch: make(map[int]uint64)}
	r.opened(1, nil) // stays, so that the escrow's balance never is zero
	a := r.opened(1, nil)[0]
	f.TopUp = r.do(a.key, r.escrow.TopUpCall(a.state.Terms, amount(deposit)), nil)
	r.pays(a.key, &a.state, r.escrow.Domain())
	f.Settle = r.do(r.Keys[2], r.escrow.SettleCall(a.state.Terms, a.state.Accepted, a.state.Signature), nil)
	r.pays(a.key, &a.state, r.escrow.Domain())
	f.Close = r.do(r.Keys[1], r.escrow.CloseCall(a.state.Terms, a.state.Accepted, a.state.Signature), nil)
	b := r.opened(1, nil)[0]
	f.RequestClose = r.do(b.key, r.escrow.RequestCloseCall(b.state.Terms), nil)
	r.AdvanceTime(r.t, chaintest.Grace)
	f.Withdraw = r.do(r.Keys[2], r.escrow.WithdrawCall(b.state.Terms), nil)
	f.Open, f.OpenUnlimited, f.OpenAll = r.opens(limited, nil), r.opens(math.MaxBig256, nil), r.opens(big.NewInt(deposit), nil)
	all := r.opened(most, nil)
	for _, n := range sizes(most) {
		f.Batch[n] = r.batch(all[:n], nil)
	}
	return f
}

func sizes(most int) (all []int) {
	for _, n := range []int{1, 2, 5, 10, 20, 50, 100} {
		if n <= most {
			all = append(all, n)
		}
	}
	return all
}

// standIn measures our stand-in for x402's contract: the deposit by ERC-3009, claims, payout.
func (r *rig) standIn(most int) Figures {
	f := Figures{Batch: make(map[int]uint64)}
	var all []*account
	for range most {
		key := r.person(limited)
		payer := crypto.PubkeyToAddress(key.PublicKey)
		t := channel.Terms{
			Scheme: channel.BatchSettlement, ChainID: r.x402.ChainID(), Escrow: r.x402.Address(), Payer: payer, AuthorizedSigner: payer,
			Payee: r.payee.Address(), PayeeAuthorizer: r.payee.Address(), Token: r.Token, WithdrawDelay: 900, Salt: salt(r.people),
		}
		f.Open = r.deposits(key, t, 1)
		if len(all) == 0 {
			f.TopUp = r.deposits(key, t, 2)
		}
		all = append(all, &account{key, channel.State{ID: t.ID(), Terms: t, Deposit: amount(deposit)}})
	}
	r.claim(all)
	r.do(r.Keys[2], r.x402.SettleCall(r.payee.Address(), r.Token), nil)
	f.Settle = r.claim(all[:1])
	f.Payout = r.do(r.Keys[2], r.x402.SettleCall(r.payee.Address(), r.Token), nil)
	for _, n := range sizes(most) {
		f.Batch[n] = r.claim(all[:n]) + r.do(r.Keys[2], r.x402.SettleCall(r.payee.Address(), r.Token), nil)
	}
	return f
}

func (r *rig) deposits(key *ecdsa.PrivateKey, t channel.Terms, n byte) uint64 {
	salt := common.BytesToHash([]byte{n})
	a, err := chain.SignAuthorization(r.t.ctx, channel.NewKey(key), r.domain, channel.Authorization{
		From: t.Payer, To: channel.BatchSettlementCollector, Value: amount(deposit), ValidBefore: 1 << 40, Nonce: channel.DepositNonce(t.ID(), salt),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return r.do(r.Keys[2], r.x402.DepositCall(t, salt, a), nil)
}

func (r *rig) claim(all []*account) uint64 {
	states := make([]channel.State, len(all))
	for i, a := range all {
		r.pays(a.key, &a.state, r.x402.Domain())
		states[i] = a.state
	}
	call, err := r.x402.SettlementCall(r.t.ctx, states)
	if err != nil {
		r.t.Fatal(err)
	}
	return r.do(r.Keys[1], call, nil)
}
