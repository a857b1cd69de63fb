package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
)

var testTime = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func testMinter(now time.Time) *Minter {
	return &Minter{Secret: bytes.Repeat([]byte{7}, 32), Realm: "gpupay", TTL: time.Minute, Now: func() time.Time { return now }}
}

func testRequest() Request {
	deposit := Amount{*uint256.NewInt(1_000_000)}
	return Request{
		Amount: Amount{*uint256.NewInt(1000)}, UnitType: "gpu_second", SuggestedDeposit: &deposit,
		Currency: Address{0x11}, Recipient: Address{0x22}, Description: `GPU "time", metered \ signed`,
		MethodDetails: MethodDetails{ChainID: 31337, EscrowContract: Address{0x33}, FeePayer: true, CredentialTypes: []string{TypeAuthorization, TypeHash}},
	}
}

func testKey(t *testing.T, b byte) *channel.Key {
	t.Helper()
	private, err := crypto.ToECDSA(bytes.Repeat([]byte{b}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return channel.NewKey(private)
}

func TestChallengeSurvivesItsHeader(t *testing.T) {
	m := testMinter(testTime)
	c, err := m.Mint(testRequest(), "n1")
	if err != nil {
		t.Fatal(err)
	}
	h := http.Header{}
	h.Add("WWW-Authenticate", `Basic realm="x", `+c.Header()+`, Bearer`)
	h.Add("WWW-Authenticate", `Payment id=unquoted, realm="r", method="tempo", intent="charge", request="e30", future="1"`)
	got, err := ParseChallenges(h)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0] != c {
		t.Fatalf("parsed %+v, want %+v and a foreign one", got, c)
	}
	if got[1].ID != "unquoted" || got[1].Method != "tempo" {
		t.Fatalf("foreign challenge is %+v", got[1])
	}
	req, err := got[0].Decode()
	if err != nil {
		t.Fatal(err)
	}
	if req.Amount.Dec() != "1000" || req.MethodDetails.ChainID != 31337 || req.Recipient != (Address{0x22}) {
		t.Fatalf("request is %+v", req)
	}
	if err := m.Check(got[0]); err != nil {
		t.Fatal(err)
	}
}

func TestChallengeIsBoundToItsContents(t *testing.T) {
	m := testMinter(testTime)
	c, err := m.Mint(testRequest(), "n1")
	if err != nil {
		t.Fatal(err)
	}
	other, err := m.Mint(testRequest(), "n2")
	if err != nil {
		t.Fatal(err)
	}
	if other.ID == c.ID {
		t.Fatal("two challenges have one id")
	}
	for name, change := range map[string]func(*Challenge){
		"id":      func(c *Challenge) { c.ID = other.ID },
		"realm":   func(c *Challenge) { c.Realm = "elsewhere" },
		"request": func(c *Challenge) { c.Request = "e30" },
		"expires": func(c *Challenge) { c.Expires = testTime.Add(time.Hour).Format(time.RFC3339) },
		"opaque":  func(c *Challenge) { c.Opaque = other.Opaque },
		"method":  func(c *Challenge) { c.Method = "tempo" },
		"digest":  func(c *Challenge) { c.Digest = "sha-256=x" },
	} {
		changed := c
		change(&changed)
		if err := m.Check(changed); !errors.Is(err, ErrChallenge) {
			t.Errorf("changed %s: got %v, want ErrChallenge", name, err)
		}
	}
	if err := testMinter(testTime.Add(time.Minute)).Check(c); !errors.Is(err, ErrExpired) {
		t.Errorf("expired: got %v", err)
	}
	stranger := testMinter(testTime)
	stranger.Secret = bytes.Repeat([]byte{8}, 32)
	if err := stranger.Check(c); !errors.Is(err, ErrChallenge) {
		t.Errorf("another secret: got %v", err)
	}
}

func TestCanonicalSortsKeysAndKeepsText(t *testing.T) {
	raw, err := canonical(map[string]any{"b": "<&>\u2028", "a": map[string]any{"z": 1, "y": true}})
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"a":{"y":true,"z":1},"b":"<&>` + "\u2028" + `"}`; string(raw) != want {
		t.Fatalf("got %s, want %s", raw, want)
	}
}

func TestCredentialSurvivesItsHeader(t *testing.T) {
	c, err := testMinter(testTime).Mint(testRequest(), "n")
	if err != nil {
		t.Fatal(err)
	}
	amount := NewAmount(*uint256.NewInt(5))
	cred := Credential{Challenge: c, Source: Source(31337, common.Address{9}), Payload: Payload{
		Action: ActionVoucher, ChannelID: common.Hash{1}, CumulativeAmount: &amount, Signature: Bytes{1, 2}, LeaseSecret: "s"}}
	text, err := cred.Header()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseCredential(http.Header{"Authorization": {"Bearer x", text}})
	if err != nil {
		t.Fatal(err)
	}
	if got.Challenge != c || got.Source != cred.Source || got.Payload.CumulativeAmount.Dec() != "5" || got.Payload.LeaseSecret != "s" {
		t.Fatalf("got %+v", got)
	}
	chainID, payer, err := ParseSource(got.Source)
	if err != nil || chainID != 31337 || payer != (common.Address{9}) {
		t.Fatalf("source: %d %s %v", chainID, payer, err)
	}
	if _, err := ParseCredential(http.Header{}); !errors.Is(err, ErrNone) {
		t.Fatalf("no credential: %v", err)
	}
}

// Each row is a payload that must be refused, with the field its error names.
func TestPayloadRefuses(t *testing.T) {
	id := `"channelId":"0x` + strings.Repeat("01", 32) + `"`
	h := `"0x` + strings.Repeat("02", 32) + `"`
	for name, row := range map[string]struct{ payload, names string }{
		"no channel":             {`{"action":"voucher"}`, "channelId"},
		"no action":              {`{` + id + `}`, "action"},
		"unknown action":         {`{"action":"steal",` + id + `}`, "action"},
		"voucher no amount":      {`{"action":"voucher",` + id + `,"signature":"0x01"}`, "cumulativeAmount"},
		"voucher no signature":   {`{"action":"voucher",` + id + `,"cumulativeAmount":"1"}`, "signature"},
		"number as amount":       {`{"action":"voucher",` + id + `,"cumulativeAmount":1,"signature":"0x01"}`, "decimal string"},
		"negative amount":        {`{"action":"voucher",` + id + `,"cumulativeAmount":"-1","signature":"0x01"}`, "-1"},
		"leading zero":           {`{"action":"voucher",` + id + `,"cumulativeAmount":"01","signature":"0x01"}`, "01"},
		"over 96 bits":           {`{"action":"voucher",` + id + `,"cumulativeAmount":"79228162514264337593543950336","signature":"0x01"}`, "7922816251426433759"},
		"bad hex":                {`{"action":"voucher",` + id + `,"cumulativeAmount":"1","signature":"0xzz"}`, "hex"},
		"open no salt":           {`{"action":"open",` + id + `,"hash":` + h + `,"cumulativeAmount":"0","signature":"0x01"}`, "salt"},
		"open no hash":           {`{"action":"open",` + id + `,"salt":` + h + `,"cumulativeAmount":"0","signature":"0x01"}`, "hash"},
		"open unknown type":      {`{"action":"open","type":"permit2",` + id + `,"salt":` + h + `}`, "type"},
		"gasless no voucher":     {`{"action":"open","type":"authorization",` + id + `,"salt":` + h + `,"cumulativeAmount":"0","signature":"0x01","authorization":{}}`, "voucher"},
		"top-up of zero":         {`{"action":"topUp",` + id + `,"hash":` + h + `,"additionalDeposit":"0"}`, "additionalDeposit"},
		"gasless top-up no salt": {`{"action":"topUp","type":"authorization",` + id + `,"authorization":{},"signature":"0x01","additionalDeposit":"1"}`, "salt"},
		"deposit of other kind":  {`{"action":"voucher",` + id + `,"cumulativeAmount":"1","signature":"0x01","deposit":{"action":"close",` + id + `}}`, "deposit"},
		"deposit to other":       {`{"action":"voucher",` + id + `,"cumulativeAmount":"1","signature":"0x01","deposit":{"action":"topUp","channelId":` + h + `}}`, "deposit"},
		"close with deposit":     {`{"action":"close",` + id + `,"cumulativeAmount":"1","signature":"0x01","deposit":{"action":"topUp"}}`, "deposit"},
		"release with deposit":   {`{"action":"release",` + id + `,"deposit":{"action":"topUp"}}`, "deposit"},
		"short address":          {`{"action":"open",` + id + `,"authorizedSigner":"0x01"}`, "address"},
		"nested deposits":        {`{"action":"voucher",` + id + `,"cumulativeAmount":"1","signature":"0x01","deposit":{"action":"topUp",` + id + `,"hash":` + h + `,"additionalDeposit":"1","deposit":{"action":"topUp"}}}`, "deposit"},
	} {
		text, err := encode(json.RawMessage(`{"challenge":{},"payload":` + row.payload + `}`))
		if err != nil {
			t.Fatal(name, err)
		}
		_, err = ParseCredential(http.Header{"Authorization": {"Payment " + text}})
		if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), row.names) {
			t.Errorf("%s: got %v, want a malformed credential that names %q", name, err, row.names)
		}
	}
	for name, header := range map[string]string{
		"not base64": "Payment %%%", "not json": "Payment YWJj", "too long": "Payment " + strings.Repeat("A", maxHeader+1),
	} {
		if _, err := ParseCredential(http.Header{"Authorization": {header}}); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestReceiptSurvivesItsHeader(t *testing.T) {
	r := NewReceipt(testTime, "c", 31337, common.Hash{1}, NewAmount(*uint256.NewInt(10)), NewAmount(*uint256.NewInt(7)))
	h := http.Header{}
	if err := r.Set(h); err != nil {
		t.Fatal(err)
	}
	got, err := ParseReceipt(h)
	if err != nil || got != r {
		t.Fatalf("got %+v %v, want %+v", got, err, r)
	}
	if _, err := ParseReceipt(http.Header{}); !errors.Is(err, ErrNone) {
		t.Fatal(err)
	}
	r.Status = "failure"
	if err := r.Set(h); err != nil {
		t.Fatal(err)
	}
	if _, err := ParseReceipt(h); !errors.Is(err, ErrMalformed) {
		t.Fatalf("a receipt of a failure: %v", err)
	}
}

func TestProblemSurvivesTheAnswer(t *testing.T) {
	w := httptest.NewRecorder()
	ChannelNotFound.With("channel %s", "x").Write(w)
	resp := w.Result()
	got := ParseProblem(resp)
	if !errors.Is(got, &ChannelNotFound) || errors.Is(got, &ChannelFinalized) || got.Status != http.StatusGone || got.Detail != "channel x" {
		t.Fatalf("got %+v", got)
	}
	plain := httptest.NewRecorder()
	http.Error(plain, "<html>", http.StatusBadGateway)
	if p := ParseProblem(plain.Result()); p.Status != http.StatusBadGateway || p.Detail != "" {
		t.Fatalf("a proxy's answer became %+v", p)
	}
}

func TestEventsSurviveTheStream(t *testing.T) {
	var buf bytes.Buffer
	want := []Event{{ID: 3, Name: EventUsage, Data: []byte(`{"a":1}`)}, {Name: EventStatus, Data: []byte("two\nlines")}}
	buf.WriteString(": comment\n\n\n")
	for _, e := range want {
		if _, err := e.WriteTo(&buf); err != nil {
			t.Fatal(err)
		}
	}
	buf.WriteString("event: cut off\ndata: x\n") // no empty line: it does not count
	events := NewEvents(&buf)
	for _, w := range want {
		got, err := events.Next()
		if err != nil || got.ID != w.ID || got.Name != w.Name || !bytes.Equal(got.Data, w.Data) {
			t.Fatalf("got %+v %v, want %+v", got, err, w)
		}
	}
	if _, err := events.Next(); err != io.EOF {
		t.Fatalf("at the end: %v", err)
	}
	long := NewEvents(strings.NewReader("data: " + strings.Repeat("x", MaxEvent+1) + "\n\n"))
	if _, err := long.Next(); !errors.Is(err, ErrEventTooLong) {
		t.Fatalf("a huge event: %v", err)
	}
	many := NewEvents(strings.NewReader(strings.Repeat("data: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n", MaxEvent/40)))
	if _, err := many.Next(); !errors.Is(err, ErrEventTooLong) {
		t.Fatalf("an event of many lines: %v", err)
	}
}

func testOffer(payee common.Address) Offer {
	return Offer{Version: 1, ChainID: 31337, Escrow: Address{1}, Token: Address{2}, Payee: Address(payee), Meter: Address(payee),
		Amount: NewAmount(*uint256.NewInt(1000)), Unit: "gpu_second", Credit: 60, Tick: 1000, MaxGap: 3000, RecordEvery: 5000,
		Devices: []OfferDevices{{Model: "H100", MemoryBytes: 80 << 30, Count: 8}}, Expires: testTime.Unix()}
}

func TestOfferIsBoundToItsDocument(t *testing.T) {
	key := testKey(t, 1)
	signed, err := SignOffer(context.Background(), key, testOffer(key.Address()))
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseOffer(signed.Document)
	if err != nil || got.Hash != signed.Hash || got.Credit != 60 {
		t.Fatalf("got %+v %v", got, err)
	}
	if !got.ExpiredAt(testTime) || got.ExpiredAt(testTime.Add(-time.Second)) {
		t.Fatal("expiry is off by one")
	}
	for name, change := range map[string]func(string) string{
		"cheaper": func(s string) string { return strings.Replace(s, `"amount":"1000"`, `"amount":"100"`, 1) },
		"other payee": func(s string) string {
			return strings.Replace(s, key.Address().Hex(), testKey(t, 2).Address().Hex(), 2)
		},
		"a field more":  func(s string) string { return strings.Replace(s, `{"amount"`, `{"also":1,"amount"`, 1) },
		"a second one":  func(s string) string { return s + s },
		"no signature":  func(s string) string { return strings.Replace(s, `"signature"`, `"sign"`, 1) },
		"other version": func(s string) string { return strings.Replace(s, `"version":1`, `"version":2`, 1) },
	} {
		document := change(string(signed.Document))
		if document == string(signed.Document) {
			t.Fatalf("%s: the test changed nothing", name)
		}
		if _, err := ParseOffer([]byte(document)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	spaced := strings.ReplaceAll(string(signed.Document), `,"`, ` , "`)
	if _, err := ParseOffer([]byte(spaced)); err != nil {
		t.Errorf("white space changed the offer: %v", err)
	}
	if _, err := SignOffer(context.Background(), testKey(t, 2), testOffer(key.Address())); err == nil {
		t.Error("an offer was signed with a key that is not its payee's")
	}
}

func TestProofIsForOneChallengeActionAndChannel(t *testing.T) {
	payer, delegate, stranger := testKey(t, 1), testKey(t, 2), testKey(t, 3)
	terms := channel.Terms{ChainID: 31337, Escrow: common.Address{1}, Payer: payer.Address(), Payee: common.Address{2}, Token: common.Address{3}, AuthorizedSigner: delegate.Address()}
	proof, err := Prove(context.Background(), payer, terms, "c1", "attach")
	if err != nil {
		t.Fatal(err)
	}
	byDelegate, err := Prove(context.Background(), delegate, terms, "c1", "attach")
	if err != nil {
		t.Fatal(err)
	}
	byStranger, err := Prove(context.Background(), stranger, terms, "c1", "attach")
	if err != nil {
		t.Fatal(err)
	}
	if !CheckProof(terms, "c1", "attach", proof) || !CheckProof(terms, "c1", "attach", byDelegate) {
		t.Fatal("a right proof was refused")
	}
	other := terms
	other.Salt = common.Hash{1}
	for name, ok := range map[string]bool{
		"other challenge": CheckProof(terms, "c2", "attach", proof),
		"other action":    CheckProof(terms, "c1", "close", proof),
		"other channel":   CheckProof(other, "c1", "attach", proof),
		"a stranger":      CheckProof(terms, "c1", "attach", byStranger),
		"empty":           CheckProof(terms, "c1", "attach", nil),
		"cut":             CheckProof(terms, "c1", "attach", proof[:64]),
	} {
		if ok {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzParseChallenges(f *testing.F) {
	c, err := testMinter(testTime).Mint(testRequest(), "n")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(c.Header())
	f.Add(`Payment id="a\`)
	f.Add("Payment id=a, realm=b, method=c, intent=d, request=\xff")
	f.Add(`Basic, Payment id=a,realm=b,method=c,intent=d,request=e, x`)
	f.Fuzz(func(t *testing.T, value string) {
		all, err := ParseChallenges(http.Header{"Www-Authenticate": {value}})
		if err != nil {
			return
		}
		for _, c := range all {
			again, err := ParseChallenges(http.Header{"Www-Authenticate": {c.Header()}})
			if err != nil || len(again) != 1 {
				t.Fatalf("%q was parsed as %+v, which does not parse: %v", value, c, err)
			}
		}
	})
}

func FuzzParseCredential(f *testing.F) {
	f.Add([]byte(`{"challenge":{},"payload":{"action":"voucher","channelId":"0x01"}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		text, err := encode(json.RawMessage(raw))
		if err != nil {
			return
		}
		cred, err := ParseCredential(http.Header{"Authorization": {"Payment " + text}})
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("unexpected kind of error: %v", err)
			}
			return
		}
		if _, err := cred.Header(); err != nil {
			t.Fatal(err)
		}
		if a := cred.Payload.CumulativeAmount; a != nil && a.BitLen() > 96 {
			t.Fatalf("amount of %d bits", a.BitLen())
		}
	})
}

func FuzzParseOffer(f *testing.F) {
	private, err := crypto.ToECDSA(bytes.Repeat([]byte{1}, 32))
	if err != nil {
		f.Fatal(err)
	}
	key := channel.NewKey(private)
	signed, err := SignOffer(context.Background(), key, testOffer(key.Address()))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(signed.Document))
	f.Fuzz(func(t *testing.T, document []byte) {
		got, err := ParseOffer(document)
		if err == nil && got.Hash != signed.Hash {
			t.Fatalf("another offer passes as signed: %s", document)
		}
	})
}

func FuzzEvents(f *testing.F) {
	f.Add("event: usage\ndata: 1\nid: 5\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		events := NewEvents(strings.NewReader(text))
		for {
			e, err := events.Next()
			if err != nil {
				return
			}
			if len(e.Data) > MaxEvent {
				t.Fatalf("event of %d bytes", len(e.Data))
			}
		}
	})
}
