package wire

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel"
)

// A request to leave is one flat object, as watchtowers have it on disk and renters may have kept it, and only what its payer
// signed passes.
func TestLeaveRequest(t *testing.T) {
	secret, err := crypto.ToECDSA(common.Hash{31: 1}.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	key := channel.NewKey(secret)
	terms := channel.Terms{ChainID: 7, Escrow: common.Address{1}, Payer: key.Address(), Payee: common.Address{2}, Token: common.Address{3}, Salt: common.Hash{31: 4}}
	signature, err := key.Sign(t.Context(), channel.EscrowDomain(7, terms.Escrow).RequestCloseDigest(terms.ID(), 5, 6))
	if err != nil {
		t.Fatal(err)
	}
	kept := `{"chainId":7,"escrow":"0x0100000000000000000000000000000000000000","payer":"0x7E5F4552091A69125d5DfCb7b8C2659029395Bdf",` +
		`"payee":"0x0200000000000000000000000000000000000000","token":"0x0300000000000000000000000000000000000000",` +
		`"salt":"0x0000000000000000000000000000000000000000000000000000000000000004","authorizedSigner":"0x0000000000000000000000000000000000000000",` +
		`"closeRequests":5,"deadline":6,"signature":"` + Bytes(signature).String() + `"}`
	var q LeaveRequest
	if err := json.Unmarshal([]byte(kept), &q); err != nil {
		t.Fatal(err)
	}
	if err := q.Check(); err != nil || q.Channel() != terms {
		t.Errorf("read as %+v, %v", q, err)
	}
	again, err := json.Marshal(LeaveRequest{Terms: NewTerms(terms), CloseRequests: 5, Deadline: 6, Signature: signature})
	if err != nil || string(again) != kept {
		t.Errorf("written as %s, %v", again, err)
	}
	for _, member := range []string{`"chainId":7`, `"closeRequests":5`, `"deadline":6`} {
		forged := LeaveRequest{}
		if err := json.Unmarshal([]byte(strings.Replace(kept, member, member+"0", 1)), &forged); err != nil {
			t.Fatal(err)
		}
		if err := forged.Check(); !errors.Is(err, channel.ErrSignature) {
			t.Errorf("another %s: %v, want ErrSignature", member, err)
		}
	}
}
