package chain

import (
	"context"
	"errors"
	"fmt"
	"math/big"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/rpc"
)

// Agreed is a backend that believes no endpoint alone where another one answers: code, calls of contracts and headers are
// asked of two, as of one block that both have, and are an error (ErrContradiction, which is ErrUnreachable too: it is to be
// waited out) where they are not the same. A backend of one endpoint is returned as it is. It is for reading: what is sent
// goes through the backend itself, of which no endpoint alone can keep a transaction from being sent.
func Agreed(backend Backend) Backend {
	if e, several := backend.(*Endpoints); several {
		return &agreed{e}
	}
	return backend
}

type agreed struct{ *Endpoints }

// several returns the endpoints of a backend that has more than one.
func several(backend Backend) (*Endpoints, bool) {
	switch b := backend.(type) {
	case *Endpoints:
		return b, true
	case *agreed:
		return b.Endpoints, true
	}
	return nil, false
}

// A contradiction is ErrContradiction, and ErrUnreachable: asking again later may help, and nothing is known meanwhile.
type contradiction struct{ about, one, other string }

func (e *contradiction) Error() string {
	return fmt.Sprintf("%s: %s: %s; %s; neither is believed until they agree", ErrContradiction, e.about, e.one, e.other)
}

func (e *contradiction) Is(target error) bool {
	return target == ErrContradiction || target == ErrUnreachable
}

// Unread is ErrUnreachable of what could not be read: asking again later may help. It says that the endpoint cannot be reached
// only where that is what happened.
func Unread(what string, err error) error { return &unread{what, err} }

type unread struct {
	what string
	err  error
}

func (e *unread) Error() string {
	var said rpc.Error
	switch {
	case errors.Is(e.err, ErrUnreachable), errors.Is(e.err, context.Canceled): // it says itself what happened
		return fmt.Sprintf("reading %s: %s", e.what, e.err)
	case errors.As(e.err, &said), errors.Is(e.err, ethereum.NotFound):
		return fmt.Sprintf("RPC endpoint answers with an error: reading %s: %s; if it stays so, use another endpoint", e.what, line(e.err.Error()))
	}
	return fmt.Sprintf("%s: reading %s: %s", ErrUnreachable, e.what, e.err)
}

// Is makes it ErrUnreachable.
func (e *unread) Is(target error) bool { return target == ErrUnreachable }

func (e *unread) Unwrap() error { return e.err }

// same is what two endpoints say alike, or what the only one says that answers. That a contract refuses, and that the block is
// not known, is said too: else who says anything else would be believed alone.
func same[T any](ctx context.Context, e *Endpoints, about string, text func(T) string, read func(context.Context, Backend) (T, error)) (T, error) {
	type word struct {
		value   T
		refusal error
		text    string
	}
	said, err := two(ctx, e, func(ctx context.Context, b Backend) (word, error) {
		v, err := read(ctx, b)
		data, reverts := revertData(err)
		switch {
		case reverts:
			return word{refusal: err, text: "reverts with " + brief(data)}, nil
		case isBehind(err) || errors.Is(err, ethereum.NotFound):
			return word{refusal: err, text: "does not know the block"}, nil
		case err != nil:
			return word{}, err
		}
		return word{value: v, text: "says " + text(v)}, nil
	})
	if err != nil {
		var zero T
		return zero, err
	}
	first := said[0].say
	for _, other := range said[1:] {
		if other.say.text != first.text {
			var zero T
			return zero, &contradiction{about, said[0].by + " " + first.text, other.by + " " + other.say.text}
		}
	}
	return first.value, first.refusal
}

// brief is bytes in a few words, which nobody can make the same for two that differ.
func brief(data []byte) string {
	text := "0x" + new(big.Int).SetBytes(data).Text(16)
	if len(data) > common.HashLength {
		text = hexutil.Encode(crypto.Keccak256(data)[:16])
	}
	return fmt.Sprintf("%d bytes %s", len(data), text)
}

// BlockNumber is the newest block that two endpoints have: one that claims to be ahead is not believed, and one that is far
// behind is waited for.
func (a *agreed) BlockNumber(ctx context.Context) (uint64, error) {
	said, err := two(ctx, a, func(ctx context.Context, b Backend) (uint64, error) { return b.BlockNumber(ctx) })
	if err != nil {
		return 0, err
	}
	head := said[0].say
	for _, other := range said[1:] {
		if max(head, other.say)-min(head, other.say) > FarBehind {
			return 0, &contradiction{"the newest block", fmt.Sprintf("%s is at %d", said[0].by, head), fmt.Sprintf("%s at %d", other.by, other.say)}
		}
		head = min(head, other.say)
	}
	return head, nil
}

// at is a block that two endpoints have: the newest if nil.
func (a *agreed) at(ctx context.Context, block *big.Int) (*big.Int, error) {
	if block != nil {
		return block, nil
	}
	head, err := a.BlockNumber(ctx)
	return new(big.Int).SetUint64(head), err
}

func (a *agreed) CodeAt(ctx context.Context, account common.Address, block *big.Int) ([]byte, error) {
	block, err := a.at(ctx, block)
	if err != nil {
		return nil, err
	}
	return same(ctx, a.Endpoints, "at block "+block.String(), brief, func(ctx context.Context, b Backend) ([]byte, error) {
		return b.CodeAt(ctx, account, block)
	})
}

func (a *agreed) CallContract(ctx context.Context, msg ethereum.CallMsg, block *big.Int) ([]byte, error) {
	block, err := a.at(ctx, block)
	if err != nil {
		return nil, err
	}
	return same(ctx, a.Endpoints, "at block "+block.String(), brief, func(ctx context.Context, b Backend) ([]byte, error) {
		return b.CallContract(ctx, msg, block)
	})
}

// HeaderByNumber is a header whose number and time two endpoints say alike. Of the block in the making, of which each has its
// own, it is the earlier one.
func (a *agreed) HeaderByNumber(ctx context.Context, number *big.Int) (*types.Header, error) {
	read := func(ctx context.Context, b Backend) (*types.Header, error) { return b.HeaderByNumber(ctx, number) }
	if number != nil && number.Sign() < 0 {
		said, err := two(ctx, a, read)
		if err != nil {
			return nil, err
		}
		earliest := said[0].say
		for _, other := range said[1:] {
			if other.say.Time < earliest.Time {
				earliest = other.say
			}
		}
		return earliest, nil
	}
	number, err := a.at(ctx, number)
	if err != nil {
		return nil, err
	}
	text := func(h *types.Header) string { return fmt.Sprintf("number %s, time %d", h.Number, h.Time) }
	return same(ctx, a.Endpoints, "block "+number.String(), text, read)
}
