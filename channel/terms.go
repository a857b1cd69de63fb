package channel

import (
	"errors"
	"fmt"

	"github.com/ethereum/go-ethereum/common"
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

	Scheme          Scheme         // the protocol that the channel follows
	PayeeAuthorizer common.Address // BatchSettlement: may claim and refund beside the payee
	WithdrawDelay   uint64         // BatchSettlement: seconds between a withdrawal's start and its end
}

// ID returns the channel's id, as the scheme's contract computes it.
func (t Terms) ID() common.Hash { return t.Scheme.rules().id(t) }

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
	return t.Scheme.rules().check(t)
}
