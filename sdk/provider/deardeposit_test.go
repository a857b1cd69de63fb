package provider

import (
	"math/big"
	"net/http"
	"testing"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestDearDepositsAreNotSent: a payer that is a contract burns gas in isValidSignature as it likes. Its deposit is not sent, and costs
// nothing; one that burns little is, within the budgets.
func TestDearDepositsAreNotSent(t *testing.T) {
	a := newAnvilRig(t, quiet)
	l := Limits{}.withDefaults()
	cost := func(n byte, loops string) (*http.Response, *big.Int) {
		wallet := common.BytesToAddress([]byte{0xaa, 0xbb, n, 1})
		// loops, then answers 0x1626ba7e to whatever it is asked
		a.anvil.RPC(t, nil, "anvil_setCode", wallet, "0x62"+loops+"5b"+"6001"+"90"+"03"+"80"+"6004"+"57"+"50"+"631626ba7e"+"60e0"+"1b"+"6000"+"52"+"6020"+"6000"+"f3")
		a.anvil.Mint(t, wallet, 1_000_000)
		a.anvil.RPC(t, nil, "anvil_setNextBlockBaseFeePerGas", "0x4a817c800") // 20 gwei
		a.anvil.Mine(t, 1)
		terms := a.terms(wallet, n+1)
		terms.AuthorizedSigner = a.payer.Address()
		own := terms
		own.Payer = a.payer.Address()
		cred := a.openCredential(a.payer, own, 100_000, 0)
		cred.Source, cred.Payload.ChannelID = wire.Source(terms.ChainID, wallet), terms.ID()
		cred.Payload.Authorization.From, cred.Payload.Authorization.Nonce = wire.Address(wallet), channel.OpenNonce(wallet, terms)
		cred.Payload.VoucherSignature = a.sign(a.payer, terms, 0)
		signer := wire.Address(terms.AuthorizedSigner)
		cred.Payload.AuthorizedSigner = &signer
		coin := func() *big.Int {
			have, err := a.anvil.Backend.BalanceAt(t.Context(), a.config.Key.Address(), nil)
			if err != nil {
				t.Fatal(err)
			}
			return have
		}
		before := coin()
		resp := a.do("POST", "", cred)
		return resp, before.Sub(before, coin())
	}
	resp, spent := cost(0, "0aae60") // 700,000 times
	if err := problemIn(wire.NotServed, resp); err != nil || spent.Sign() != 0 {
		t.Errorf("it cost %s wei, where one payer has %s a day (%v)", spent, l.SponsoredGasPerPayer, err)
	}
	if resp, spent = cost(1, "000400"); resp.StatusCode != http.StatusOK || spent.Cmp(l.SponsoredGasPerPayer) > 0 {
		t.Errorf("a wallet that takes little gas: %s, %s wei", resp.Status, spent)
	}
	a.provider.sponsor.Budget.PerPayer = new(big.Int).Div(spent, big.NewInt(2))
	if resp, spent = cost(2, "000400"); spent.Sign() != 0 {
		t.Errorf("%s: it cost %s wei, over what one payer has a day", resp.Status, spent)
	} else if err := problemIn(wire.TooMany, resp); err != nil {
		t.Error(err)
	}
}
