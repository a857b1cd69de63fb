package proxy_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/proxy"
	"github.com/gpupay/gpupay/sdk/route"
)

// TestEmbeddingsAreReservedByTheirInput: embeddings of many texts get the time that those need, and are expected to cost what they did.
func TestEmbeddingsAreReservedByTheirInput(t *testing.T) {
	t.Parallel()
	var d *desk
	var least route.Nano
	d = newDesk(t, []*engine{newEngine(t, func(w http.ResponseWriter, r *http.Request) {
		least, _ = d.purse.Left("")
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"object":"list","data":[{"embedding":[1]}]}`))
	})})
	for input, want := range map[string]time.Duration{`"` + strings.Repeat("word ", 4000) + `"`: 40 * time.Second, `["a"` + strings.Repeat(`,"a"`, 2000) + `]`: 40 * time.Second, `"a"`: time.Second} {
		before, _ := d.purse.Left("")
		a := d.post("/v1/embeddings", `{"model":"m","input":`+input+`}`)
		if reserved := before.Sub(least); a.StatusCode != http.StatusOK || reserved.BaseUnits() < want.Seconds()*1000 { // a second costs 1000
			t.Errorf("%.20s: %d %.200s; %s reserved", input, a.StatusCode, a.text, reserved)
		}
	}
}

// TestACutIsPaidOnce: a request that is ended by what was reserved for it, and paid, is not sent to the next provider, which would be paid for
// the same.
func TestACutIsPaidOnce(t *testing.T) {
	t.Parallel()
	var d *desk
	hangs := func(_ http.ResponseWriter, r *http.Request) {
		d.purse.mu.Lock()
		d.purse.left = 1_000_000_000 // so that the next one could be paid
		d.purse.mu.Unlock()
		<-r.Context().Done()
	}
	d = newDesk(t, []*engine{newEngine(t, hangs), newEngine(t, hangs)}, func(_ *proxy.Config, p *purse) {
		p.left = 1700 // what the answer may take is bounded by it: 1.7 s
	})
	a := d.post("/v1/chat/completions", `{"model":"m","max_tokens":1,"messages":[]}`)
	if n := d.engines[0].asked.Load() + d.engines[1].asked.Load(); a.StatusCode != http.StatusServiceUnavailable || n != 1 {
		t.Errorf("%d %s: %d providers were asked", a.StatusCode, a.text, n)
	}
}

// TestManyMembers: a body of many members takes a time that grows as it does.
func TestManyMembers(t *testing.T) {
	t.Parallel()
	d := newDesk(t, []*engine{newEngine(t, well)})
	takes := func(members int) time.Duration {
		var b strings.Builder
		for i := range members {
			fmt.Fprintf(&b, `,"%d":0`, i)
		}
		body := `{"model":"m","messages":[]` + b.String() + `}`
		best := time.Hour
		for range 3 {
			w := httptest.NewRecorder()
			began := time.Now()
			d.server.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "http://127.0.0.1/v1/chat/completions", strings.NewReader(body)))
			best = min(best, time.Since(began))
			if w.Code != http.StatusOK {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
		}
		return best
	}
	if few, many := takes(5_000), takes(40_000); many > 25*few { // eight times; where each is compared with each, 64 times
		t.Errorf("%s for 5,000 members, %s for 40,000", few, many)
	}
}

// TestOneModelIsSent: no body reaches a provider with a second model, which servers that read names without case would serve, or the last.
func TestOneModelIsSent(t *testing.T) {
	t.Parallel()
	d := newDesk(t, []*engine{newEngine(t, well)})
	for _, name := range []string{"MODEL", "Model", "Max_Tokens", "\u017ftream", "BACKGROUND"} { // a long s folds to s
		if a := d.chat(`,"` + name + `":"dear"`); a.StatusCode != http.StatusBadRequest || a.code() != "invalid_value" {
			t.Errorf("%s: %d %s", name, a.StatusCode, a.text)
		}
	}
	if n := d.engines[0].asked.Load(); n != 0 {
		t.Errorf("%d were sent", n)
	}
	for _, model := range []string{"null", `""`} {
		a := d.post("/v1/chat/completions", `{"model":`+model+`,"models":["m"],"messages":[]}`)
		if body, _ := d.engines[0].got(); a.StatusCode != http.StatusOK || body != `{"model":"m","messages":[]}` {
			t.Errorf("%d: a provider got %s", a.StatusCode, body)
		}
	}
}
