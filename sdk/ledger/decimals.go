package ledger

import (
	"context"
	"errors"
	"fmt"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/chain"
)

// ErrDecimals is a token whose decimals neither the database says nor anybody else.
var ErrDecimals = errors.New("decimals are not in this database")

// SetDecimals says how many decimals the entries' tokens have, whatever is known of them.
func (b *Books) SetDecimals(n uint8) {
	for _, e := range b.Entries {
		b.setDecimals(e.Token, n)
	}
}

func (b *Books) setDecimals(token common.Address, n uint8) {
	if b.Decimals == nil {
		b.Decimals = make(map[common.Address]uint8)
	}
	if token != (common.Address{}) {
		b.Decimals[token] = n
	}
}

// FindDecimals asks the tokens that Decimals does not have, at a JSON-RPC endpoint; empty: the first of them is ErrDecimals.
func (b *Books) FindDecimals(ctx context.Context, rpc string) error {
	var backend chain.Backend
	for _, e := range b.Entries {
		if _, known := b.Decimals[e.Token]; known || e.Token == (common.Address{}) {
			continue
		}
		if rpc == "" {
			return fmt.Errorf("token %s: %w", e.Token, ErrDecimals)
		}
		var err error
		if backend == nil {
			if backend, err = chain.Connect(ctx, rpc, nil); err != nil {
				return err
			}
		}
		token, err := chain.NewToken(ctx, backend, e.Token)
		if err != nil {
			return err
		}
		b.setDecimals(e.Token, token.Decimals)
	}
	return nil
}
