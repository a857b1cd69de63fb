package x402

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/wire"
)

// golden are headers that the official npm packages wrote; internal/interop keeps them up to date.
func golden(t testing.TB) map[string]string {
	t.Helper()
	text, err := os.ReadFile("testdata/npm.json")
	if err != nil {
		t.Fatal(err)
	}
	var headers map[string]string
	if err := json.Unmarshal(text, &headers); err != nil {
		t.Fatal(err)
	}
	return headers
}

func header(name, text string) http.Header {
	h := http.Header{}
	h.Set(name, text)
	return h
}

func plain(t testing.TB, text string) string {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func encoded(json string) string { return base64.StdEncoding.EncodeToString([]byte(json)) }

// offer is what the golden payments accept.
func offer() Requirements {
	minDeposit := wire.NewAmount(*uint256.NewInt(10_000))
	return Requirements{
		Network: 31337, Amount: wire.NewAmount(*uint256.NewInt(1000)), Asset: wire.Address{0xa1, 0xb2}, PayTo: wire.Address{0xc3, 0xd4}, MaxTimeoutSeconds: 300,
		Extra: Extra{
			Name: `Test "USD" <é>`, Version: "1", AssetTransferMethod: TransferERC3009,
			ReceiverAuthorizer: wire.Address{0xe5, 0xf6}, WithdrawDelay: 86_400, MinDeposit: &minDeposit,
		},
	}
}

func payment(t testing.TB, name string) PaymentPayload {
	t.Helper()
	p, err := ParsePaymentPayload(header(HeaderSignature, golden(t)[name]))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return p
}

func TestOfficialPaymentsAreRead(t *testing.T) {
	for _, row := range []struct {
		name       string
		kind       Type
		cumulative string
		deposit    string
		refund     string
	}{
		{"deposit", TypeDeposit, "1000", "10000", ""},
		{"voucher", TypeVoucher, "1700", "", ""},
		{"corrected", TypeVoucher, "1900", "", ""},
		{"refundPart", TypeRefund, "900", "", "500"},
		{"refundAll", TypeRefund, "900", "", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := payment(t, row.name)
			terms, err := p.Check(offer())
			if err != nil {
				t.Fatal(err)
			}
			v := p.Payload.Voucher.Voucher()
			if err := channel.BatchSettlement.Domain(31337, channel.BatchSettlementEscrow).Verify(v, terms.Signer()); err != nil {
				t.Error(err)
			}
			if p.Payload.Type != row.kind || v.Cumulative.Dec() != row.cumulative {
				t.Errorf("a %s over %s", p.Payload.Type, v.Cumulative.Dec())
			}
			if d := p.Payload.Deposit; (d == nil) != (row.deposit == "") || d != nil && d.Amount.Dec() != row.deposit {
				t.Errorf("deposit is %+v", d)
			}
			if r := p.Payload.Refund; (r == nil) != (row.refund == "") || r != nil && r.Dec() != row.refund {
				t.Errorf("refund is %v", r)
			}
			again, err := ConfigOf(terms)
			if err != nil || again != p.Payload.Config {
				t.Errorf("the configuration became %+v (%v)", again, err)
			}
			back, err := VoucherOf(v)
			if err != nil || back != p.Payload.Voucher {
				t.Errorf("the voucher became %+v (%v)", back, err)
			}
		})
	}
}

func TestOfficialReceiptsAreRead(t *testing.T) {
	charged, err := ParseSettleResponse(header(HeaderResponse, golden(t)["charged"]))
	if err != nil {
		t.Fatal(err)
	}
	state := charged.ChannelState
	if !charged.Success || charged.ChargedAmount.Dec() != "700" || charged.Amount.Dec() != "10000" || state.ChargedCumulativeAmount.Dec() != "700" || state.Balance.Dec() != "10000" {
		t.Errorf("read as %+v", charged)
	}
	refused, err := ParseSettleResponse(header(HeaderResponse, golden(t)["refused"]))
	if err != nil {
		t.Fatal(err)
	}
	if refused.Success || refused.ErrorReason != "settlement_pending" || refused.Transaction != (Transaction{}) || refused.Network != 31337 || refused.ChargedAmount != nil {
		t.Errorf("read as %+v", refused)
	}
}

func TestConversionsRefuseWhatIsNotX402(t *testing.T) {
	good := payment(t, "voucher").Payload.Config.Terms(31337)
	for name, spoil := range map[string]func(*channel.Terms){
		"our own scheme": func(t *channel.Terms) {
			t.Scheme, t.PayeeAuthorizer, t.WithdrawDelay = channel.Session, common.Address{}, 0
		},
		"another escrow":           func(t *channel.Terms) { t.Escrow[0]++ },
		"no payer":                 func(t *channel.Terms) { t.Payer = common.Address{} },
		"no receiver's authorizer": func(t *channel.Terms) { t.PayeeAuthorizer = common.Address{} },
		"a delay of 14 minutes":    func(t *channel.Terms) { t.WithdrawDelay = 14 * 60 },
		"a delay of 31 days":       func(t *channel.Terms) { t.WithdrawDelay = 31 * 24 * 3600 },
	} {
		bad := good
		spoil(&bad)
		if _, err := ConfigOf(bad); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	for _, n := range []int{0, 64, 66} {
		if _, err := VoucherOf(channel.Voucher{Signature: make([]byte, n)}); err == nil {
			t.Errorf("a signature of %d bytes was taken", n)
		}
	}
}
