package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"testing"

	"github.com/ethereum/go-ethereum/common"
)

func FuzzParseSource(f *testing.F) {
	f.Add(Source(1, common.Address{1}))
	f.Add("did:pkh:eip155::0x")
	f.Fuzz(func(t *testing.T, text string) {
		chainID, payer, err := ParseSource(text)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("unexpected kind of error: %v", err)
			}
			return
		}
		if again, same, err := ParseSource(Source(chainID, payer)); err != nil || again != chainID || same != payer {
			t.Fatalf("%q is %d %s, which is read as %d %s (%v)", text, chainID, payer, again, same, err)
		}
	})
}

func FuzzParseReceipt(f *testing.F) {
	f.Add([]byte(`{"method":"evm","intent":"session","status":"success","acceptedCumulative":"5","spent":"5"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		text, err := encode(json.RawMessage(raw))
		if err != nil {
			return
		}
		r, err := ParseReceipt(http.Header{"Payment-Receipt": {text}})
		if err == nil && (r.AcceptedCumulative.BitLen() > 96 || r.Spent.BitLen() > 96) {
			t.Fatalf("%s: amounts over 96 bits", raw)
		}
	})
}

// FuzzParseProblem: whatever a provider answers, there is an error to show, with the status that came.
func FuzzParseProblem(f *testing.F) {
	f.Add(402, "application/problem+json", []byte(`{"type":"x","title":"y","status":200,"detail":"z"}`))
	f.Fuzz(func(t *testing.T, status int, kind string, body []byte) {
		p := ParseProblem(&http.Response{StatusCode: status, Header: http.Header{"Content-Type": {kind}}, Body: io.NopCloser(bytes.NewReader(body))})
		if p.Status != status || p.Error() == "" {
			t.Fatalf("%d became %+v", status, p)
		}
	})
}

// FuzzDecodeRequest: a challenge's request comes from the provider, and the renter pays by it.
func FuzzDecodeRequest(f *testing.F) {
	raw, err := json.Marshal(testRequest())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		text, err := encode(json.RawMessage(raw))
		if err != nil {
			return
		}
		r, err := Challenge{Request: text}.Decode()
		if err == nil && r.Amount.BitLen() > 96 {
			t.Fatalf("%s: a price over 96 bits", raw)
		}
	})
}
