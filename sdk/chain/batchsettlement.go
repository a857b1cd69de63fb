package chain

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/bindings/batchsettlement"
	"github.com/gpupay/gpupay/channel"
)

// BatchSettlement is x402's settlement contract, checked when it was made. It is safe for concurrent use.
//
// It differs from our escrow in what a payee must know. A claim is made by the payee or its authorizer and by nobody
// else, all of its rows happen or none, and it moves no money: a payout does. A channel never ends: what it holds falls
// by refunds and withdrawals and rises by deposits, and a deposit cancels no withdrawal. A payer that is its own signer
// and has code, which any account can give itself at any time, is asked by ERC-1271 and nothing else: such a payer can
// take its vouchers back, so a payee should want channels with an authorized signer.
type BatchSettlement struct {
	// Past are keys that sign claims and refunds of the channels that name them as the payee's authorizer, so that somebody
	// else can send those: a payee's from before it took another one. Set it before first use; nil: there are none.
	Past []channel.Signer

	recorder
	backend Backend
	abi     *batchsettlement.BatchSettlement
	chainID uint64
	domain  channel.Domain
}

var _ Contract = (*BatchSettlement)(nil)

// NewBatchSettlement checks that the contract is on this chain. The error is one line and wraps ErrUnreachable,
// ErrNoContract or ErrNotEscrow.
func NewBatchSettlement(ctx context.Context, backend Backend) (*BatchSettlement, error) {
	id, err := chainID(ctx, backend)
	if err != nil {
		return nil, err
	}
	b := &BatchSettlement{
		backend: Agreed(backend),
		abi:     batchsettlement.NewBatchSettlement(),
		chainID: id,
		domain:  channel.BatchSettlement.Domain(id, channel.BatchSettlementEscrow),
	}
	for _, address := range []common.Address{channel.BatchSettlementEscrow, channel.BatchSettlementCollector} {
		code, err := b.backend.CodeAt(ctx, address, nil)
		if err != nil {
			return nil, Unread("the code of "+address.String(), err)
		}
		if len(code) == 0 {
			return nil, fmt.Errorf("%w: %s on chain %d; x402's batch-settlement is not on this chain, leave it out of what is offered", ErrNoContract, address, id)
		}
	}
	if err := b.identify(ctx); err != nil {
		return nil, err
	}
	b.backend = backend
	return b, nil
}

// identify has the contract compute the digest of a voucher: only one whose domain and voucher type are ours comes to the same.
func (b *BatchSettlement) identify(ctx context.Context) error {
	id, most := common.Hash{1}, uint256.NewInt(2)
	out, err := b.at(nil)(ctx, b.abi.PackGetVoucherDigest(id, most.ToBig()))
	if err == nil {
		var digest common.Hash
		if digest, err = b.abi.UnpackGetVoucherDigest(out); err == nil && digest == b.domain.Digest(id, most) {
			return nil
		}
	}
	if err == nil {
		err = errors.New("vouchers are signed otherwise in it")
	}
	if isTransport(err) {
		return fmt.Errorf("reading the contract at %s: %w", channel.BatchSettlementEscrow, err)
	}
	return fmt.Errorf("%w: %s on chain %d: %w", ErrNotEscrow, channel.BatchSettlementEscrow, b.chainID, err)
}

// ChainID is the chain the contract lives on.
func (b *BatchSettlement) ChainID() uint64 { return b.chainID }

// Address is the contract's address.
func (b *BatchSettlement) Address() common.Address { return channel.BatchSettlementEscrow }

// Grace is the shortest withdrawal delay that a channel can have; each has its own (channel.Terms.WithdrawDelay).
func (b *BatchSettlement) Grace() time.Duration { return channel.MinWithdrawDelay }

// Domain is what vouchers for this contract are signed under.
func (b *BatchSettlement) Domain() channel.Domain { return b.domain }

// Backend is the chain behind the contract.
func (b *BatchSettlement) Backend() Backend { return b.backend }

// Simulate runs a call as from would send it, without sending it. What the contract refuses is a *Revert.
func (b *BatchSettlement) Simulate(ctx context.Context, from common.Address, call Call) error {
	return simulate(ctx, b.backend, from, call)
}

// touching are the events that have a channel first and say that something about it changed. The contract's others come
// beside one of these, or are about a payee.
var touching = func() []common.Hash {
	var topics []common.Hash
	for _, name := range []string{"Deposited", "Claimed", "Refunded", "WithdrawInitiated", "WithdrawFinalized"} {
		topics = append(topics, settlementABI.Events[name].ID)
	}
	return topics
}()

// Touched lists the channels that the contract says anything about in the blocks from..to, both included: everybody's, for
// all share one contract.
func (b *BatchSettlement) Touched(ctx context.Context, from, to uint64) (map[common.Hash]bool, error) {
	return touched(ctx, b.backend, ethereum.FilterQuery{
		Addresses: []common.Address{channel.BatchSettlementEscrow},
		Topics:    [][]common.Hash{touching},
	}, from, to)
}

// Skipped is nothing: a claim with a bad row does not happen at all.
func (b *BatchSettlement) Skipped(*types.Receipt) []Skipped { return nil }

// A BatchSettlementState is all that the contract knows of one channel.
type BatchSettlementState struct {
	// View has what the contract holds of the channel as its deposit, refunds and withdrawals taken off, and what was
	// claimed of that as settled.
	View channel.ChainView
	// Withdrawing is what a pending withdrawal asks for, in base units; the payer gets no more than is free then.
	Withdrawing uint256.Int
	// RefundNonce is what the next signed refund must carry.
	RefundNonce uint256.Int
}

// State reads one channel as of the newest block. One that the contract does not know is all zero.
func (b *BatchSettlement) State(ctx context.Context, id common.Hash) (BatchSettlementState, error) {
	var s BatchSettlementState
	out, err := b.multicall(ctx, [][]byte{b.abi.PackChannels(id), b.abi.PackPendingWithdrawals(id), b.abi.PackRefundNonce(id)}, b.at(nil))
	if err != nil {
		return s, fmt.Errorf("chain: reading channel %s: %w", id, err)
	}
	if s.View, s.Withdrawing, err = b.view(out[0], out[1]); err != nil {
		return s, fmt.Errorf("chain: reading channel %s: %w", id, err)
	}
	nonce, err := b.abi.UnpackRefundNonce(out[2])
	if err != nil {
		return s, fmt.Errorf("chain: reading the refund nonce of channel %s: %w", id, err)
	}
	s.RefundNonce = amount(nonce)
	return s, nil
}

// Confirmed reads channels at the newest block and at the one that has the given number of confirmations (1: the newest
// itself), and merges them. It also returns the number of the newest block it read. A channel the contract does not know
// is the zero view: it holds nothing, so nothing can be promised from it.
func (b *BatchSettlement) Confirmed(ctx context.Context, ids []common.Hash, confirmations uint64) ([]Confirmed, uint64, error) {
	return confirmed(ctx, b.backend, confirmations, func(ctx context.Context, backend Backend, block *big.Int) ([]channel.ChainView, error) {
		return b.views(ctx, ids, b.on(backend, block))
	})
}

// Fresh is Confirmed, but never goes back: see Contract.
func (b *BatchSettlement) Fresh(ctx context.Context, ids []common.Hash, confirmations uint64) ([]Confirmed, uint64, error) {
	return b.fresh(ctx, func() ([]Confirmed, uint64, error) { return b.Confirmed(ctx, ids, confirmations) })
}

// stateBatch bounds how many channels one call reads: each costs two cold storage reads and two calls of the contract to
// itself, some 15,000 gas, and nodes cap the gas of a call.
const stateBatch = 500

func (b *BatchSettlement) views(ctx context.Context, ids []common.Hash, read reader) ([]channel.ChainView, error) {
	views := make([]channel.ChainView, 0, len(ids))
	for len(ids) > 0 {
		n := min(len(ids), stateBatch)
		calls := make([][]byte, 0, 2*n)
		for _, id := range ids[:n] {
			calls = append(calls, b.abi.PackChannels(id), b.abi.PackPendingWithdrawals(id))
		}
		out, err := b.multicall(ctx, calls, read)
		if err != nil {
			return nil, fmt.Errorf("chain: reading %d channels of %s: %w", n, channel.BatchSettlementEscrow, err)
		}
		for i, id := range ids[:n] {
			v, _, err := b.view(out[2*i], out[2*i+1])
			if err != nil {
				return nil, fmt.Errorf("chain: reading channel %s: %w", id, err)
			}
			views = append(views, v)
		}
		ids = ids[n:]
	}
	return views, nil
}

func (b *BatchSettlement) view(state, withdrawal []byte) (v channel.ChainView, withdrawing uint256.Int, err error) {
	s, err := b.abi.UnpackChannels(state)
	if err != nil {
		return v, withdrawing, err
	}
	w, err := b.abi.UnpackPendingWithdrawals(withdrawal)
	if err != nil {
		return v, withdrawing, err
	}
	v.Deposit, v.Settled = bounded(s.Balance), bounded(s.TotalClaimed)
	v.CloseRequestedAt = w.InitiatedAt.Uint64()
	return v, amount(w.Amount), nil
}

var most96 = new(uint256.Int).Rsh(new(uint256.Int).SetAllOne(), 256-96)

// bounded is what of an amount of 128 bits can be spoken of here: that a channel holds more than 96 bits is no reason to
// fail all that are read with it.
func bounded(b *big.Int) uint256.Int {
	v := amount(b)
	if v.Gt(most96) {
		return *most96
	}
	return v
}

// multicall has the contract answer many calls in one.
func (b *BatchSettlement) multicall(ctx context.Context, calls [][]byte, read reader) ([][]byte, error) {
	out, err := read(ctx, b.abi.PackMulticall(calls))
	if err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: %s on chain %d, at the block that was read", ErrNoContract, channel.BatchSettlementEscrow, b.chainID)
	}
	answers, err := b.abi.UnpackMulticall(out)
	if err == nil && len(answers) != len(calls) {
		err = fmt.Errorf("%d answers to %d calls", len(answers), len(calls))
	}
	return answers, err
}

// at reads the contract at a block, the newest if nil.
func (b *BatchSettlement) at(block *big.Int) reader { return b.on(b.backend, block) }

func (b *BatchSettlement) on(backend Backend, block *big.Int) reader {
	return func(ctx context.Context, data []byte) ([]byte, error) {
		to := channel.BatchSettlementEscrow
		out, err := backend.CallContract(ctx, ethereum.CallMsg{To: &to, Data: data}, block)
		if err != nil {
			return nil, decode(err)
		}
		return out, nil
	}
}
