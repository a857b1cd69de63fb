package x402

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/wire"
)

const tooMuch = "79228162514264337593543950336" // 2^96

// mangled replaces one piece of a golden header's JSON, which must be there.
func mangled(t *testing.T, name, old, new string) string {
	t.Helper()
	text := plain(t, golden(t)[name])
	if !strings.Contains(text, old) {
		t.Fatalf("%s has no %s: %s", name, old, text)
	}
	return encoded(strings.Replace(text, old, new, 1))
}

func TestHostilePayments(t *testing.T) {
	for _, row := range []struct {
		name, from, old, new string
		want                 error
	}{
		{"version 1", "voucher", `"x402Version":2`, `"x402Version":1`, ErrMalformed},
		{"version as a string", "voucher", `"x402Version":2`, `"x402Version":"2"`, ErrMalformed},
		{"version as a fraction", "voucher", `"x402Version":2`, `"x402Version":2.0`, ErrMalformed},
		{"no version", "voucher", `"x402Version":2,`, ``, ErrMalformed},
		{"two versions", "voucher", `"x402Version":2`, `"x402Version":2,"x402Version":2`, ErrMalformed},
		{"another scheme", "voucher", `"batch-settlement"`, `"exact"`, CodeScheme},
		{"scheme in capitals", "voucher", `"batch-settlement"`, `"Batch-Settlement"`, CodeScheme},
		{"no scheme", "voucher", `"scheme":"batch-settlement",`, ``, ErrMalformed},
		{"network of another kind", "voucher", `"eip155:31337"`, `"solana:31337"`, ErrMalformed},
		{"network in capitals", "voucher", `"eip155:31337"`, `"EIP155:31337"`, ErrMalformed},
		{"network with a leading zero", "voucher", `"eip155:31337"`, `"eip155:031337"`, ErrMalformed},
		{"network zero", "voucher", `"eip155:31337"`, `"eip155:0"`, ErrMalformed},
		{"network in hex", "voucher", `"eip155:31337"`, `"eip155:0x7a69"`, ErrMalformed},
		{"network over 53 bits", "voucher", `"eip155:31337"`, `"eip155:9007199254740992"`, ErrMalformed},
		{"network over 64 bits", "voucher", `"eip155:31337"`, `"eip155:18446744073709551616"`, ErrMalformed},
		{"amount as a number", "voucher", `"maxClaimableAmount":"1700"`, `"maxClaimableAmount":1700`, ErrMalformed},
		{"amount null", "voucher", `"maxClaimableAmount":"1700"`, `"maxClaimableAmount":null`, ErrMalformed},
		{"no amount", "voucher", `"maxClaimableAmount":"1700",`, ``, ErrMalformed},
		{"amount empty", "voucher", `"maxClaimableAmount":"1700"`, `"maxClaimableAmount":""`, ErrMalformed},
		{"amount negative", "voucher", `"maxClaimableAmount":"1700"`, `"maxClaimableAmount":"-1700"`, ErrMalformed},
		{"amount signed", "voucher", `"maxClaimableAmount":"1700"`, `"maxClaimableAmount":"+1700"`, ErrMalformed},
		{"amount with a leading zero", "voucher", `"maxClaimableAmount":"1700"`, `"maxClaimableAmount":"01700"`, ErrMalformed},
		{"amount with an exponent", "voucher", `"maxClaimableAmount":"1700"`, `"maxClaimableAmount":"17e2"`, ErrMalformed},
		{"amount with a fraction", "voucher", `"maxClaimableAmount":"1700"`, `"maxClaimableAmount":"1700.0"`, ErrMalformed},
		{"amount in hex", "voucher", `"maxClaimableAmount":"1700"`, `"maxClaimableAmount":"0x6a4"`, ErrMalformed},
		{"amount with a space", "voucher", `"maxClaimableAmount":"1700"`, `"maxClaimableAmount":" 1700"`, ErrMalformed},
		{"amount in Arabic digits", "voucher", `"maxClaimableAmount":"1700"`, `"maxClaimableAmount":"١٧٠٠"`, ErrMalformed},
		{"amount over 96 bits", "voucher", `"maxClaimableAmount":"1700"`, `"maxClaimableAmount":"` + tooMuch + `"`, ErrMalformed},
		{"amount of 10,000 digits", "voucher", `"maxClaimableAmount":"1700"`, `"maxClaimableAmount":"` + strings.Repeat("9", 10_000) + `"`, ErrMalformed},
		{"two amounts", "voucher", `"maxClaimableAmount":"1700"`, `"maxClaimableAmount":"1700","maxClaimableAmount":"9"`, ErrMalformed},
		{"two amounts, one escaped", "voucher", `"maxClaimableAmount":"1700"`, `"maxClaimableAmount":"1700","maxClaimableAmoun\u0074":"9"`, ErrMalformed},
		{"amount only in another case", "voucher", `"maxClaimableAmount"`, `"maxclaimableamount"`, ErrMalformed},
		{"type in capitals", "voucher", `"type":"voucher"`, `"type":"Voucher"`, CodePayloadType},
		{"a server's own type", "voucher", `"type":"voucher"`, `"type":"claim"`, CodePayloadType},
		{"no type", "voucher", `"type":"voucher",`, ``, ErrMalformed},
		{"type null", "voucher", `"type":"voucher"`, `"type":null`, ErrMalformed},
		{"deposit without a deposit", "voucher", `"type":"voucher"`, `"type":"deposit"`, ErrMalformed},
		{"channel id too short", "voucher", `"channelId":"0x`, `"channelId":"0x"  ,"x":"`, CodeChannelIDInvalid},
		{"channel id without 0x", "voucher", `"channelId":"0x`, `"channelId":"`, CodeChannelIDInvalid},
		{"channel id with 0X", "voucher", `"channelId":"0x`, `"channelId":"0X`, CodeChannelIDInvalid},
		{"no channel id", "voucher", `"channelId"`, `"id"`, ErrMalformed},
		{"signature of 66 bytes", "voucher", `"signature":"0x`, `"signature":"0x00`, ErrMalformed},
		{"signature of no bytes", "voucher", `"signature":"0x`, `"signature":"0x","x":"`, ErrMalformed},
		{"signature null", "voucher", `"signature":"0x`, `"signature":null,"x":"`, ErrMalformed},
		{"payer too short", "voucher", `"payer":"0x`, `"payer":"0x","x":"`, ErrMalformed},
		{"payer with 0X", "voucher", `"payer":"0x`, `"payer":"0X`, ErrMalformed},
		{"payer null", "voucher", `"payer":"0x`, `"payer":null,"x":"`, ErrMalformed},
		{"no payer's authorizer", "voucher", `"payerAuthorizer"`, `"x"`, ErrMalformed},
		{"salt of 31 bytes", "voucher", `"salt":"0x00`, `"salt":"0x`, ErrMalformed},
		{"delay as a string", "voucher", `"withdrawDelay":86400,"salt"`, `"withdrawDelay":"86400","salt"`, ErrMalformed},
		{"delay negative", "voucher", `"withdrawDelay":86400,"salt"`, `"withdrawDelay":-86400,"salt"`, ErrMalformed},
		{"delay as a fraction", "voucher", `"withdrawDelay":86400,"salt"`, `"withdrawDelay":86400.5,"salt"`, ErrMalformed},
		{"delay with an exponent", "voucher", `"withdrawDelay":86400,"salt"`, `"withdrawDelay":864e2,"salt"`, ErrMalformed},
		{"delay over 40 bits", "voucher", `"withdrawDelay":86400,"salt"`, `"withdrawDelay":1099511627776,"salt"`, ErrMalformed},
		{"delay huge", "voucher", `"withdrawDelay":86400,"salt"`, `"withdrawDelay":1e999,"salt"`, ErrMalformed},
		{"accepted null", "voucher", `"accepted":{`, `"accepted":null,"x":{`, ErrMalformed},
		{"accepted a list", "voucher", `"accepted":{`, `"accepted":[],"x":{`, ErrMalformed},
		{"payload a string", "voucher", `"payload":{`, `"payload":"{}","x":{`, ErrMalformed},
		{"configuration null", "voucher", `"channelConfig":{`, `"channelConfig":null,"x":{`, ErrMalformed},
		{"voucher null", "voucher", `"voucher":{`, `"voucher":null,"x":{`, ErrMalformed},
		{"extra null", "voucher", `"extra":{`, `"extra":null,"x":{`, ErrMalformed},
		{"extensions a string", "voucher", `"accepted":{`, `"extensions":"x","accepted":{`, ErrMalformed},
		{"no time to pay", "voucher", `"maxTimeoutSeconds":300`, `"maxTimeoutSeconds":0`, ErrMalformed},
		{"permit2 accepted", "voucher", `"assetTransferMethod":"eip3009"`, `"assetTransferMethod":"permit2"`, CodeERC3009Required},
		{"deposit of nothing", "deposit", `"amount":"10000","auth`, `"amount":"0","auth`, ErrMalformed},
		{"deposit over 96 bits", "deposit", `"amount":"10000","auth`, `"amount":"` + tooMuch + `","auth`, ErrMalformed},
		{"deposit as a number", "deposit", `"amount":"10000","auth`, `"amount":10000,"auth`, ErrMalformed},
		{"deposit by permit2", "deposit", `"erc3009Authorization"`, `"permit2Authorization"`, CodeERC3009Required},
		{"authorization null", "deposit", `"erc3009Authorization":{`, `"erc3009Authorization":null,"x":{`, CodeERC3009Required},
		{"validBefore as a number", "deposit", `"validBefore":"1800000300"`, `"validBefore":1800000300`, ErrMalformed},
		{"validBefore over 64 bits", "deposit", `"validBefore":"1800000300"`, `"validBefore":"18446744073709551616"`, ErrMalformed},
		{"validBefore with a leading zero", "deposit", `"validBefore":"1800000300"`, `"validBefore":"01800000300"`, ErrMalformed},
		{"refund of nothing", "refundPart", `"amount":"500"`, `"amount":"0"`, CodeRefundAmountInvalid},
		{"refund with leading zeros", "refundPart", `"amount":"500"`, `"amount":"00500"`, ErrMalformed},
		{"refund as a number", "refundPart", `"amount":"500"`, `"amount":500`, ErrMalformed},
		{"refund negative", "refundPart", `"amount":"500"`, `"amount":"-500"`, ErrMalformed},
	} {
		t.Run(row.name, func(t *testing.T) {
			p, err := ParsePaymentPayload(header(HeaderSignature, mangled(t, row.from, row.old, row.new)))
			if !errors.Is(err, row.want) {
				t.Fatalf("%v, want %v", err, row.want)
			}
			if p.Payload.Type != "" || p.Accepted.Network != 0 {
				t.Errorf("read all the same: %+v", p)
			}
		})
	}
}

// What stock clients send beside the fields that we know, or in another case, does not stop a payment.
func TestLenientWhereClientsNeedIt(t *testing.T) {
	for _, row := range []struct{ name, old, new string }{
		{"unknown fields", `"payload":{`, `"future":{"a":[1,2]},"payload":{"enriched":true,`},
		{"extensions", `"accepted":{`, `"extensions":{"payment-identifier":{"info":{"id":"x"}}},"accepted":{`},
		{"extensions null", `"accepted":{`, `"extensions":null,"accepted":{`},
		{"resource null", `"resource":{`, `"resource":null,"x":{`},
		{"a field of ours in another case beside it", `"maxClaimableAmount":"1700"`, `"maxClaimableAmount":"1700","MAXCLAIMABLEAMOUNT":"9"`},
		{"more in accepted.extra", `"extra":{`, `"extra":{"more":1,`},
		{"an echo of the corrective state, however broken", `"extra":{`, `"extra":{"channelState":7,"voucherState":{"signature":"0x"},`},
		{"a lowercase address", `"payTo":"0xc3D4`, `"payTo":"0xc3d4`},
	} {
		t.Run(row.name, func(t *testing.T) {
			p, err := ParsePaymentPayload(header(HeaderSignature, mangled(t, "voucher", row.old, row.new)))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.Check(offer()); err != nil {
				t.Error(err)
			}
			if p.Payload.Voucher.MaxClaimableAmount.Dec() != "1700" {
				t.Errorf("the voucher is over %s", p.Payload.Voucher.MaxClaimableAmount.Dec())
			}
		})
	}
}

func TestHostileOffers(t *testing.T) {
	for _, row := range []struct{ name, old, new string }{
		{"no offers", `"accepts":[`, `"accepts":null,"x":[`},
		{"an offer that is no object", `"accepts":[`, `"accepts":[7,`},
		{"price over 96 bits", `"amount":"1000"`, `"amount":"` + tooMuch + `"`},
		{"price as a number", `"amount":"1000"`, `"amount":1000`},
		{"delay as a string", `"withdrawDelay":86400`, `"withdrawDelay":"86400"`},
		{"no receiver's authorizer", `"receiverAuthorizer"`, `"x"`},
		{"no token name", `"name":"Test \"USD\" <é>"`, `"name":""`},
		{"least deposit with a fraction", `"minDeposit":"10000"`, `"minDeposit":"1.5"`},
		{"half a voucher", `"extra":{`, `"extra":{"voucherState":{"signedMaxClaimable":"1"},`},
		{"half a snapshot", `"extra":{`, `"extra":{"channelState":{"balance":"1"},`},
		{"state with a negative charge", `"extra":{`, `"extra":{"channelState":{"chargedCumulativeAmount":"-1"},`},
		{"one name twice, out of sight", `"unknown":{`, `"unknown":{"a":1,`},
		{"nested too deep", `"unknown":{`, `"deep":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `,"unknown":{`},
		{"version 1", `"x402Version":2`, `"x402Version":1`},
	} {
		t.Run(row.name, func(t *testing.T) {
			text := plain(t, golden(t)["required"])
			if !strings.Contains(text, row.old) {
				t.Fatalf("no %s in %s", row.old, text)
			}
			p, err := ParsePaymentRequired(header(HeaderRequired, encoded(strings.ReplaceAll(text, row.old, row.new))))
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("%v: %+v", err, p)
			}
		})
	}
}

func TestHostileReceipts(t *testing.T) {
	for _, row := range []struct{ name, old, new string }{
		{"success as a string", `"success":true`, `"success":"true"`},
		{"success as a number", `"success":true`, `"success":1`},
		{"no success", `"success":true,`, ``},
		{"charge as a number", `"chargedAmount":"700"`, `"chargedAmount":700`},
		{"charge negative", `"chargedAmount":"700"`, `"chargedAmount":"-700"`},
		{"charge over 96 bits", `"chargedAmount":"700"`, `"chargedAmount":"` + tooMuch + `"`},
		{"two charges", `"chargedAmount":"700"`, `"chargedAmount":"700","chargedAmount":"0"`},
		{"transaction too short", `"transaction":"0x01`, `"transaction":"0x`},
		{"transaction of zeros", `"transaction":"0x01`, `"transaction":"0x00`},
		{"transaction null", `"transaction":"0x01`, `"transaction":null,"x":"`},
		{"wrong network", `"network":"eip155:31337"`, `"network":"base"`},
		{"refund nonce as a number", `"refundNonce":"0"`, `"refundNonce":0`},
		{"withdrawal's time as a string", `"withdrawRequestedAt":0`, `"withdrawRequestedAt":"0"`},
		{"payer too long", `"payer":"0x`, `"payer":"0x00`},
		{"extra a list", `"extra":{`, `"extra":[],"x":{`},
	} {
		t.Run(row.name, func(t *testing.T) {
			r, err := ParseSettleResponse(header(HeaderResponse, mangled(t, "charged", row.old, row.new)))
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("%v: %+v", err, r)
			}
		})
	}
}

// TestHostileHeaders gives all three parsers messages that are good but for how they stand in the header.
func TestHostileHeaders(t *testing.T) {
	one := func(change func(text string) string) func(string) []string {
		return func(text string) []string { return []string{change(text)} }
	}
	for _, row := range []struct {
		name   string
		values func(text string) []string
		want   error
	}{
		{"spaces around the document", one(func(text string) string { return encoded(" " + text + "\n") }), nil},
		{"a slash in the base64", one(urlSafe), nil},
		{"none", func(string) []string { return nil }, ErrNone},
		{"two", func(text string) []string { return []string{encoded(text), encoded(text)} }, ErrMalformed},
		{"empty", one(func(string) string { return "" }), ErrMalformed},
		{"two in one", one(func(text string) string { return encoded(text) + ", " + encoded(text) }), ErrMalformed},
		{"over the limit", one(func(text string) string { return encoded(text + strings.Repeat(" ", maxRead)) }), ErrMalformed},
		{"without padding", one(func(text string) string {
			return strings.TrimRight(encoded(text+strings.Repeat(" ", 4-len(text)%3)), "=")
		}), ErrMalformed},
		{"base64url", one(func(text string) string { return strings.ReplaceAll(urlSafe(text), "/", "_") }), ErrMalformed},
		{"a line break", one(func(text string) string { return encoded(text)[:8] + "\r\n" + encoded(text)[8:] }), ErrMalformed},
		{"in a list", one(func(text string) string { return encoded("[" + text + "]") }), ErrMalformed},
		{"null", one(func(string) string { return encoded("null") }), ErrMalformed},
		{"two documents", one(func(text string) string { return encoded(text + "{}") }), ErrMalformed},
		{"a comma too many", one(func(text string) string { return encoded(strings.TrimSuffix(text, "}") + ",}") }), ErrMalformed},
	} {
		t.Run(row.name, func(t *testing.T) {
			for name, from := range map[string]string{HeaderSignature: "voucher", HeaderRequired: "required", HeaderResponse: "charged"} {
				h := http.Header{}
				for _, v := range row.values(plain(t, golden(t)[from])) {
					h.Add(name, v)
				}
				if err := parseAny(name, h); !errors.Is(err, row.want) {
					t.Errorf("%s: %v, want %v", name, err, row.want)
				}
			}
		})
	}
}

// urlSafe adds a field whose base64 has a slash, wherever it begins.
func urlSafe(text string) string {
	return encoded(strings.TrimSuffix(text, "}") + `,"x":"????????"}`)
}

func parseAny(name string, h http.Header) (err error) {
	switch name {
	case HeaderSignature:
		_, err = ParsePaymentPayload(h)
	case HeaderRequired:
		_, err = ParsePaymentRequired(h)
	case HeaderResponse:
		_, err = ParseSettleResponse(h)
	}
	return err
}

func TestPaymentForAnotherOffer(t *testing.T) {
	lower, other := offer().Extra.MinDeposit, wire.Address{1}
	for _, row := range []struct {
		name  string
		spoil func(*PaymentPayload, *Requirements)
		want  error
	}{
		{"network", func(_ *PaymentPayload, o *Requirements) { o.Network++ }, CodeNoMatch},
		{"amount", func(_ *PaymentPayload, o *Requirements) { o.Amount = *lower }, CodeNoMatch},
		{"asset", func(_ *PaymentPayload, o *Requirements) { o.Asset = other }, CodeNoMatch},
		{"payTo", func(_ *PaymentPayload, o *Requirements) { o.PayTo = other }, CodeNoMatch},
		{"timeout", func(_ *PaymentPayload, o *Requirements) { o.MaxTimeoutSeconds++ }, CodeNoMatch},
		{"name", func(_ *PaymentPayload, o *Requirements) { o.Extra.Name = "x" }, CodeNoMatch},
		{"version", func(_ *PaymentPayload, o *Requirements) { o.Extra.Version = "2" }, CodeNoMatch},
		{"method", func(p *PaymentPayload, _ *Requirements) { p.Accepted.Extra.AssetTransferMethod = "" }, CodeNoMatch},
		{"authorizer", func(_ *PaymentPayload, o *Requirements) { o.Extra.ReceiverAuthorizer = other }, CodeNoMatch},
		{"delay", func(_ *PaymentPayload, o *Requirements) { o.Extra.WithdrawDelay++ }, CodeNoMatch},
		{"least deposit", func(_ *PaymentPayload, o *Requirements) { o.Extra.MinDeposit = &o.Amount }, CodeNoMatch},
		{"least deposit left out", func(p *PaymentPayload, _ *Requirements) { p.Accepted.Extra.MinDeposit = nil }, CodeNoMatch},
		{"voucher of another channel", func(p *PaymentPayload, _ *Requirements) { p.Payload.Voucher.ChannelID[0]++ }, CodeChannelIDMismatch},
		{"channel that pays another", reconfigured(func(c *ChannelConfig) { c.Receiver = other }), CodeReceiverMismatch},
		{"channel that another may claim from", reconfigured(func(c *ChannelConfig) { c.ReceiverAuthorizer = other }), CodeReceiverAuthorizerMismatch},
		{"channel in another token", reconfigured(func(c *ChannelConfig) { c.Token = other }), CodeTokenMismatch},
		{"channel with another delay", reconfigured(func(c *ChannelConfig) { c.WithdrawDelay = 900 }), CodeWithdrawDelayMismatch},
		{"channel of nobody", reconfigured(func(c *ChannelConfig) { c.Payer = wire.Address{} }), channel.ErrTerms},
	} {
		t.Run(row.name, func(t *testing.T) {
			p, o := payment(t, "voucher"), offer()
			row.spoil(&p, &o)
			if _, err := p.Check(o); !errors.Is(err, row.want) {
				t.Errorf("%v, want %v", err, row.want)
			}
		})
	}
	asked := offer()
	asked.Extra.AssetTransferMethod, asked.Extra.MinDeposit = "", nil
	if err := Match(payment(t, "voucher").Accepted, asked); err != nil {
		t.Errorf("what was not offered counts: %v", err)
	}
}

// reconfigured is a payment from another channel, its id computed from what it claims.
func reconfigured(change func(*ChannelConfig)) func(*PaymentPayload, *Requirements) {
	return func(p *PaymentPayload, o *Requirements) {
		change(&p.Payload.Config)
		p.Payload.Voucher.ChannelID = Hash(p.Payload.Config.Terms(o.Network).ID())
	}
}

func TestWritersRefuseHalfMessages(t *testing.T) {
	voucher, deposit := payment(t, "voucher"), payment(t, "deposit")
	mixed := voucher
	mixed.Payload.Deposit = deposit.Payload.Deposit
	half := deposit
	half.Payload.Deposit = nil
	typeless := voucher
	typeless.Payload.Type = ""
	changed := voucher
	changed.Accepted.Amount = *offer().Extra.MinDeposit
	large := PaymentRequired{Resource: Resource{URL: strings.Repeat("x", maxWritten)}, Accepts: []Requirements{offer()}}
	for name, m := range map[string]interface{ Set(http.Header) error }{
		"a voucher with a deposit": mixed, "a deposit without one": half, "no type": typeless, "an echo that was changed": changed,
		"no resource": PaymentRequired{Accepts: []Requirements{offer()}}, "no offers": PaymentRequired{Resource: Resource{URL: "x"}}, "too large": large,
	} {
		h := http.Header{}
		if err := m.Set(h); err == nil || len(h) != 0 {
			t.Errorf("%s: written (%v)", name, err)
		}
	}
}

// TestCodesAreErrors: a Code survives wrapping, so that it can be sent.
func TestCodesAreErrors(t *testing.T) {
	p := payment(t, "voucher")
	p.Payload.Voucher.ChannelID[0]++
	_, err := p.Check(offer())
	var code Code
	if !errors.As(err, &code) || code != CodeChannelIDMismatch {
		t.Errorf("%v is code %q", err, code)
	}
	if raw, err := json.Marshal(code); err != nil || string(raw) != `"`+string(CodeChannelIDMismatch)+`"` {
		t.Errorf("the code is written as %s (%v)", raw, err)
	}
}
