package channel

import (
	"errors"
	"fmt"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/internal/eip712"
)

// ErrTerms marks terms that no channel can have, or that are of another chain or
// escrow than ours.
var ErrTerms = errors.New("invalid channel terms")

// Terms are what a channel is fixed to for life. The escrow stores none of
// them: they are hashed to the channel's id.
type Terms struct {
	ChainID          uint64
	Escrow           common.Address // the escrow contract
	Payer            common.Address // gets back what is not settled
	Payee            common.Address // gets what is settled
	Token            common.Address // the ERC-20 whose base units all amounts are in
	Salt             common.Hash    // tells a payer's channels apart; short salts settle cheaper
	AuthorizedSigner common.Address // signs vouchers; zero means the payer
}

// ID returns the channel's id, as the contract computes it:
// keccak256(abi.encode(payer, payee, token, salt, authorizedSigner, escrow, chainid)).
func (t Terms) ID() common.Hash {
	var buf [7 * 32]byte
	return eip712.Words(buf[:0]).
		Address(t.Payer).Address(t.Payee).Address(t.Token).
		Hash(t.Salt).Address(t.AuthorizedSigner).
		Address(t.Escrow).Uint64(t.ChainID).
		Sum()
}

// Signer returns the address whose vouchers count.
func (t Terms) Signer() common.Address {
	if t.AuthorizedSigner == (common.Address{}) {
		return t.Payer
	}
	return t.AuthorizedSigner
}

// Validate reports terms with a missing part. It cannot say whether the channel
// exists: the chain does.
func (t Terms) Validate() error {
	switch (common.Address{}) {
	case t.Payer:
		return fmt.Errorf("%w: no payer", ErrTerms)
	case t.Payee:
		return fmt.Errorf("%w: no payee", ErrTerms)
	case t.Token:
		return fmt.Errorf("%w: no token", ErrTerms)
	case t.Escrow:
		return fmt.Errorf("%w: no escrow contract", ErrTerms)
	}
	if t.ChainID == 0 {
		return fmt.Errorf("%w: no chain id", ErrTerms)
	}
	return nil
}
