package chain

import (
	"context"
	"fmt"
	"math/big"
	"slices"

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
func (s *Sender) sight(ctx context.Context) (sight, error) {
	said, err := two(ctx, s.Backend, headWithFee)
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

// A view of the key is what one endpoint says of its nonces.
type keyView struct {
	head  *types.Header
	mined uint64
	deep  uint64 // as of Finality blocks ago
	shown bool   // whether the endpoint keeps state that old
}

// look reads what one step goes by. Of what two endpoints say of the key's nonces the least counts, and no less than what the
// outbox knows to be final, where the other one grants that: to send again what is mined costs nothing, and to take for mined
// what is not has it never sent.
func (s *Sender) look(ctx context.Context, chain uint64) (glance, error) {
	said, err := two(ctx, s.Backend, func(ctx context.Context, b Backend) (v keyView, err error) {
		if v.head, err = headWithFee(ctx, b); err != nil {
			return v, Unread("the newest block", err)
		}
		if v.mined, err = b.NonceAt(ctx, s.Address(), v.head.Number); err != nil {
			return v, fmt.Errorf("chain: reading the nonce of %s: %w", s.Address(), err)
		}
		back := new(big.Int).SetUint64(min(s.finality(), v.head.Number.Uint64()))
		v.deep, err = b.NonceAt(ctx, s.Address(), back.Sub(v.head.Number, back))
		if err != nil && isTransport(err) {
			return v, fmt.Errorf("chain: reading the nonce of %s: %w", s.Address(), err)
		}
		if v.shown = err == nil; !v.shown { // a node that keeps no state that old: nothing counts as lost by its word
			s.log().Debug("the nonce is not known that far back", "blocks", s.finality(), "err", err)
		}
		return v, nil
	})
	if err != nil {
		return glance{}, err
	}
	newerFirst(said, func(v keyView) uint64 { return v.head.Number.Uint64() })
	return s.glance(ctx, chain, said)
}

func (s *Sender) glance(ctx context.Context, chain uint64, said []statement[keyView]) (glance, error) {
	var heads []*types.Header
	var deep []uint64
	g := glance{mined: said[0].say.mined, most: said[0].say.mined}
	for _, by := range said {
		heads, g.said = append(heads, by.say.head), append(g.said, by.say.mined)
		g.mined, g.most = min(g.mined, by.say.mined), max(g.most, by.say.mined)
		if by.say.shown {
			deep = append(deep, by.say.deep)
		}
	}
	if len(deep) > 0 {
		g.deep = slices.Min(deep)
	}
	g.head = sightOf(heads)
	g.moved = g.head.hash != s.head
	if g.mined == g.most {
		return g, nil
	}
	final, err := s.Store.nextFinal(ctx, chain, s.Address())
	g.mined = max(g.mined, min(final, g.most))
	return g, err
}
