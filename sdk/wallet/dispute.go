package wallet

import (
	"errors"
	"fmt"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/verify"
	"github.com/gpupay/gpupay/sdk/internal/peer"
)

// Dispute is the end of trust in a provider: what it sent was refused and kept.
// Nothing was paid for it. Close may still work; Leave does not need the
// provider.
type Dispute struct {
	Channel common.Hash
	Reason  error
}

// Error says what the provider did and what to do.
func (d *Dispute) Error() string {
	hint := ""
	if errors.Is(d.Reason, verify.ErrClock) || errors.Is(d.Reason, verify.ErrCredit) {
		hint = " (where this machine was stopped and its clock not set since, that is no lie: set it, and rent anew)"
	}
	return fmt.Sprintf("channel %s: %v: nothing is paid for it, the evidence is on disk: close the rental or leave it%s", d.Channel, d.Reason, hint)
}

// Unwrap is what the provider did.
func (d *Dispute) Unwrap() error { return d.Reason }

var ErrBoundTwice = errors.New("the payee signed for both meters of the lease")

// Convicts reports whether what a payee signed, as it did its offer, contradicts itself: records each other or their price, or
// two meters of one lease each other. It is found behind a signature, in nothing but what that covers. What else an answer says
// is its site's word (ErrProtocol: it does not parse, or does not fit its record), and when a record comes is the site's doing: who
// passes a tick on to an honest provider can keep its answer back until it is another's, and has it state more time than passed
// (ErrClock, and on our clock ErrLetTwice).
func Convicts(reason error) bool {
	if errors.Is(reason, peer.ErrProtocol) {
		return false
	}
	return errors.Is(reason, metering.ErrPrice) || errors.Is(reason, verify.ErrForked) || errors.Is(reason, ErrBoundTwice)
}
