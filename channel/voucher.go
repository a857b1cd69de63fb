package channel

import (
	"context"
	"fmt"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/eip712"
)

var (
	// ErrSignature marks a signature that the contract would refuse.
	ErrSignature = eip712.ErrSignature
	// ErrSigner marks a well-formed signature of somebody else, which is also
	// what a voucher for another chain, escrow, channel or amount looks like. It
	// is an ErrSignature.
	ErrSigner = fmt.Errorf("%w: not by the channel's signer", ErrSignature)
)

// Voucher is the payer's signed word that Cumulative base units of the channel
// are the payee's, all vouchers before it included.
type Voucher struct {
	ChannelID  common.Hash
	Cumulative uint256.Int
	Signature  []byte // 65 bytes: r, s, v; s in the lower half, v 27 or 28
}

// Signer signs digests with a key that it keeps to itself: a key in memory, a
// keystore, a KMS.
type Signer interface {
	Address() common.Address
	// Sign returns 65 bytes: r, s, v, with s in the lower half and v 27 or 28.
	Sign(ctx context.Context, digest common.Hash) ([]byte, error)
}

// SignerOf is the one of some keys that has an address, or nil.
func SignerOf(keys []Signer, address common.Address) Signer {
	for _, key := range keys {
		if key.Address() == address {
			return key
		}
	}
	return nil
}

// Sign returns a voucher. It checks nothing but its own work: caps and
// durability are Payer's, which everything that spends money goes through.
func (d Domain) Sign(ctx context.Context, signer Signer, channelID common.Hash, cumulative uint256.Int) (Voucher, error) {
	if err := checkAmount(cumulative); err != nil {
		return Voucher{}, fmt.Errorf("channel %s: %w", channelID, err)
	}
	sig, err := signer.Sign(ctx, d.Digest(channelID, &cumulative))
	if err != nil {
		return Voucher{}, fmt.Errorf("channel %s: signing a voucher for %s: %w", channelID, cumulative.Dec(), err)
	}
	v := Voucher{ChannelID: channelID, Cumulative: cumulative, Signature: sig}
	if err := d.Verify(v, signer.Address()); err != nil { // a remote signer may not know our form
		return Voucher{}, fmt.Errorf("signer %s made a voucher that nobody would take: %w", signer.Address(), err)
	}
	return v, nil
}

// Verify reports whether signer signed v, by the contract's rule. A contract
// account's signature (ERC-1271) is not for it to judge: see Payee.
func (d Domain) Verify(v Voucher, signer common.Address) error {
	if err := checkAmount(v.Cumulative); err != nil {
		return fmt.Errorf("channel %s: %w", v.ChannelID, err)
	}
	got, err := eip712.Recover(d.Digest(v.ChannelID, &v.Cumulative), v.Signature)
	if err != nil {
		return fmt.Errorf("channel %s: voucher for %s: %w", v.ChannelID, v.Cumulative.Dec(), err)
	}
	if got != signer {
		return fmt.Errorf("channel %s: voucher for %s: %w %s (recovered %s)",
			v.ChannelID, v.Cumulative.Dec(), ErrSigner, signer, got)
	}
	return nil
}
