package wire_test

import (
	"fmt"
	"net/http"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/wire"
)

// A server asks for a payment, a client answers with a voucher, and has a receipt: three headers.
func Example() {
	minter := wire.Minter{Secret: make([]byte, 32), Realm: "gpus.example.org", TTL: time.Minute, Now: time.Now} // a secret of your own
	challenge, err := minter.Mint(wire.Request{Amount: wire.NewAmount(*uint256.NewInt(1000)), UnitType: "gpu_second"}, "nonce")
	must(err)
	answer := http.Header{"Www-Authenticate": {challenge.Header()}}

	asked, err := wire.ParseChallenges(answer) // the client, from here on
	must(err)
	price, err := asked[0].Decode()
	must(err)
	total := wire.NewAmount(*uint256.NewInt(60_000))
	credential, err := wire.Credential{Challenge: asked[0], Payload: wire.Payload{ // its signature is from channel.Payer.Pay
		Action: wire.ActionVoucher, ChannelID: common.Hash{1}, CumulativeAmount: &total, Signature: make([]byte, 65),
	}}.Header()
	must(err)

	paid, err := wire.ParseCredential(http.Header{"Authorization": {credential}}) // the server again
	must(err)
	must(minter.Check(paid.Challenge)) // channel.Payee.Accept judges the voucher
	accepted := *paid.Payload.CumulativeAmount
	answer = http.Header{}
	must(wire.NewReceipt(time.Now(), paid.Challenge.ID, 31337, paid.Payload.ChannelID, accepted, accepted).Set(answer))

	receipt, err := wire.ParseReceipt(answer)
	must(err)
	fmt.Println("asked:", price.Amount.Dec(), "per", price.UnitType)
	fmt.Println("accepted in all:", receipt.AcceptedCumulative.Dec())
	// Output:
	// asked: 1000 per gpu_second
	// accepted in all: 60000
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
