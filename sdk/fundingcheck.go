package sdk

import (
	"errors"
	"net/http"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/wire"
)

// worthFunding refuses a deposit that we would send for a request that would be
// refused after it: for a lease that cannot be begun or paid, or with a voucher
// that would not be taken. Of a payer's own transaction nothing is known yet, and
// its money has moved.
func (d *session) worthFunding(r *request, deposit *wire.Payload) error {
	after, known, err := d.funded(r, deposit)
	if err != nil {
		return err
	}
	if known && deposit.Action == wire.ActionOpen {
		return nil // an open that is sent again moves nothing
	}
	if !known && deposit.Type == wire.TypeAuthorization && after.Deposit.Lt(&r.offer.MinDeposit.Int) {
		return wire.PaymentInsufficient.With("the deposit is %s, the offer wants at least %s", after.Deposit.Dec(), r.offer.MinDeposit.Dec())
	}
	if err := d.worthStarting(r, after, known, deposit.Type); err != nil {
		return err
	}
	if deposit.Type != wire.TypeAuthorization || r.cred.Payload.CumulativeAmount == nil {
		return nil
	}
	voucher := channel.Voucher{ChannelID: after.ID, Cumulative: r.cred.Payload.CumulativeAmount.Int, Signature: r.cred.Payload.Signature}
	if r.cred.Payload.Action == wire.ActionOpen {
		voucher.Signature = r.cred.Payload.Voucher()
	}
	if voucher.Cumulative.IsZero() {
		return d.payee.Verify(r.Context(), after.Terms, voucher)
	}
	_, err = d.payee.Judge(r.Context(), after, voucher)
	return err
}

// funded is a channel as a deposit would leave it, and whether it is known here.
func (d *session) funded(r *request, deposit *wire.Payload) (after channel.State, known bool, err error) {
	var value uint256.Int
	if deposit.Type == wire.TypeAuthorization {
		value = deposit.Authorization.Value.Int
	}
	after, err = d.find(r.Context(), deposit.ChannelID)
	if errors.Is(err, channel.ErrUnknown) && deposit.Action == wire.ActionOpen {
		terms, err := d.termsOf(r, deposit)
		return channel.State{ID: deposit.ChannelID, Terms: terms, Status: channel.Open, Deposit: value}, false, err
	}
	if err == nil && deposit.Action == wire.ActionTopUp {
		after.Deposit.Add(&after.Deposit, &value)
	}
	return after, err == nil, err
}

// worthStarting refuses a request for a lease that could not be given.
func (d *session) worthStarting(r *request, after channel.State, known bool, deposit string) error {
	if r.Method != http.MethodGet {
		return nil
	}
	if known {
		if _, _, err := d.shown(r, after, "attach"); err != nil {
			return err
		}
	}
	if d.leases.Begun(r.Context(), after.ID) {
		return nil
	}
	if ahead := r.cred.Payload.CumulativeAmount; ahead != nil && ahead.Gt(&after.Accepted) {
		after.Accepted = ahead.Int // verified and taken before the lease begins
	}
	err := d.safeToServe(r.Context(), after)
	if err == nil {
		err = d.canServe(r.Context(), after.ID, r.offer, r.gpus)
	}
	if err == nil {
		err = d.debts.Creditworthy(r.Context(), after, r.offer, r.gpus)
	}
	if err == nil && deposit == wire.TypeAuthorization {
		err = d.canPay(after, r.offer, r.gpus)
	}
	return err
}
