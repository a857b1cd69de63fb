package sdk

import (
	"encoding/json"
	"errors"
	"net/http"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// x402Codes maps what can be wrong with a payment to what x402 calls it. The
// first match counts.
var x402Codes = []struct {
	err  error
	code string
}{
	{channel.ErrSignature, string(x402.CodeVoucherSignature)},
	{channel.ErrExceedsDeposit, string(x402.CodeCumulativeExceedsBalance)},
	{errWithdrawing, errWithdrawing.Error()},
	{errRefunding, errRefunding.Error()},
	{errScattered, errScattered.Error()},
	{channel.ErrClosing, errWithdrawing.Error()},
	{channel.ErrTerms, string(x402.CodeWithdrawDelayOutOfRange)},
}

// refuse answers a payment that is not taken: with x402's own 402 where x402 has
// a word for what is wrong, else as everywhere.
func (d *x402Desk) refuse(w http.ResponseWriter, r *x402Request, err error) {
	if r.Context().Err() != nil {
		return
	}
	if r.hash == "" && r.ContentLength != 0 {
		w.Header().Set("Connection", "close") // its body was not read, and is not waited for
	}
	reason, ok := x402Reason(err)
	if !ok {
		d.front.refuse(w, r.Request, err)
		return
	}
	var wrong *corrective
	if !errors.As(err, &wrong) && !d.limiter.Challenge(r.Request) {
		d.front.refuse(w, r.Request, wire.TooMany.With("too many requests with a wrong payment from your address: wait a second"))
		return
	}
	d.config.Log.Debug("payment refused", "channel", r.id, "error", err)
	d.metrics.refused(wire.PaymentRequired.With("%s", reason))
	offer := r.offer
	if wrong != nil {
		wrong.show(&offer)
	}
	if err := d.required(r.Request, reason, offer).Set(w.Header()); err != nil {
		d.front.refuse(w, r.Request, err)
		return
	}
	body, _ := json.Marshal(struct {
		Error  string `json:"error"`
		Detail string `json:"detail"`
	}{reason, err.Error()})
	w.Header().Set("Content-Type", "application/json")
	serve.Hurry(w)
	w.WriteHeader(http.StatusPaymentRequired)
	_, _ = w.Write(body)
}

// x402Reason is what x402 calls an error; false if it has no word for it.
func x402Reason(err error) (string, bool) {
	var wrong *corrective
	if errors.As(err, &wrong) {
		return string(x402.CodeCumulativeMismatch), true
	}
	var code x402.Code
	if errors.As(err, &code) {
		return string(code), true
	}
	for _, known := range x402Codes {
		if errors.Is(err, known.err) {
			return known.code, true
		}
	}
	return "", false
}

// show puts a channel's state into an offer: the base of the next voucher, and
// the newest voucher, by which the client knows that the base is not made up. A
// client that is shown no voucher takes what the chain has claimed.
func (c *corrective) show(offer *x402.Requirements) {
	charged := wire.NewAmount(c.tab.charged)
	offer.Extra.ChannelState = &x402.ChannelState{Snapshot: c.tab.snapshot(), ChargedCumulativeAmount: &charged}
	if len(c.tab.Signature) == 0 || c.tab.charged.Gt(&c.tab.Accepted) { // as after a restore: it would prove that we lie
		return
	}
	v, err := x402.VoucherOf(c.tab.Voucher())
	if err == nil {
		offer.Extra.VoucherState = &x402.VoucherState{SignedMaxClaimable: v.MaxClaimableAmount, Signature: v.Signature}
	}
}
