package x402

import (
	"fmt"

	"github.com/gpupay/gpupay/channel"
)

// Match reports an accepted offer that differs from the one that was made. What
// stands in accepted beside that is ignored, and so is the case of addresses.
// The error is CodeNoMatch; a client does not try again.
func Match(accepted, offered Requirements) error {
	a, o := accepted.Extra, offered.Extra
	for _, field := range []struct {
		name string
		same bool
	}{
		{"network", accepted.Network == offered.Network},
		{"amount", accepted.Amount == offered.Amount},
		{"asset", accepted.Asset == offered.Asset},
		{"payTo", accepted.PayTo == offered.PayTo},
		{"maxTimeoutSeconds", accepted.MaxTimeoutSeconds == offered.MaxTimeoutSeconds},
		{"extra.name", a.Name == o.Name},
		{"extra.version", a.Version == o.Version},
		{"extra.assetTransferMethod", o.AssetTransferMethod == "" || a.AssetTransferMethod == o.AssetTransferMethod},
		{"extra.receiverAuthorizer", a.ReceiverAuthorizer == o.ReceiverAuthorizer},
		{"extra.withdrawDelay", a.WithdrawDelay == o.WithdrawDelay},
		{"extra.minDeposit", o.MinDeposit == nil || (a.MinDeposit != nil && *a.MinDeposit == *o.MinDeposit)},
	} {
		if !field.same {
			return fmt.Errorf("%w: %s is not what was offered", CodeNoMatch, field.name)
		}
	}
	return nil
}

// Check reports a payment for another offer, or from a channel that is not of
// the offer's terms or not the voucher's. It returns the channel's terms. Who
// signed the voucher, and over which amount, it leaves to the payee's book.
func (p PaymentPayload) Check(offered Requirements) (channel.Terms, error) {
	if err := Match(p.Accepted, offered); err != nil {
		return channel.Terms{}, err
	}
	t := p.Payload.Config.Terms(offered.Network)
	return t, p.Payload.check(t, offered)
}

func (p Payload) check(t channel.Terms, offered Requirements) error {
	c := p.Config
	switch {
	case t.ID() != [32]byte(p.Voucher.ChannelID):
		return fmt.Errorf("%w: the voucher is for %s, the configuration is of %s", CodeChannelIDMismatch, p.Voucher.ChannelID, t.ID())
	case c.Receiver != offered.PayTo:
		return fmt.Errorf("%w: channel %s pays %s, not %s", CodeReceiverMismatch, t.ID(), c.Receiver, offered.PayTo)
	case c.ReceiverAuthorizer != offered.Extra.ReceiverAuthorizer:
		return fmt.Errorf("%w: channel %s has %s, not %s", CodeReceiverAuthorizerMismatch, t.ID(), c.ReceiverAuthorizer, offered.Extra.ReceiverAuthorizer)
	case c.Token != offered.Asset:
		return fmt.Errorf("%w: channel %s is in %s, not %s", CodeTokenMismatch, t.ID(), c.Token, offered.Asset)
	case c.WithdrawDelay != offered.Extra.WithdrawDelay:
		return fmt.Errorf("%w: channel %s has %d s, not %d", CodeWithdrawDelayMismatch, t.ID(), c.WithdrawDelay, offered.Extra.WithdrawDelay)
	}
	if err := t.Validate(); err != nil {
		return fmt.Errorf("channel %s: %w", t.ID(), err)
	}
	return nil
}
