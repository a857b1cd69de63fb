package wire

import (
	"fmt"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/eip712"
)

// LeaveRequest is a payer's signed request to close, a document that anyone can
// send to the chain. It works once, until Deadline.
type LeaveRequest struct {
	Terms
	CloseRequests uint64 `json:"closeRequests"` // how many the channel has seen: the nonce
	Deadline      uint64 `json:"deadline"`      // unix seconds, inclusive
	Signature     Bytes  `json:"signature"`
}

// Check reports whether the channel's payer signed the request.
func (q LeaveRequest) Check() error {
	terms := q.Channel()
	if err := terms.Validate(); err != nil {
		return err
	}
	id := terms.ID()
	digest := channel.EscrowDomain(q.ChainID, terms.Escrow).RequestCloseDigest(id, q.CloseRequests, q.Deadline)
	signer, err := eip712.Recover(digest, q.Signature)
	if err != nil {
		return fmt.Errorf("request to leave channel %s: %w", id, err)
	}
	if signer != terms.Payer {
		return fmt.Errorf("request to leave channel %s: %w: signed by %s, its payer is %s", id, channel.ErrSignature, signer, terms.Payer)
	}
	return nil
}
