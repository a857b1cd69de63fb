package chain

import (
	"cmp"
	"context"
	"fmt"
	"math/big"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/accounts/abi/bind/v2"
	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/bindings"
	"github.com/gpupay/gpupay/channel"
)

// viewBatch bounds how many channels one call reads: each costs a cold storage read of 2,100 gas, and nodes cap the gas
// of a call.
const viewBatch = 1000

// View reads one channel at a block (nil: the newest). A channel the contract does not know is channel.ErrUnknown.
func (e *Escrow) View(ctx context.Context, id common.Hash, block *big.Int) (channel.ChainView, error) {
	slots, err := e.slots(ctx, []common.Hash{id}, e.at(block))
	if err != nil {
		return channel.ChainView{}, fmt.Errorf("channel %s: %w", id, err)
	}
	if !exists(slots[0]) {
		return channel.ChainView{}, fmt.Errorf("%w: escrow %s has no channel %s", channel.ErrUnknown, e.address, id)
	}
	return view(slots[0]), nil
}

// Views reads channels as of the newest block, in the order of the ids. A channel the contract does not know is the zero
// view: it holds no deposit, so nothing can be promised from it.
func (e *Escrow) Views(ctx context.Context, ids []common.Hash) ([]channel.ChainView, error) {
	return e.views(ctx, ids, e.at(nil))
}

// ViewsAt is Views as of the block with this hash and no other: after a re-org it fails instead of reading the branch that won.
func (e *Escrow) ViewsAt(ctx context.Context, ids []common.Hash, block common.Hash) ([]channel.ChainView, error) {
	caller, ok := e.backend.(bind.BlockHashContractCaller)
	if !ok {
		return nil, fmt.Errorf("chain: backend cannot read at a block hash")
	}
	return e.views(ctx, ids, func(ctx context.Context, data []byte) ([]byte, error) {
		return caller.CallContractAtHash(ctx, ethereum.CallMsg{To: &e.address, Data: data}, block)
	})
}

// CloseRequests is how often the channel's payer asked to close: the nonce the next signed close request must carry.
func (e *Escrow) CloseRequests(ctx context.Context, id common.Hash) (uint64, error) {
	slots, err := e.slots(ctx, []common.Hash{id}, e.at(nil))
	if err != nil {
		return 0, fmt.Errorf("channel %s: %w", id, err)
	}
	return uint64(slots[0].CloseRequests), nil
}

// CloseRequestsBounds are the least and the most that two endpoints say of CloseRequests, each as of its newest block; the same
// twice where only one answers.
func (e *Escrow) CloseRequestsBounds(ctx context.Context, id common.Hash) (least, most uint64, err error) {
	said, err := two(ctx, e.backend, func(ctx context.Context, b Backend) (uint64, error) {
		slots, err := e.slots(ctx, []common.Hash{id}, func(ctx context.Context, data []byte) ([]byte, error) { return e.callOn(ctx, b, data, nil) })
		if err != nil {
			return 0, err
		}
		return uint64(slots[0].CloseRequests), nil
	})
	if err != nil {
		return 0, 0, fmt.Errorf("channel %s: %w", id, err)
	}
	least, most = bounds(said, cmp.Compare[uint64])
	return least, most, nil
}

// Confirmed reads channels at the newest block and at the one that has the given number of confirmations (1: the newest
// itself), and merges them. It also returns the number of the newest block it read.
func (e *Escrow) Confirmed(ctx context.Context, ids []common.Hash, confirmations uint64) ([]Confirmed, uint64, error) {
	return confirmed(ctx, e.backend, confirmations, func(ctx context.Context, b Backend, block *big.Int) ([]channel.ChainView, error) {
		return e.views(ctx, ids, func(ctx context.Context, data []byte) ([]byte, error) { return e.callOn(ctx, b, data, block) })
	})
}

// Fresh is Confirmed, but never goes back: see Contract.
func (e *Escrow) Fresh(ctx context.Context, ids []common.Hash, confirmations uint64) ([]Confirmed, uint64, error) {
	return e.fresh(ctx, func() ([]Confirmed, uint64, error) { return e.Confirmed(ctx, ids, confirmations) })
}

type reader func(ctx context.Context, data []byte) ([]byte, error)

func (e *Escrow) at(block *big.Int) reader {
	return func(ctx context.Context, data []byte) ([]byte, error) { return e.call(ctx, data, block) }
}

func (e *Escrow) views(ctx context.Context, ids []common.Hash, read reader) ([]channel.ChainView, error) {
	slots, err := e.slots(ctx, ids, read)
	if err != nil {
		return nil, err
	}
	views := make([]channel.ChainView, len(slots))
	for i, s := range slots {
		views[i] = view(s)
	}
	return views, nil
}

func (e *Escrow) slots(ctx context.Context, ids []common.Hash, read reader) ([]bindings.Channel, error) {
	slots := make([]bindings.Channel, 0, len(ids))
	for len(ids) > 0 {
		n := min(len(ids), viewBatch)
		raw := make([][32]byte, n)
		for i, id := range ids[:n] {
			raw[i] = id
		}
		out, err := read(ctx, e.abi.PackChannels(raw))
		if err != nil {
			return nil, fmt.Errorf("chain: reading %d channels of escrow %s: %w", n, e.address, err)
		}
		if len(out) == 0 {
			return nil, fmt.Errorf("%w: %s on chain %d, at the block that was read", ErrNoContract, e.address, e.chainID)
		}
		part, err := e.abi.UnpackChannels(out)
		if err != nil || len(part) != n {
			return nil, fmt.Errorf("chain: escrow %s answered %d of %d channels: %v", e.address, len(part), n, err)
		}
		for _, s := range part {
			if !possible(s) {
				return nil, fmt.Errorf("chain: escrow %s answered with what no channel can be: a deposit of %s, %s settled, a close requested at %s",
					e.address, s.Deposit, s.Settled, s.CloseRequestedAt)
			}
		}
		slots, ids = append(slots, part...), ids[n:]
	}
	return slots, nil
}

// possible holds a channel to the widths of the contract's fields: the decoder takes any word for any integer.
func possible(s bindings.Channel) bool {
	return s.Deposit.BitLen() <= 96 && s.Settled.BitLen() <= 96 && s.CloseRequestedAt.BitLen() <= 40
}

func exists(s bindings.Channel) bool { return s.Open || s.Finalized }

func view(s bindings.Channel) channel.ChainView {
	if !exists(s) {
		return channel.ChainView{}
	}
	v := channel.ChainView{Finalized: s.Finalized}
	v.Deposit = amount(s.Deposit)
	v.Settled = amount(s.Settled)
	if s.CloseRequestedAt != nil {
		v.CloseRequestedAt = s.CloseRequestedAt.Uint64()
	}
	return v
}

// amount converts what is bounded to 96 bits (possible).
func amount(b *big.Int) uint256.Int {
	var v uint256.Int
	if b != nil {
		v.SetFromBig(b)
	}
	return v
}
