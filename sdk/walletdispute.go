package sdk

import (
	"errors"
	"fmt"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
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
	if errors.Is(d.Reason, metering.ErrClock) || errors.Is(d.Reason, metering.ErrCredit) {
		hint = " (where this machine was stopped and its clock not set since, that is no lie: set it, and rent anew)"
	}
	return fmt.Sprintf("channel %s: %v: nothing is paid for it, the evidence is on disk: close the rental or leave it%s", d.Channel, d.Reason, hint)
}

// Unwrap is what the provider did.
func (d *Dispute) Unwrap() error { return d.Reason }
