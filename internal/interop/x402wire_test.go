package interop

import (
	"bytes"
	"encoding/json"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/eip712"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// x402Golden is what the official packages wrote: package x402's own tests read it where there is no node.
const x402Golden = "../../sdk/x402/testdata/npm.json"

var updateX402 = flag.Bool("update", false, "rewrite "+x402Golden)

// x402Side is our side of the exchange: the payer's key and what is offered to it.
type x402Side struct {
	*testing.T
	payer *channel.Key
	key   string
	offer x402.Requirements
	terms channel.Terms
}

func newX402Side(t *testing.T) x402Side {
	private, err := crypto.ToECDSA(bytes.Repeat([]byte{9}, 32))
	if err != nil {
		t.Fatal(err)
	}
	minDeposit := amountOf(10_000)
	s := x402Side{
		T: t, payer: channel.NewKey(private), key: hexutil.Encode(crypto.FromECDSA(private)),
		offer: x402.Requirements{
			Network: 31337, Amount: amountOf(1000), Asset: wire.Address{0xa1, 0xb2}, PayTo: wire.Address{0xc3, 0xd4}, MaxTimeoutSeconds: 300,
			Extra: x402.Extra{
				Name: `Test "USD" <é>`, Version: "1", AssetTransferMethod: x402.TransferERC3009,
				ReceiverAuthorizer: wire.Address{0xe5, 0xf6}, WithdrawDelay: 86_400, MinDeposit: &minDeposit,
			},
		},
	}
	config := x402.ChannelConfig{
		Payer: wire.Address(s.payer.Address()), PayerAuthorizer: wire.Address(s.payer.Address()), Receiver: s.offer.PayTo,
		ReceiverAuthorizer: s.offer.Extra.ReceiverAuthorizer, Token: s.offer.Asset, WithdrawDelay: s.offer.Extra.WithdrawDelay,
	}
	s.terms = config.Terms(s.offer.Network)
	return s
}

func amountOf(n uint64) wire.Amount { return wire.NewAmount(*uint256.NewInt(n)) }

func (s x402Side) voucher(cumulative uint64) x402.Voucher {
	s.Helper()
	domain := channel.BatchSettlement.Domain(s.terms.ChainID, s.terms.Escrow)
	signed, err := domain.Sign(s.Context(), s.payer, s.terms.ID(), *uint256.NewInt(cumulative))
	if err != nil {
		s.Fatal(err)
	}
	v, err := x402.VoucherOf(signed)
	if err != nil {
		s.Fatal(err)
	}
	return v
}

// setter is a message of package x402.
type setter interface{ Set(http.Header) error }

func (s x402Side) header(name string, m setter) string {
	s.Helper()
	h := http.Header{}
	if err := m.Set(h); err != nil {
		s.Fatal(err)
	}
	return h.Get(name)
}

// answers are the headers of a server that the official client is shown.
func (s x402Side) answers() map[string]string {
	charged, cumulative, base, moved := amountOf(700), amountOf(700), amountOf(900), amountOf(500)
	payer := wire.Address(s.payer.Address())
	snapshot := &x402.Snapshot{ChannelID: x402.Hash(s.terms.ID()), Balance: amountOf(10_000)}
	required := x402.PaymentRequired{Error: x402.FirstError, Resource: x402.Resource{URL: "http://provider.example/"}, Accepts: []x402.Requirements{s.offer}}
	corrective := required
	corrective.Error = string(x402.CodeCumulativeMismatch)
	repaired := s.offer
	repaired.Extra.ChannelState = &x402.ChannelState{Snapshot: snapshot, ChargedCumulativeAmount: &base}
	newest := s.voucher(1900)
	repaired.Extra.VoucherState = &x402.VoucherState{SignedMaxClaimable: newest.MaxClaimableAmount, Signature: newest.Signature}
	corrective.Accepts = []x402.Requirements{repaired}
	return map[string]string{
		"required":   s.header(x402.HeaderRequired, required),
		"corrective": s.header(x402.HeaderRequired, corrective),
		"charged": s.header(x402.HeaderResponse, x402.SettleResponse{
			Success: true, Transaction: x402.Transaction{1}, Network: 31337, Payer: &payer, Amount: s.offer.Extra.MinDeposit, ChargedAmount: &charged,
			ChannelState: &x402.ChannelState{Snapshot: snapshot, ChargedCumulativeAmount: &cumulative},
		}),
		"refunded": s.header(x402.HeaderResponse, x402.SettleResponse{
			Success: true, Transaction: x402.Transaction{2}, Network: 31337, Payer: &payer, Amount: &moved,
			ChannelState: &x402.ChannelState{Snapshot: snapshot, ChargedCumulativeAmount: &base},
		}),
	}
}

// payments are the headers of a client that the official server is shown; deposit is the first one's payload.
func (s x402Side) payments() (headers map[string]string, deposit x402.Payload) {
	s.Helper()
	config, err := x402.ConfigOf(s.terms)
	if err != nil {
		s.Fatal(err)
	}
	deposit = x402.Payload{Type: x402.TypeDeposit, Config: config, Voucher: s.voucher(1700), Deposit: &x402.Deposit{
		Amount: amountOf(20_000), Authorization: x402.Authorization{ValidBefore: 1_900_000_000, Salt: x402.Hash{0xfe, 31: 1}},
	}}
	token := eip712.DomainSeparator(s.offer.Extra.Name, s.offer.Extra.Version, s.terms.ChainID, s.terms.Token)
	sig, err := s.payer.Sign(s.Context(), deposit.Authorization().Digest(token))
	if err != nil {
		s.Fatal(err)
	}
	copy(deposit.Deposit.Authorization.Signature[:], sig)
	part := amountOf(500)
	headers = make(map[string]string)
	for name, payload := range map[string]x402.Payload{
		"deposit": deposit,
		"voucher": {Type: x402.TypeVoucher, Config: config, Voucher: s.voucher(1700)},
		"refund":  {Type: x402.TypeRefund, Config: config, Voucher: s.voucher(700), Refund: &part},
	} {
		headers[name] = s.header(x402.HeaderSignature, x402.PaymentPayload{Accepted: s.offer, Payload: payload})
	}
	return headers, deposit
}

// TestX402WireBothWays: what Go writes the official client and server take, and what they write Go takes.
func TestX402WireBothWays(t *testing.T) {
	needNode(t)
	s := newX402Side(t)
	payments, deposit := s.payments()
	got := make(map[string]string)
	node(t, &got, map[string]any{"key": s.key, "answers": s.answers(), "payments": payments, "codes": x402Codes(t)}, "x402wire.mjs")

	a := deposit.Deposit.Authorization
	if data := chain.CollectorData(common.Hash(a.Salt), chain.Authorization{Authorization: deposit.Authorization(), Signature: a.Signature[:]}); hexutil.Encode(data) != got["collectorData"] {
		t.Errorf("collector data is %x, viem encodes %s", data, got["collectorData"])
	}
	if nonce := deposit.Authorization().Nonce; nonce.Hex() != got["nonce"] {
		t.Errorf("a deposit's nonce is %s, viem computes %s", nonce, got["nonce"])
	}
	for name, want := range map[string]uint64{"deposit": 1000, "voucher": 1700, "corrected": 1900, "refundPart": 900, "refundAll": 900} {
		s.paid(name, got[name], want)
	}
	s.offered(got["required"])
	s.golden(got)
}

// paid reads a payment that the official client wrote.
func (s x402Side) paid(name, header string, cumulative uint64) {
	s.Helper()
	p, err := x402.ParsePaymentPayload(http.Header{"Payment-Signature": {header}})
	if err != nil {
		s.Fatalf("%s: %v", name, err)
	}
	terms, err := p.Check(s.offer)
	if err != nil || terms != s.terms {
		s.Errorf("%s: terms are %+v, not %+v (%v)", name, terms, s.terms, err)
	}
	v := p.Payload.Voucher.Voucher()
	if v.Cumulative.Uint64() != cumulative {
		s.Errorf("%s: the voucher is over %s, not %d", name, v.Cumulative.Dec(), cumulative)
	}
	if err := channel.BatchSettlement.Domain(31337, channel.BatchSettlementEscrow).Verify(v, terms.Signer()); err != nil {
		s.Errorf("%s: %v", name, err)
	}
	if p.Resource == nil || p.Resource.URL != "http://provider.example/" {
		s.Errorf("%s: resource is %+v", name, p.Resource)
	}
	if refund := p.Payload.Refund; (name == "refundPart") != (refund != nil && refund.Dec() == "500") {
		s.Errorf("%s: refund is %v", name, refund)
	}
	if name != "deposit" {
		return
	}
	a := p.Payload.Authorization()
	if a.From != s.payer.Address() || a.To != channel.BatchSettlementCollector || a.Value.Dec() != "10000" || a.ValidAfter != 0 || a.ValidBefore != 1_800_000_300 {
		s.Errorf("the deposit is %+v", a)
	}
	token := eip712.DomainSeparator(s.offer.Extra.Name, s.offer.Extra.Version, 31337, common.Address(s.offer.Asset))
	by, err := eip712.Recover(a.Digest(token), p.Payload.Deposit.Authorization.Signature[:])
	if err != nil || by != a.From {
		s.Errorf("the deposit is signed by %s (%v)", by, err)
	}
}

// offered reads an answer that the official server's code wrote, and echoes it.
func (s x402Side) offered(header string) {
	s.Helper()
	required, err := x402.ParsePaymentRequired(http.Header{"Payment-Required": {header}})
	if err != nil {
		s.Fatal(err)
	}
	if len(required.Accepts) != 1 || required.Error != x402.FirstError || !strings.Contains(string(required.Extensions), "payment-identifier") {
		s.Fatalf("the offer was read as %+v", required)
	}
	if err := x402.Match(required.Accepts[0], s.offer); err != nil {
		s.Error(err)
	}
	echo, err := json.Marshal(required.Accepts[0])
	if err != nil || !strings.Contains(string(echo), `"unknown":{"a":"é`) || !strings.Contains(string(echo), strings.ToLower(s.offer.PayTo.String())) {
		s.Errorf("the offer is echoed as %s (%v)", echo, err)
	}
}

// golden compares what the packages wrote with the file that stands in for them elsewhere.
func (s x402Side) golden(got map[string]string) {
	s.Helper()
	if *updateX402 {
		text, err := json.MarshalIndent(got, "", "  ")
		if err != nil {
			s.Fatal(err)
		}
		if err := os.WriteFile(filepath.FromSlash(x402Golden), append(text, '\n'), 0o644); err != nil {
			s.Fatal(err)
		}
	}
	text, err := os.ReadFile(filepath.FromSlash(x402Golden))
	if err != nil {
		s.Fatal(err)
	}
	var kept map[string]string
	if err := json.Unmarshal(text, &kept); err != nil {
		s.Fatal(err)
	}
	if !reflect.DeepEqual(kept, got) {
		s.Errorf("%s is not what the packages write: run this test with -update", x402Golden)
	}
}

// x402Codes are the values of all constants of type Code, from the source.
func x402Codes(t *testing.T) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../../sdk/x402/codes.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var codes []string
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		for _, value := range spec.Values {
			code, err := strconv.Unquote(value.(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			codes = append(codes, code)
		}
		return true
	})
	if len(codes) < 30 {
		t.Fatalf("found %d codes", len(codes))
	}
	return codes
}
