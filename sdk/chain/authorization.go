package chain

import (
	"context"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
)

// AuthorizationMargin is how long an ERC-3009 authorization must still be good when it arrives: its transaction has to be
// mined before it ends.
const AuthorizationMargin = 30 * time.Second

// An Authorization is a signed ERC-3009 ReceiveWithAuthorization to the escrow: the payer's money without the payer's
// transaction. Its nonce commits to one channel (channel.OpenNonce) or one top-up of it (channel.TopUpNonce), so it can
// be used for nothing else, and only once.
type Authorization struct {
	channel.Authorization
	Signature []byte
}

// SignAuthorization signs an authorization under a token's EIP-712 domain separator (Token.DomainSeparator).
func SignAuthorization(ctx context.Context, signer channel.Signer, token common.Hash, a channel.Authorization) (Authorization, error) {
	if signer.Address() != a.From {
		return Authorization{}, fmt.Errorf("chain: %s cannot authorize a payment from %s", signer.Address(), a.From)
	}
	signature, err := signer.Sign(ctx, a.Digest(token))
	if err != nil {
		return Authorization{}, fmt.Errorf("chain: signing an authorization of %s: %w", a.From, err)
	}
	return Authorization{Authorization: a, Signature: signature}, nil
}
