package wire

import (
	"context"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/eip712"
)

var accessType = crypto.Keccak256Hash([]byte("LeaseAccess(bytes32 channelId,bytes32 challenge,string action)"))

// AccessDigest is what the payer, or its authorized signer, signs to show that
// it is there now: the challenge is fresh, single use, and the action is
// named, so that a proof made to read a lease cannot close it.
//
// The draft lets a voucher stand for its sender. A settled voucher is public
// calldata, so here it does not.
func AccessDigest(chainID uint64, escrow common.Address, channelID common.Hash, challengeID, action string) common.Hash {
	domain := eip712.DomainSeparator("gpupay lease", "1", chainID, escrow)
	challenge := crypto.Keccak256([]byte(challengeID))
	return eip712.Digest(domain, crypto.Keccak256Hash(accessType[:], channelID[:], challenge, crypto.Keccak256([]byte(action))))
}

// Prove signs an access proof.
func Prove(ctx context.Context, signer channel.Signer, terms channel.Terms, challengeID, action string) (Bytes, error) {
	return signer.Sign(ctx, AccessDigest(terms.ChainID, terms.Escrow, terms.ID(), challengeID, action))
}

// CheckProof reports whether proof was signed by the channel's payer or its
// authorized signer over this challenge and action.
func CheckProof(terms channel.Terms, challengeID, action string, proof Bytes) bool {
	who, err := eip712.Recover(AccessDigest(terms.ChainID, terms.Escrow, terms.ID(), challengeID, action), proof)
	return err == nil && (who == terms.Payer || who == terms.Signer())
}
