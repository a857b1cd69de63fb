package x402

import (
	"encoding/base64"
	"errors"
	"net/http"
	"reflect"
	"regexp"
	"testing"
)

// survives writes a message that was read, and reads it again. What is too long to be written is left.
func survives[T interface{ Set(http.Header) error }](t *testing.T, parse func(http.Header) (T, error), got T) {
	t.Helper()
	h := http.Header{}
	if err := got.Set(h); err != nil {
		for _, values := range h {
			t.Fatalf("%v, but wrote %q", err, values)
		}
		raw, _ := marshal(got)
		if base64.StdEncoding.EncodedLen(len(raw)) > maxWritten/2 {
			return
		}
		t.Fatalf("%+v cannot be written: %v", got, err)
	}
	again, err := parse(h)
	if err != nil || !reflect.DeepEqual(again, got) {
		t.Fatalf("%+v\nbecame\n%+v (%v)", got, again, err)
	}
}

// known fails on an error that a caller cannot tell.
func known(t *testing.T, err error) {
	t.Helper()
	var code Code
	if !errors.Is(err, ErrMalformed) && !errors.As(err, &code) {
		t.Fatalf("unexpected kind of error: %v", err)
	}
}

func FuzzParsePaymentPayload(f *testing.F) {
	headers := golden(f)
	for _, name := range []string{"deposit", "voucher", "corrected", "refundPart", "refundAll"} {
		f.Add([]byte(plain(f, headers[name])))
	}
	f.Fuzz(fuzzPayment)
}

func fuzzPayment(t *testing.T, raw []byte) {
	p, err := ParsePaymentPayload(header(HeaderSignature, base64.StdEncoding.EncodeToString(raw)))
	if err != nil {
		known(t, err)
		return
	}
	if p.Payload.Voucher.MaxClaimableAmount.BitLen() > 96 || p.Accepted.Amount.BitLen() > 96 || p.Payload.Config.WithdrawDelay > maxUint40 {
		t.Fatalf("out of bounds: %+v", p)
	}
	if (p.Payload.Deposit != nil) != (p.Payload.Type == TypeDeposit) {
		t.Fatalf("a %s with deposit %+v", p.Payload.Type, p.Payload.Deposit)
	}
	if p.Payload.Deposit != nil {
		p.Payload.Authorization()
	}
	if terms, err := p.Check(p.Accepted); err == nil {
		if config, err := ConfigOf(terms); err != nil || config != p.Payload.Config {
			t.Fatalf("%+v became %+v (%v)", p.Payload.Config, config, err)
		}
	}
	survives(t, ParsePaymentPayload, p)
}

func FuzzParsePaymentRequired(f *testing.F) {
	f.Add([]byte(plain(f, golden(f)["required"])))
	f.Add([]byte(`{"x402Version":2,"accepts":[{"scheme":"batch-settlement","network":"eip155:1","amount":"1","asset":"0x0000000000000000000000000000000000000001","payTo":"0x0000000000000000000000000000000000000002","maxTimeoutSeconds":1,"extra":{"name":"a","version":"1","receiverAuthorizer":"0x0000000000000000000000000000000000000003","withdrawDelay":900,"channelState":{"chargedCumulativeAmount":"1"},"voucherState":{}}}]}`))
	f.Fuzz(fuzzRequired)
}

func fuzzRequired(t *testing.T, raw []byte) {
	p, err := ParsePaymentRequired(header(HeaderRequired, base64.StdEncoding.EncodeToString(raw)))
	if err != nil {
		known(t, err)
		return
	}
	for _, offer := range p.Accepts {
		if err := Match(offer, offer); err != nil {
			t.Fatalf("an offer is not itself: %v", err)
		}
	}
	if len(p.Accepts) == 0 || p.Resource.URL == "" {
		return // which is not to be written
	}
	survives(t, ParsePaymentRequired, p)
}

func FuzzParseSettleResponse(f *testing.F) {
	headers := golden(f)
	f.Add([]byte(plain(f, headers["charged"])))
	f.Add([]byte(plain(f, headers["refused"])))
	f.Fuzz(fuzzResponse)
}

func fuzzResponse(t *testing.T, raw []byte) {
	r, err := ParseSettleResponse(header(HeaderResponse, base64.StdEncoding.EncodeToString(raw)))
	if err != nil {
		known(t, err)
		return
	}
	if r.ChargedAmount != nil && r.ChargedAmount.BitLen() > 96 {
		t.Fatalf("out of bounds: %+v", r)
	}
	survives(t, ParseSettleResponse, r)
}

// values are what a mutation puts something else for: the names and values of a message.
var values = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|\d+|true`)

// FuzzOneValue changes one name or value of what the official packages wrote: bytes at random seldom leave it JSON.
func FuzzOneValue(f *testing.F) {
	headers := golden(f)
	targets := []struct {
		raw   []byte
		judge func(*testing.T, []byte)
	}{
		{[]byte(plain(f, headers["deposit"])), fuzzPayment}, {[]byte(plain(f, headers["refundPart"])), fuzzPayment},
		{[]byte(plain(f, headers["required"])), fuzzRequired}, {[]byte(plain(f, headers["charged"])), fuzzResponse},
	}
	for i := range uint8(len(targets)) {
		for _, value := range []string{`"1"`, `"00"`, `1`, `-1`, `1e3`, `1.0`, `null`, `true`, `{}`, `[]`, `""`, `"0x"`, `"amount"`, `"79228162514264337593543950336"`, `{"a":1,"a":2}`} {
			for at := range uint8(60) {
				f.Add(i, at, value)
			}
		}
	}
	f.Fuzz(func(t *testing.T, which, at uint8, value string) {
		target := targets[int(which)%len(targets)]
		all := values.FindAllIndex(target.raw, -1)
		where := all[int(at)%len(all)]
		raw := append([]byte(nil), target.raw[:where[0]]...)
		raw = append(append(raw, value...), target.raw[where[1]:]...)
		target.judge(t, raw)
	})
}
