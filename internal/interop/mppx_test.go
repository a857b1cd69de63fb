package interop

import (
	"crypto/rand"
	"encoding/base64"
	"net/http"
	"reflect"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
)

// answer is what mppx.mjs prints.
type answer struct {
	Request    wire.Request   `json:"request"` // of the provider's challenge, as mppx understood it
	Receipts   []wire.Receipt `json:"receipts"`
	Minted     wire.Request   `json:"minted"` // of our own challenge
	Challenge  string         `json:"challenge"`
	Credential string         `json:"credential"` // that answers it
}

// TestMppxSpeaksTheScheme: mppx parses the provider's challenge, echoes it in a credential that the provider accepts,
// and parses the receipt; its JSON and its challenge ids are ours to the byte.
func TestMppxSpeaksTheScheme(t *testing.T) {
	r := newRig(t)
	private, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	payer := channel.NewKey(private)
	r.chain.Mint(t, payer.Address(), purse)
	terms := channel.Terms{ChainID: r.escrow.ChainID(), Escrow: r.chain.Escrow, Payer: payer.Address(), Payee: r.payee, Token: r.chain.Token, Salt: common.Hash{1}}
	payloads := []wire.Payload{r.open(payer, terms), r.voucher(payer, terms, 1234)}
	minter := &wire.Minter{Secret: []byte(rand.Text() + rand.Text()), Realm: `gpu "one" \ two`, TTL: time.Minute, Now: time.Now}
	minted := r.mint(minter)

	var got answer
	node(t, &got, map[string]any{
		"url": r.url, "source": wire.Source(terms.ChainID, terms.Payer), "payloads": payloads,
		"minted": map[string]string{"header": minted.Header(), "secret": string(minter.Secret)},
	}, "mppx.mjs")

	if got.Request.Recipient != wire.Address(r.payee) || got.Request.ExternalID != r.provider.Offer().Hash.Hex() {
		t.Errorf("mppx read the request as %+v", got.Request)
	}
	if want := awkward(); !reflect.DeepEqual(got.Minted, want) {
		t.Errorf("mppx read the minted request as %+v, not %+v", got.Minted, want)
	}
	for i, accepted := range []uint64{1, 1234} {
		receipt := got.Receipts[i]
		if receipt.ChannelID != terms.ID() || receipt.Reference != terms.ID() || receipt.AcceptedCumulative.Uint64() != accepted {
			t.Errorf("mppx read receipt %d as %+v", i, receipt)
		}
	}
	if view := r.view(terms.ID()); view.Deposit.Uint64() != deposit {
		t.Errorf("what mppx sent opened the channel as %+v", view)
	}
	r.reads(minter, minted, got, payloads[0])
}

// reads checks that we understand what mppx wrote: its own challenge, and a credential that answers it.
func (r *rig) reads(minter *wire.Minter, minted wire.Challenge, got answer, payload wire.Payload) {
	r.Helper()
	challenges, err := wire.ParseChallenges(http.Header{"Www-Authenticate": {got.Challenge}})
	if err != nil || len(challenges) != 1 {
		r.Fatalf("mppx's challenge %q is read as %v (%v)", got.Challenge, challenges, err)
	}
	cred, err := wire.ParseCredential(http.Header{"Authorization": {got.Credential}})
	if err != nil {
		r.Fatal(err)
	}
	for name, c := range map[string]wire.Challenge{"challenge": challenges[0], "credential": cred.Challenge} {
		if err := minter.Check(c); err != nil {
			r.Errorf("mppx's %s: %v", name, err)
		}
		if c != minted {
			r.Errorf("mppx's %s has %+v, not %+v", name, c, minted)
		}
	}
	if !reflect.DeepEqual(cred.Payload, payload) {
		r.Errorf("the payload came back as %+v, not %+v", cred.Payload, payload)
	}
}

// awkward is a request whose text needs care in JSON, base64url or UTF-16.
func awkward() wire.Request {
	delta := wire.NewAmount(channel.MaxAmount())
	return wire.Request{
		Amount: wire.NewAmount(*uint256.NewInt(1000)), UnitType: "gpu_second", Currency: wire.Address{1}, Recipient: wire.Address{2},
		ExternalID: "<a href=\"b\">&c</a>\t\n\u0001 \u2028\u2029 é € 𝄞 ???>>>~~~ \\u0041",
		MethodDetails: wire.MethodDetails{ChainID: 1<<53 - 1, EscrowContract: wire.Address{3}, MinVoucherDelta: &delta, FeePayer: true,
			CredentialTypes: []string{wire.TypeHash, wire.TypeAuthorization}},
	}
}

func (r *rig) mint(minter *wire.Minter) wire.Challenge {
	r.Helper()
	c, err := minter.Mint(awkward(), rand.Text())
	if err != nil {
		r.Fatal(err)
	}
	if _, err := base64.RawURLEncoding.DecodeString(c.Request); err != nil {
		r.Fatal(err)
	}
	return c
}

// open is the payload of a gasless open with a first voucher over one base unit.
func (r *rig) open(payer *channel.Key, terms channel.Terms) wire.Payload {
	r.Helper()
	token, err := chain.NewToken(r.Context(), r.chain.Backend, terms.Token)
	if err != nil {
		r.Fatal(err)
	}
	domain, err := token.DomainSeparator(r.Context())
	if err != nil {
		r.Fatal(err)
	}
	amount := *uint256.NewInt(deposit)
	before := uint64(time.Now().Add(time.Hour).Unix())
	nonce := channel.OpenNonce(terms.Payer, terms)
	auth, err := chain.SignAuthorization(r.Context(), payer, domain, channel.Authorization{
		From: terms.Payer, To: terms.Escrow, Value: amount, ValidBefore: before, Nonce: nonce})
	if err != nil {
		r.Fatal(err)
	}
	voucher := r.voucher(payer, terms, 1)
	return wire.Payload{
		Action: wire.ActionOpen, Type: wire.TypeAuthorization, ChannelID: terms.ID(), Salt: &terms.Salt,
		Authorization: &wire.Authorization{From: wire.Address(terms.Payer), To: wire.Address(terms.Escrow), Value: wire.NewAmount(amount),
			ValidBefore: wire.NewAmount(*uint256.NewInt(before)), Nonce: nonce},
		Signature: auth.Signature, CumulativeAmount: voucher.CumulativeAmount, VoucherSignature: voucher.Signature,
	}
}

func (r *rig) voucher(payer *channel.Key, terms channel.Terms, amount uint64) wire.Payload {
	r.Helper()
	v, err := r.escrow.Domain().Sign(r.Context(), payer, terms.ID(), *uint256.NewInt(amount))
	if err != nil {
		r.Fatal(err)
	}
	cumulative := wire.NewAmount(v.Cumulative)
	return wire.Payload{Action: wire.ActionVoucher, ChannelID: terms.ID(), CumulativeAmount: &cumulative, Signature: v.Signature}
}
