package channel

import (
	"fmt"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/eip712"
)

// Domain is what ties a voucher to one contract on one chain: the EIP-712
// domain separator and the voucher's type. It is a comparable value; make it
// once and copy it.
type Domain struct {
	scheme    Scheme
	chainID   uint64
	escrow    common.Address
	separator common.Hash
	voucher   common.Hash
}

// EscrowDomain returns the domain of the escrow contract of this project.
func EscrowDomain(chainID uint64, escrow common.Address) Domain {
	return Session.Domain(chainID, escrow)
}

// ChainID returns the chain that the domain's signatures count on.
func (d Domain) ChainID() uint64 { return d.chainID }

// Escrow returns the contract that the domain's signatures count in.
func (d Domain) Escrow() common.Address { return d.escrow }

// Separator returns the EIP-712 domain separator.
func (d Domain) Separator() common.Hash { return d.separator }

// Digest returns what a voucher's signature signs. It does not allocate.
func (d Domain) Digest(channelID common.Hash, cumulative *uint256.Int) common.Hash {
	var buf [3 * 32]byte
	sum := eip712.Words(buf[:0]).Hash(d.voucher).Hash(channelID).Uint256(cumulative).Sum()
	return eip712.Digest(d.separator, sum)
}

// Holds reports terms of another chain, escrow or scheme with ErrTerms: a voucher
// of theirs cannot be settled here.
func (d Domain) Holds(t Terms) error {
	if err := t.Validate(); err != nil {
		return err
	}
	if t.Scheme != d.scheme {
		return fmt.Errorf("%w: channel %s is of scheme %s, want scheme %s", ErrTerms, t.ID(), t.Scheme, d.scheme)
	}
	if t.ChainID != d.chainID {
		return fmt.Errorf("%w: channel %s is on chain %d, want chain %d", ErrTerms, t.ID(), t.ChainID, d.chainID)
	}
	if t.Escrow != d.escrow {
		return fmt.Errorf("%w: channel %s is in escrow %s, want escrow %s", ErrTerms, t.ID(), t.Escrow, d.escrow)
	}
	return nil
}
