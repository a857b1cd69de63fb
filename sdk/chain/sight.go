package chain

import (
	"context"
	"math/big"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"
)

// A sight is the newest block as a Sender goes by it: as two endpoints show it, where two answer, so that none of them alone
// decides whether, and at what fee, money is fetched.
type sight struct {
	number   uint64      // of the endpoint that is further
	older    uint64      // of the other: nothing counts as deep that is not deep below this one
	baseFee  *big.Int    // wei per gas, the larger
	leastFee *big.Int    // the smaller
	limit    uint64      // gas, the larger: what a block takes
	room     uint64      // gas that one of the two blocks had left
	hash     common.Hash // of both: another one once either moves
}

// sightOf is what the newest blocks of one or two endpoints, which have a base fee, come to.
func sightOf(heads []*types.Header) sight {
	first := heads[0]
	v := sight{number: first.Number.Uint64(), older: first.Number.Uint64(), baseFee: first.BaseFee, leastFee: first.BaseFee, hash: first.Hash()}
	for _, h := range heads {
		v.number, v.older = max(v.number, h.Number.Uint64()), min(v.older, h.Number.Uint64())
		v.baseFee, v.leastFee = larger(v.baseFee, h.BaseFee), smaller(v.leastFee, h.BaseFee)
		v.limit = max(v.limit, h.GasLimit)
		v.room = max(v.room, h.GasLimit-min(h.GasUsed, h.GasLimit))
	}
	for _, h := range heads[1:] {
		other := h.Hash()
		v.hash = crypto.Keccak256Hash(v.hash[:], other[:])
	}
	return v
}

// beyond reports whether a block came since an earlier sight, at either endpoint.
func (v sight) beyond(number, older uint64) bool { return v.number > number || v.older > older }

// headWithFee is the newest block of an endpoint. One without a base fee is an incomplete answer: the next endpoint is asked.
func headWithFee(ctx context.Context, b Backend) (*types.Header, error) {
	head, err := b.HeaderByNumber(ctx, nil)
	if err != nil {
		return nil, err
	}
	if head.BaseFee == nil {
		return nil, &incomplete{"eth_getBlockByNumber", "no baseFeePerGas (EIP-1559) of the newest block, which transactions here need"}
	}
	return head, nil
}

// sight asks for the newest block.
func (p *pricing) sight(ctx context.Context) (sight, error) {
	said, err := two(ctx, p.backend, headWithFee)
	if err != nil {
		return sight{}, Unread("the newest block", err)
	}
	newerFirst(said, func(h *types.Header) uint64 { return h.Number.Uint64() })
	var heads []*types.Header
	for _, by := range said {
		heads = append(heads, by.say)
	}
	return sightOf(heads), nil
}
