package channel

import (
	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/eip712"
)

var (
	requestCloseType = eip712.TypeHash("RequestClose(bytes32 channelId,uint256 nonce,uint256 deadline)")
	cancelCloseType  = eip712.TypeHash("CancelClose(bytes32 channelId,uint256 nonce,uint256 deadline)")
	creditType       = eip712.TypeHash("WithdrawCredit(address account,address token,address to,uint256 nonce,uint256 deadline)")
	closeType        = eip712.TypeHash("Close(bytes32 channelId,uint128 cumulativeAmount,uint256 deadline)")
	receiveType      = eip712.TypeHash("ReceiveWithAuthorization(address from,address to,uint256 value," +
		"uint256 validAfter,uint256 validBefore,bytes32 nonce)")
)

// OpenNonce returns the ERC-3009 nonce that opens a channel of these terms with
// money of from, usually the payer. The contract computes it too: an
// authorization can open the channel it was signed for and no other.
func OpenNonce(from common.Address, t Terms) common.Hash {
	var buf [5 * 32]byte
	return eip712.Words(buf[:0]).
		Address(from).Address(t.Payee).Address(t.Token).
		Hash(t.Salt).Address(t.AuthorizedSigner).
		Sum()
}

// TopUpNonce returns the ERC-3009 nonce that adds additional base units of from
// to a channel. salt tells equal top-ups apart.
func TopUpNonce(channelID common.Hash, additional uint256.Int, from common.Address, salt common.Hash) common.Hash {
	var buf [4 * 32]byte
	return eip712.Words(buf[:0]).
		Hash(channelID).Uint256(&additional).Address(from).Hash(salt).
		Sum()
}

// DepositNonce returns the ERC-3009 nonce that adds to a channel of
// BatchSettlement. salt tells a channel's deposits apart.
func DepositNonce(channelID, salt common.Hash) common.Hash {
	var buf [2 * 32]byte
	return eip712.Words(buf[:0]).Hash(channelID).Hash(salt).Sum()
}

// RequestCloseDigest returns what a payer signs so that anyone may start the
// grace period for it, until deadline (unix seconds, inclusive). nonce is the
// channel's number of close requests so far: a signed request works once.
func (d Domain) RequestCloseDigest(channelID common.Hash, nonce, deadline uint64) common.Hash {
	var buf [4 * 32]byte
	sum := eip712.Words(buf[:0]).Hash(requestCloseType).Hash(channelID).Uint64(nonce).Uint64(deadline).Sum()
	return eip712.Digest(d.separator, sum)
}

// CancelCloseDigest returns what a payer signs so that anyone may take its
// pending close request back, until deadline (unix seconds, inclusive). nonce
// is the channel's number of close requests so far, the pending one included:
// the signature is good for that request alone.
func (d Domain) CancelCloseDigest(channelID common.Hash, nonce, deadline uint64) common.Hash {
	var buf [4 * 32]byte
	sum := eip712.Words(buf[:0]).Hash(cancelCloseType).Hash(channelID).Uint64(nonce).Uint64(deadline).Sum()
	return eip712.Digest(d.separator, sum)
}

// WithdrawCreditDigest returns what an account signs so that anyone may have
// all its credit in a token paid to another address, until deadline (unix
// seconds, inclusive). nonce is how often its credit in the token was
// withdrawn before: the signature works once.
func (d Domain) WithdrawCreditDigest(account, token, to common.Address, nonce, deadline uint64) common.Hash {
	var buf [6 * 32]byte
	sum := eip712.Words(buf[:0]).Hash(creditType).Address(account).Address(token).Address(to).Uint64(nonce).Uint64(deadline).Sum()
	return eip712.Digest(d.separator, sum)
}

// CloseDigest returns what a payee signs so that anyone may close the channel
// at cumulative for it, until deadline (unix seconds, inclusive).
func (d Domain) CloseDigest(channelID common.Hash, cumulative uint256.Int, deadline uint64) common.Hash {
	var buf [4 * 32]byte
	sum := eip712.Words(buf[:0]).Hash(closeType).Hash(channelID).Uint256(&cumulative).Uint64(deadline).Sum()
	return eip712.Digest(d.separator, sum)
}

// Authorization is an ERC-3009 ReceiveWithAuthorization: its signature lets To,
// and nobody else, draw Value from From once.
type Authorization struct {
	From, To    common.Address
	Value       uint256.Int // base units
	ValidAfter  uint64      // unix seconds, exclusive
	ValidBefore uint64      // unix seconds, exclusive
	Nonce       common.Hash
}

// Digest returns what From signs, given the token's EIP-712 domain separator
// (the token's DOMAIN_SEPARATOR()).
func (a Authorization) Digest(token common.Hash) common.Hash {
	var buf [7 * 32]byte
	sum := eip712.Words(buf[:0]).Hash(receiveType).
		Address(a.From).Address(a.To).Uint256(&a.Value).
		Uint64(a.ValidAfter).Uint64(a.ValidBefore).Hash(a.Nonce).
		Sum()
	return eip712.Digest(token, sum)
}
