package proxy_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/proxy"
	"github.com/gpupay/gpupay/sdk/route"
)

// TestProviderOptions: OpenRouter's options do what they say there, do not reach a provider, and those that are not served are refused.
func TestProviderOptions(t *testing.T) {
	t.Parallel()
	d := newDesk(t, []*engine{newEngine(t, well), newEngine(t, well), newEngine(t, well)}, func(_ *proxy.Config, p *purse) {
		p.endpoints[1].Quantization, p.endpoints[2].Model = "int4", "big"
		for i := range p.endpoints { // all alike, so that chance alone would have it otherwise
			p.endpoints[i].Price.PerSlotSecond = route.Base(1000)
		}
	})
	host := func(i int) string { return strings.TrimPrefix(d.engines[i].URL, "http://") }
	for _, row := range []struct {
		options, models string
		want            int
	}{
		{`{"order":["` + host(1) + `","` + host(0) + `"]}`, `"model":"m"`, 1},
		{`{"order":["` + d.engines[0].URL + `"],"allow_fallbacks":false}`, `"model":"m"`, 0},
		{`{"only":["` + host(1) + `"]}`, `"model":"m"`, 1},
		{`{"ignore":["` + host(1) + `"]}`, `"model":"m"`, 0},
		{`{"quantizations":["int4","fp4"]}`, `"model":"m"`, 1},
		{`{"sort":"latency","max_price":{"prompt":"90","completion":1000}}`, `"model":"big"`, 2},
		{`{"only":["` + host(2) + `"],"zdr":null}`, `"model":"m","models":["nobody's","big"]`, 2},
		{`{}`, `"models":["big"]`, 2},
	} {
		for range 4 {
			before := d.engines[row.want].asked.Load()
			a := d.post("/v1/chat/completions", fmt.Sprintf(`{"provider":%s,%s,"messages":[]}`, row.options, row.models))
			if a.StatusCode != http.StatusOK || d.engines[row.want].asked.Load() != before+1 {
				t.Fatalf("%s %s: %d %s from %s, want %s", row.options, row.models, a.StatusCode, a.text, a.Header.Get("X-Gpupay-Provider"), d.engines[row.want].URL)
			}
			model := map[bool]string{true: `"model":"big"`, false: `"model":"m"`}[row.want == 2]
			if body, _ := d.engines[row.want].got(); strings.Contains(body, "provider") || strings.Contains(body, "models") || !strings.Contains(body, model) {
				t.Errorf("a provider got %s", body)
			}
		}
	}
	for _, options := range []string{`{"zdr":true}`, `{"data_collection":"deny"}`, `{"sort":"random"}`, `{"sort":{"by":"price"}}`, `{"order":"one"}`, `{"max_price":{"image":1}}`,
		`{"max_price":{"prompt":-1}}`, `{"max_price":{"prompt":1e999999999}}`, `{"max_price":5}`, `{"require_parameters":true}`, `[]`} {
		a := d.post("/v1/chat/completions", `{"model":"m","messages":[],"provider":`+options+`}`)
		if a.StatusCode != http.StatusBadRequest || !strings.Contains(a.text, "provider") {
			t.Errorf("%s: %d %s", options, a.StatusCode, a.text)
		}
	}
}

// TestMaxPriceOfManyDecimals: a bound holds with a token of 18 decimals as with one of 6.
func TestMaxPriceOfManyDecimals(t *testing.T) {
	t.Parallel()
	for decimals, second := range map[uint8]uint64{6: 100_000, 18: 100_000_000_000_000_000} { // ten cents
		d := newDesk(t, []*engine{newEngine(t, well)}, func(c *proxy.Config, p *purse) {
			c.Decimals, p.left = decimals, 1<<63
			p.endpoints[0].Price = route.Price{PerSlotSecond: route.Base(second)}
		})
		for _, at := range []struct {
			price string
			want  int
		}{{"0.05", 404}, {"50", 404}, {"1000000", 200}} { // the answer comes last: it teaches that the provider is fast, and so cheap
			if a := d.chat(`,"max_tokens":10,"provider":{"max_price":{"prompt":` + at.price + `,"completion":` + at.price + `}}`); a.StatusCode != at.want {
				t.Errorf("%d decimals, at most %s: %d %s", decimals, at.price, a.StatusCode, a.text)
			}
		}
	}
}

// TestNoFallbacks: who does not want another provider gets the first one's failure.
func TestNoFallbacks(t *testing.T) {
	t.Parallel()
	d := newDesk(t, []*engine{newEngine(t, status(500)), newEngine(t, status(500))})
	if a := d.chat(`,"provider":{"allow_fallbacks":false}`); a.StatusCode != 503 || a.Header.Get("X-Gpupay-Attempts") != "1" {
		t.Errorf("%d %s", a.StatusCode, a.text)
	}
	if a := d.chat(`,"provider":{"allow_fallbacks":false,"order":["` + d.engines[1].URL + `"]}`); a.StatusCode != 503 || a.Header.Get("X-Gpupay-Attempts") != "1" || strings.Contains(a.text, d.engines[0].URL) {
		t.Errorf("%d %s", a.StatusCode, a.text)
	}
	if a := d.chat(""); a.StatusCode != 503 || a.Header.Get("X-Gpupay-Attempts") != "2" {
		t.Errorf("%d %s", a.StatusCode, a.text)
	}
}

// TestConversationStays: the next turn of a conversation goes where the one before ran, if that costs no more than chance.
func TestConversationStays(t *testing.T) {
	t.Parallel()
	prompt := strings.Repeat("a long prompt that is read once ", 4000)
	reads := func() func(w http.ResponseWriter, r *http.Request) {
		var read atomic.Bool // the second time it is in the server's cache
		return func(w http.ResponseWriter, r *http.Request) {
			if !read.Swap(true) {
				time.Sleep(500 * time.Millisecond)
			}
			well(w, r)
		}
	}
	d := newDesk(t, []*engine{newEngine(t, reads()), newEngine(t, reads())}, func(_ *proxy.Config, p *purse) {
		p.endpoints[1].Price = p.endpoints[0].Price
	})
	if a := d.post("/v1/chat/completions", `{"model":"m","messages":["`+prompt+`"],"provider":{"order":["`+d.engines[1].URL+`"]}}`); a.StatusCode != http.StatusOK {
		t.Fatal(a.text)
	}
	for i := range 10 {
		if a := d.post("/v1/chat/completions", `{"model":"m","messages":["`+prompt+`","answer","more"]}`); a.StatusCode != http.StatusOK {
			t.Fatal(i, a.text)
		}
	}
	if stayed := d.engines[1].asked.Load(); stayed < 9 {
		t.Errorf("%d of 10 turns ran where the conversation had begun", stayed-1)
	}
}
