// Package x402server has the parts of a server of x402's scheme batch-settlement that know no lease: the queue of a channel's
// requests, the journal of what they were told, the channel as they find it, and the recorder of answers.
package x402server

import (
	"errors"
	"fmt"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// Account is a channel of x402 as a request finds it.
type Account struct {
	channel.State
	Balance Balance
	Charged uint256.Int // x402's chargedCumulativeAmount
	Known   bool
}

// Snapshot is a channel as receipts and corrective answers show it.
func (t Account) Snapshot() *x402.Snapshot {
	return &x402.Snapshot{
		ChannelID: x402.Hash(t.ID), Balance: wire.NewAmount(t.Deposit), TotalClaimed: wire.NewAmount(t.Settled),
		WithdrawRequestedAt: t.CloseRequestedAt, RefundNonce: wire.NewAmount(t.Balance.RefundNonce),
	}
}

// Receipt is what a client reads of its payment: what it was charged for this request, and in all.
func (t Account) Receipt(n Entry, base, charged uint256.Int) x402.SettleResponse {
	var cost uint256.Int
	if charged.Gt(&base) {
		cost.Sub(&charged, &base)
	}
	payer, amount, all := wire.Address(t.Terms.Payer), wire.NewAmount(cost), wire.NewAmount(charged)
	res := x402.SettleResponse{
		Success: true, Network: x402.Network(t.Terms.ChainID), Payer: &payer, ChargedAmount: &amount,
		ChannelState: &x402.ChannelState{Snapshot: t.Snapshot(), ChargedCumulativeAmount: &all},
	}
	if n.Tx != "" {
		var moved wire.Amount
		if moved.SetFromDecimal(n.Moved) == nil {
			res.Amount = &moved
		}
		res.Transaction = x402.Transaction(common.HexToHash(n.Tx))
	}
	return res
}

// Told is the receipt of a request by what its entry says was charged.
func (t Account) Told(n Entry) (x402.SettleResponse, error) {
	base, err := channel.ParseAmount(n.Base)
	charged, err2 := channel.ParseAmount(n.Charged)
	return t.Receipt(n, base, charged), errors.Join(err, err2)
}

// Resync refuses a voucher over another amount than the next one must have.
// A stock client makes its state what it is told here and asks once more.
type Resync struct {
	Account Account
	Expect  uint256.Int // what the next voucher must be over
	Got     uint256.Int
}

func (c *Resync) Error() string {
	return fmt.Sprintf("channel %s: the voucher is over %s, the next one must be over %s: %s was charged so far",
		c.Account.ID, c.Got.Dec(), c.Expect.Dec(), c.Account.Charged.Dec())
}

// Show puts a channel's state into an offer: the base of the next voucher, and the newest voucher, by which the client
// knows that the base is not made up. A client that is shown no voucher takes what the chain has claimed.
func (c *Resync) Show(offer *x402.Requirements) {
	charged := wire.NewAmount(c.Account.Charged)
	offer.Extra.ChannelState = &x402.ChannelState{Snapshot: c.Account.Snapshot(), ChargedCumulativeAmount: &charged}
	if len(c.Account.Signature) == 0 || c.Account.Charged.Gt(&c.Account.Accepted) { // as after a restore: it would prove that we lie
		return
	}
	v, err := x402.VoucherOf(c.Account.Voucher())
	if err == nil {
		offer.Extra.VoucherState = &x402.VoucherState{SignedMaxClaimable: v.MaxClaimableAmount, Signature: v.Signature}
	}
}

// ErrWithdrawing refuses to serve what might never be paid.
var ErrWithdrawing = errors.New("a withdrawal of the channel is pending: nothing is served from it until that is over; a refund is faster")

// ErrRefunding refuses to serve from a deposit that a refund is about to take.
var ErrRefunding = errors.New("a refund of the channel is on its way: nothing is served from it until that is mined; send the request again then")

// ErrScattered refuses to serve from yet another channel of one payer.
var ErrScattered = errors.New("too much was used on other channels of this payer, on each too little for a claim: refund those, which pays for it, or use one channel")

// codes maps what can be wrong with a payment to what x402 calls it. The first match counts.
var codes = []struct {
	err  error
	code string
}{
	{channel.ErrSignature, string(x402.CodeVoucherSignature)},
	{channel.ErrExceedsDeposit, string(x402.CodeCumulativeExceedsBalance)},
	{ErrWithdrawing, ErrWithdrawing.Error()},
	{ErrRefunding, ErrRefunding.Error()},
	{ErrScattered, ErrScattered.Error()},
	{channel.ErrClosing, ErrWithdrawing.Error()},
	{channel.ErrTerms, string(x402.CodeWithdrawDelayOutOfRange)},
}

// Reason is what x402 calls an error; false if it has no word for it.
func Reason(err error) (string, bool) {
	var wrong *Resync
	if errors.As(err, &wrong) {
		return string(x402.CodeCumulativeMismatch), true
	}
	var code x402.Code
	if errors.As(err, &code) {
		return string(code), true
	}
	for _, known := range codes {
		if errors.Is(err, known.err) {
			return known.code, true
		}
	}
	return "", false
}
