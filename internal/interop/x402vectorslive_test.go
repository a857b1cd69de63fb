package interop

import (
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/sdk/chain"
)

// x402Answer is what the official facilitator says of what it did.
type x402Answer struct {
	Success      bool   `json:"success"`
	IsValid      bool   `json:"isValid"`
	ErrorReason  string `json:"errorReason"`
	ErrorMessage string `json:"errorMessage"`
	Amount       string `json:"amount"`
	Extra        struct {
		ChannelState struct {
			Balance      string `json:"balance"`
			TotalClaimed string `json:"totalClaimed"`
		} `json:"channelState"`
	} `json:"extra"`
}

// TestOfficialFacilitatorOnTheStandIn: the contract that our tests pay into is one that the official client and facilitator
// take for the real one, through a channel's whole life, and we read what they did.
func TestOfficialFacilitatorOnTheStandIn(t *testing.T) {
	needNode(t)
	t.Parallel()
	c := chaintest.Anvil(t)
	c.PlaceBatchSettlement(t)
	contract, err := chain.NewBatchSettlement(t.Context(), c.Backend)
	if err != nil {
		t.Fatal(err)
	}
	payer, receiver := crypto.PubkeyToAddress(c.Keys[0].PublicKey), common.Address{0xcc}
	c.Mint(t, payer, purse)
	var got struct {
		ID       common.Hash `json:"id"`
		Verified x402Answer  `json:"verified"`
		Deposit  x402Answer  `json:"deposit"`
		Claim    x402Answer  `json:"claim"`
		Payout   x402Answer  `json:"payout"`
		Refund   x402Answer  `json:"refund"`
	}
	node(t, &got, map[string]string{
		"rpc": c.URL, "payerKey": hexutil.Encode(crypto.FromECDSA(c.Keys[0])), "operatorKey": hexutil.Encode(crypto.FromECDSA(c.Keys[1])),
		"receiver": receiver.Hex(), "token": c.Token.Hex(), "tokenName": tokenName,
	}, "x402vectorslive.mjs")

	if !got.Verified.IsValid {
		t.Errorf("the voucher is not valid: %+v", got.Verified)
	}
	for name, a := range map[string]x402Answer{"deposit": got.Deposit, "claim": got.Claim, "payout": got.Payout, "refund": got.Refund} {
		if !a.Success {
			t.Errorf("%s: %s %s", name, a.ErrorReason, a.ErrorMessage)
		}
	}
	if got.Deposit.Extra.ChannelState.Balance != "10000" || got.Payout.Amount != "1400" || got.Refund.Amount != "8300" {
		t.Errorf("deposit %+v, payout %+v, refund %+v", got.Deposit, got.Payout, got.Refund)
	}
	state, err := contract.State(t.Context(), got.ID)
	if err != nil {
		t.Fatal(err)
	}
	if state.View.Deposit.Uint64() != 1700 || state.View.Settled.Uint64() != 1700 || state.RefundNonce.Uint64() != 1 {
		t.Errorf("the channel is %+v, refund nonce %s", state.View, state.RefundNonce.Dec())
	}
	for who, want := range map[common.Address]uint64{payer: purse - 1700, receiver: 1400, channel.BatchSettlementEscrow: 300} {
		if tokens := c.Tokens(t, who); tokens != want {
			t.Errorf("%s has %d, want %d", who, tokens, want)
		}
	}
	if _, due, err := contract.PayoutCall(t.Context(), receiver, c.Token); err != nil || due.IsZero() {
		t.Errorf("what the refund claimed is not due: %v", err)
	}
}
