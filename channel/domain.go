package channel

import (
	"fmt"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/eip712"
)

// voucherType is the type of the public draft's voucher. Every voucher here is
// a (bytes32, uint128): another protocol's differs in names only, and so is
// another Domain.
const voucherType = "Voucher(bytes32 channelId,uint128 cumulativeAmount)"

// Domain is what ties a voucher to one contract on one chain: the EIP-712
// domain separator and the voucher's type. It is a comparable value; make it
// once and copy it.
type Domain struct {
	chainID   uint64
	escrow    common.Address
	separator common.Hash
	voucher   common.Hash
}

// EscrowDomain returns the domain of the escrow contract of this project, which
// is the domain of the public draft draft-evm-session-00.
func EscrowDomain(chainID uint64, escrow common.Address) Domain {
	return NewDomain("EVM Payment Channel", "1", voucherType, chainID, escrow)
}

// NewDomain returns the domain of another voucher of the shape (bytes32 id,
// uint128 cumulative). voucher is its EIP-712 type encoding.
func NewDomain(name, version, voucher string, chainID uint64, escrow common.Address) Domain {
	return Domain{
		chainID:   chainID,
		escrow:    escrow,
		separator: eip712.DomainSeparator(name, version, chainID, escrow),
		voucher:   eip712.TypeHash(voucher),
	}
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

// holds reports terms of another chain or escrow: a voucher of theirs cannot be
// settled here.
func (d Domain) holds(t Terms) error {
	if err := t.Validate(); err != nil {
		return err
	}
	if t.ChainID != d.chainID {
		return fmt.Errorf("%w: channel %s is on chain %d, want chain %d", ErrTerms, t.ID(), t.ChainID, d.chainID)
	}
	if t.Escrow != d.escrow {
		return fmt.Errorf("%w: channel %s is in escrow %s, want escrow %s", ErrTerms, t.ID(), t.Escrow, d.escrow)
	}
	return nil
}
