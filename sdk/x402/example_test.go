package x402_test

import (
	"context"
	"fmt"
	"net/http"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// A server offers a request for 100, a client pays it from a channel, and the server holds the payment to its offer.
func Example() {
	key := channel.NewKey(crypto.ToECDSAUnsafe(common.LeftPadBytes([]byte{7}, 32)))
	payee := wire.Address{2}
	offer := x402.Requirements{Network: 31337, Amount: wire.NewAmount(*uint256.NewInt(100)), Asset: wire.Address{3}, PayTo: payee, MaxTimeoutSeconds: 60,
		Extra: x402.Extra{Name: "Test USD", Version: "1", ReceiverAuthorizer: payee, WithdrawDelay: 3600}}
	answer := http.Header{}
	must(x402.PaymentRequired{Error: x402.FirstError, Resource: x402.Resource{URL: "https://gpus.example.org/chat"}, Accepts: []x402.Requirements{offer}}.Set(answer))

	asked, err := x402.ParsePaymentRequired(answer) // the client, from here on
	must(err)
	accepted := asked.Accepts[0]
	config := x402.ChannelConfig{Payer: wire.Address(key.Address()), PayerAuthorizer: wire.Address(key.Address()), Receiver: accepted.PayTo,
		ReceiverAuthorizer: accepted.Extra.ReceiverAuthorizer, Token: accepted.Asset, WithdrawDelay: accepted.Extra.WithdrawDelay}
	terms := config.Terms(accepted.Network)
	domain := channel.BatchSettlement.Domain(terms.ChainID, terms.Escrow)
	signed, err := domain.Sign(context.Background(), key, terms.ID(), accepted.Amount.Int) // by channel.Payer.Pay, where there is money
	must(err)
	voucher, err := x402.VoucherOf(signed)
	must(err)
	request := http.Header{}
	must(x402.PaymentPayload{Accepted: accepted, Payload: x402.Payload{Type: x402.TypeVoucher, Config: config, Voucher: voucher}}.Set(request))

	payment, err := x402.ParsePaymentPayload(request) // the server again
	must(err)
	of, err := payment.Check(offer)
	must(err)
	fmt.Println("for", payment.Payload.Voucher.MaxClaimableAmount.Dec(), "of the client's channel:", of.ID() == terms.ID())
	fmt.Println("signed by the payer:", domain.Verify(payment.Payload.Voucher.Voucher(), of.Signer()) == nil)
	// Output:
	// for 100 of the client's channel: true
	// signed by the payer: true
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
