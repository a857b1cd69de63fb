package proxy_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/proxy"
	"github.com/gpupay/gpupay/sdk/route"
)

// TestFailover: whatever a provider fails by, the next one answers, unseen, and one answer is paid.
func TestFailover(t *testing.T) {
	t.Parallel()
	for name, bad := range map[string]func(http.ResponseWriter, *http.Request){
		"500": status(500), "503": status(503), "429": status(429, "Retry-After", "2"), "401": status(401), "403": status(403), "404": status(404), "408": status(408), "425": status(425), "redirect": status(302, "Location", "http://127.0.0.1:1/"),
		"402 of the provider": status(402, "Content-Type", "application/problem+json"),
		"reset before":        func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"reset in a document": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, `{"choices":[`)
		},
		"a page": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, `<html>log in to the network</html>`)
		},
		"something without a type": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "")
			_, _ = io.WriteString(w, document)
		},
		"an error in the document": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"error":{"message":"out of memory"}}`)
		},
	} {
		for _, members := range []string{"", `,"stream":true`} {
			t.Run(name+members, func(t *testing.T) {
				t.Parallel()
				d := newDesk(t, []*engine{newEngine(t, bad), newEngine(t, well)})
				d.first(members, 1)
			})
		}
	}
	for name, bad := range map[string]func(http.ResponseWriter, *http.Request){
		"an error event first": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, ": ping\n\ndata: {\"error\":{\"message\":\"out of memory\"}}\n\n")
		},
		"an empty stream": func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Content-Type", "text/event-stream") },
		"a torn event": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, `data: {"choi`)
			_ = http.NewResponseController(w).Flush()
			time.Sleep(20 * time.Millisecond)
			panic(http.ErrAbortHandler)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			newDesk(t, []*engine{newEngine(t, bad), newEngine(t, well)}).first(`,"stream":true`, 1)
		})
	}
}

// first asks the engine that fails first, and has the other answer.
func (d *desk) first(members string, failures int) {
	d.Helper()
	a := d.chat(`,"provider":{"order":["` + strings.TrimPrefix(d.engines[0].URL, "http://") + `"]}` + members)
	if a.StatusCode != http.StatusOK || a.err != nil || !strings.Contains(a.text, "there") || strings.Contains(a.text, "error") {
		d.Errorf("%d %q %v", a.StatusCode, a.text, a.err)
	}
	if a.Header.Get("X-Gpupay-Provider") != d.engines[1].URL || a.Header.Get("X-Gpupay-Attempts") != "2" || d.engines[0].asked.Load() != 1 {
		d.Errorf("%v; the first was asked %d times", a.Header, d.engines[0].asked.Load())
	}
	d.purse.mu.Lock()
	defer d.purse.mu.Unlock()
	if d.purse.done != failures+1 {
		d.Errorf("%d of 2 reservations were corrected", d.purse.done)
	}
}

// TestFailureCostsNothing: the provider that failed is paid nothing, so that a failover is paid once.
func TestFailureCostsNothing(t *testing.T) {
	t.Parallel()
	d := newDesk(t, []*engine{newEngine(t, func(w http.ResponseWriter, r *http.Request) { time.Sleep(300 * time.Millisecond); status(500)(w, r) }), newEngine(t, well)},
		func(_ *proxy.Config, p *purse) { p.endpoints[0].Price.PerSlotSecond = route.Base(1_000_000) })
	d.first("", 1)
	if d.purse.spent.Cmp(route.Base(200_000)) > 0 {
		t.Errorf("%s was paid: 300 ms of the provider that failed are 300,000", d.purse.spent)
	}
}

// TestWhatARefusalCosts: what the cost is said to be is what an honest sidecar bills for the inference server's refusals.
func TestWhatARefusalCosts(t *testing.T) {
	t.Parallel()
	for code, billed := range map[int]bool{401: false, 403: true, 404: true, 408: false, 425: false, 429: false, 500: false} {
		bad := newEngine(t, status(code))
		d := newDesk(t, []*engine{bad})
		if a := d.chat(""); d.purse.spent.IsZero() == billed || (a.Header.Get("X-Gpupay-Cost") == "0.00") == billed {
			t.Errorf("%d costs %s: %d %s %v", code, d.purse.spent, a.StatusCode, a.text, a.Header)
		}
	}
}

// TestBrokenStream: an answer that breaks after its beginning ends with an error event, whole events before it, and costs nothing.
func TestBrokenStream(t *testing.T) {
	t.Parallel()
	for name, bad := range map[string]func(http.ResponseWriter, *http.Request){
		"reset":                 broken,
		"an end without an end": func(w http.ResponseWriter, r *http.Request) { say(w, "Hel") },
		"an error event": func(w http.ResponseWriter, r *http.Request) {
			say(w, "Hel")
			_, _ = io.WriteString(w, "data: {\"error\":{\"message\":\"it died\"}}\n\n")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t, []*engine{newEngine(t, bad), newEngine(t, well)})
			a := d.chat(`,"stream":true,"provider":{"order":["` + d.engines[0].URL + `"]}`)
			if a.err != nil || a.code() != "answer_broken" || !strings.HasPrefix(a.text, chunk("Hel")) || strings.Contains(a.text, "[DONE]") || strings.Contains(a.text, `"ind`+"\n") {
				t.Errorf("%q %v", a.text, a.err)
			}
			if !strings.Contains(a.text, d.engines[0].URL) || d.engines[1].asked.Load() != 0 || a.Trailer.Get("X-Gpupay-Cost") != "0.00" || !d.purse.spent.IsZero() {
				t.Errorf("%q; trailer %v, spent %s", a.text, a.Trailer, d.purse.spent)
			}
		})
	}
}

// TestLimit: an answer that runs for longer than the budget pays for is ended, said with what is charged, and not asked for again at the
// same limit.
func TestLimit(t *testing.T) {
	t.Parallel()
	hang := func(w http.ResponseWriter, r *http.Request) {
		if streams(r) {
			say(w, "Hel")
		}
		<-r.Context().Done()
	}
	little := func(_ *proxy.Config, p *purse) { p.left = 1700 } // 1.7 s
	d := newDesk(t, []*engine{newEngine(t, hang)}, little)
	a := d.chat(`,"stream":true,"max_tokens":1`)
	if a.err != nil || a.code() != "answer_broken" || !strings.Contains(a.text, "a max_tokens over 1 and out of a larger budget") || !strings.Contains(a.text, "$0.0017") || d.purse.spent.IsZero() {
		t.Errorf("%q %v: %s", a.text, a.err, d.purse.spent)
	}
	d = newDesk(t, []*engine{newEngine(t, hang)}, little)
	a = d.chat(`,"max_tokens":1`)
	if a.StatusCode != http.StatusGatewayTimeout || a.code() != "time_used" || a.Header.Get("X-Should-Retry") != "false" || !strings.Contains(a.text, "$0.0017") || strings.Contains(a.text, "failed") {
		t.Errorf("%d %v %s", a.StatusCode, a.Header, a.text)
	}
}

// TestLimitOfTheHold: what a hold pays for may be over before the time that was reserved for, where the price was raised meanwhile. That is
// paid, is no failure of its provider, and is not sent to the next one.
func TestLimitOfTheHold(t *testing.T) {
	t.Parallel()
	for name, answers := range map[string]func(http.ResponseWriter){
		"nothing":  func(http.ResponseWriter) {},
		"half":     func(w http.ResponseWriter) { _, _ = io.WriteString(w, `{"choices":[`); w.(http.Flusher).Flush() },
		"a stream": func(w http.ResponseWriter) { say(w, "Hel") },
	} {
		t.Run(name, func(t *testing.T) {
			hang := func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				answers(w)
				<-r.Context().Done()
			}
			d := newDesk(t, []*engine{newEngine(t, hang), newEngine(t, hang)}, func(_ *proxy.Config, p *purse) { p.pays = 300 * time.Millisecond })
			body := `,"max_tokens":1`
			if name == "a stream" {
				body += `,"stream":true`
			}
			a := d.chat(body)
			if asked := d.engines[0].asked.Load() + d.engines[1].asked.Load(); asked != 1 {
				t.Errorf("%d providers were asked for what was cut", asked)
			}
			if d.purse.spent.IsZero() || strings.Contains(a.text, "failed") || !strings.Contains(a.text, "is charged") {
				t.Errorf("%s paid: %s", d.purse.spent, a.text)
			}
		})
	}
}

// TestLimitGrows: clients are asked to send again what was cut where it may run for longer now.
func TestLimitGrows(t *testing.T) {
	t.Parallel()
	var d *desk
	d = newDesk(t, []*engine{newEngine(t, func(w http.ResponseWriter, r *http.Request) {
		d.purse.mu.Lock()
		d.purse.left = 1_000_000
		d.purse.mu.Unlock()
		<-r.Context().Done()
	})}, func(_ *proxy.Config, p *purse) { p.left = 1700 })
	a := d.chat(`,"max_tokens":1`)
	if a.StatusCode != http.StatusServiceUnavailable || a.Header.Get("X-Should-Retry") != "true" || !strings.Contains(a.text, "$0.0017") {
		t.Errorf("%d %v %s", a.StatusCode, a.Header, a.text)
	}
}

// TestSlowAnswers: a healthy provider of 15 tokens a second answers whole.
func TestSlowAnswers(t *testing.T) {
	t.Parallel()
	d := newDesk(t, []*engine{newEngine(t, func(w http.ResponseWriter, r *http.Request) {
		for range 60 {
			say(w, " word")
			time.Sleep(time.Second / 15)
		}
		_, _ = io.WriteString(w, last)
	})})
	if a := d.chat(`,"stream":true,"max_tokens":60`); a.code() != "" || !strings.Contains(a.text, "[DONE]") {
		t.Errorf("%s", a.text)
	}
}

// TestChargedIsSaid: an error says what was charged, or that nothing was.
func TestChargedIsSaid(t *testing.T) {
	t.Parallel()
	for code, words := range map[int]string{404: "$0.0", 500: "Nothing is charged"} {
		d := newDesk(t, []*engine{newEngine(t, func(w http.ResponseWriter, r *http.Request) { time.Sleep(20 * time.Millisecond); status(code)(w, r) })})
		a := d.chat("")
		if !strings.Contains(a.text, words) || d.purse.spent.IsZero() != (code == 500) || code == 404 && !strings.Contains(a.text, "$"+a.Header.Get("X-Gpupay-Cost")+" is charged") {
			t.Errorf("%d, %s was paid: %s", code, d.purse.spent, a.text)
		}
	}
}

// TestWhoCannotBePaid: a provider that no reservation is to be had for is left out, and a budget that is used is said at once.
func TestWhoCannotBePaid(t *testing.T) {
	t.Parallel()
	d := newDesk(t, []*engine{newEngine(t, well), newEngine(t, well)})
	d.purse.refuse[d.engines[0].URL] = errors.New("its channel's deposit needs gas and a nonce")
	a := d.chat(`,"provider":{"order":["` + d.engines[0].URL + `"]}`)
	if a.StatusCode != http.StatusOK || d.engines[0].asked.Load() != 0 || a.Header.Get("X-Gpupay-Attempts") != "2" {
		t.Errorf("%d %s %v", a.StatusCode, a.text, a.Header)
	}
	d.purse.refuse[d.engines[1].URL] = d.purse.refuse[d.engines[0].URL]
	if a = d.chat(""); a.StatusCode != http.StatusServiceUnavailable || a.code() != "providers_failed" || a.Header.Get("Retry-After") == "" || strings.Contains(a.text, "gas") {
		t.Errorf("%d %s", a.StatusCode, a.text)
	}
}

// TestErrors: what is wrong is said in OpenAI's shape, with a status by which official clients do what is right, and with what to do.
func TestErrors(t *testing.T) {
	t.Parallel()
	d := newDesk(t, []*engine{newEngine(t, status(400)), newEngine(t, status(429, "Retry-After", "7"))}, func(c *proxy.Config, p *purse) {
		c.MaxBody = 2000
		p.endpoints[0].Model = "wrong"
		p.endpoints[1].Model = "full"
	})
	for _, row := range []struct {
		body, code, words string
		status            int
		retry             string
	}{
		{`{"model":"wrong"}`, "", "no", 400, ""},
		{`{"model":"full"}`, "providers_full", "is full", 429, "7"},
		{`{"model":"none"}`, "model_not_found", "/v1/models", 404, ""},
		{`{"model":"full","provider":{"only":["elsewhere"]}}`, "no_provider_fits", "options", 404, ""},
		{`{"model":"full","provider":{"max_price":{"completion":0.000001}}}`, "no_provider_fits", "max_price", 404, ""},
		{`{"messages":[]}`, "invalid_value", "model", 400, ""},
		{`[]`, "invalid_value", "object", 400, ""},
		{`{"model":"a","model":"b"}`, "invalid_value", "twice", 400, ""},
		{`{"model":"full"}{}`, "invalid_value", "behind", 400, ""},
		{`{"model":"full","stream":"yes"}`, "invalid_value", "stream", 400, ""},
		{`{"model":"full","background":true}`, "invalid_value", "background", 400, ""},
		{`{"model":"full","messages":"` + strings.Repeat("x", 2000) + `"}`, "body_too_large", "2000 bytes", 413, ""},
	} {
		a := d.post("/v1/chat/completions", row.body)
		if a.StatusCode != row.status || a.code() != row.code || !strings.Contains(a.text, row.words) || a.Header.Get("Retry-After") != row.retry {
			t.Errorf("%.80s: %d %s, Retry-After %q", row.body, a.StatusCode, a.text, a.Header.Get("Retry-After"))
		}
		if should := a.Header.Get("X-Should-Retry"); row.code != "" && should != map[bool]string{true: "true", false: "false"}[row.retry != ""] {
			t.Errorf("%.80s: X-Should-Retry %q", row.body, should)
		}
	}
	if a := newDesk(t, nil).chat(""); a.StatusCode != 503 || a.code() != "providers_failed" || a.Header.Get("Retry-After") != "1" { // while no price is known
		t.Errorf("%d %s", a.StatusCode, a.text)
	}
	if a := d.post("/v1/audio/speech", `{"model":"full"}`); a.StatusCode != 404 || a.code() != "not_served" {
		t.Errorf("%d %s", a.StatusCode, a.text)
	}
	d.purse.left = 1
	if a := d.post("/v1/chat/completions", `{"model":"full"}`); a.StatusCode != 402 || a.code() != "budget_used" || !strings.Contains(a.text, "$0.000001") || !strings.Contains(a.text, "00:00 UTC") {
		t.Errorf("%d %s", a.StatusCode, a.text)
	}
}

// TestFailuresAreSaid: the payments are told of whatever a caller is told to cost nothing, but where the status or the connection says it.
func TestFailuresAreSaid(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		script func(http.ResponseWriter, *http.Request)
		failed int
	}{
		"429": {status(429), 1}, "402": {status(402), 1}, "401": {status(401), 1}, "408": {status(408), 1}, "425": {status(425), 1}, "302": {status(302, "Location", "/x"), 1},
		"an error in the answer": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"error":{"message":"x"}}`)
		}, 1},
		"a stream without its end": {func(w http.ResponseWriter, r *http.Request) { say(w, "Hel") }, 1},
		"an empty stream":          {func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Content-Type", "text/event-stream") }, 1},
		"a page": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, `<html></html>`)
		}, 1},
		"a reset": {broken, 0},
		"400":     {status(400), 0}, "403": {status(403), 0}, "404": {status(404), 0},
		"well": {well, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t, []*engine{newEngine(t, row.script)})
			d.chat(`,"stream":true`)
			d.purse.mu.Lock()
			defer d.purse.mu.Unlock()
			if d.purse.failed != row.failed || d.purse.done != 1 {
				t.Errorf("%d failures are said of %d reservations, want %d", d.purse.failed, d.purse.done, row.failed)
			}
		})
	}
}

// TestRoom: a request that takes all that is left leaves what is set aside with it.
func TestRoom(t *testing.T) {
	t.Parallel()
	d := newDesk(t, []*engine{newEngine(t, well)}, func(_ *proxy.Config, p *purse) { p.left, p.aside = 5000, 2000 })
	if a := d.chat(`,"max_tokens":1`); a.StatusCode != http.StatusOK {
		t.Errorf("%d %s", a.StatusCode, a.text)
	}
}

// TestAnotherWasFaster: a request that finds taken what was left when it was chosen for takes what is left now.
func TestAnotherWasFaster(t *testing.T) {
	t.Parallel()
	d := newDesk(t, []*engine{newEngine(t, well)})
	d.purse.before = func() { d.purse.before, d.purse.left = nil, 5000 }
	if a := d.chat(`,"max_tokens":1`); a.StatusCode != http.StatusOK || a.Header.Get("X-Gpupay-Attempts") != "1" {
		t.Errorf("%d %s", a.StatusCode, a.text)
	}
	d.purse.before = func() { d.purse.left /= 2 }
	d.purse.left = 16_000
	if a := d.chat(`,"max_tokens":1`); a.StatusCode != http.StatusTooManyRequests || a.code() != "budget_reserved" {
		t.Errorf("%d %s", a.StatusCode, a.text)
	}
}

// TestEndsMeanwhile: clients are told to come again where what was set aside for a request that ended at that moment was all that was missing.
func TestEndsMeanwhile(t *testing.T) {
	t.Parallel()
	goes, ended := make(chan struct{}), make(chan struct{})
	d := newDesk(t, []*engine{newEngine(t, func(w http.ResponseWriter, r *http.Request) { <-goes; well(w, r) })}, func(_ *proxy.Config, p *purse) { p.left = 5000 })
	go func() { defer close(ended); d.chat(`,"max_tokens":1`) }()
	rig.Eventually(t, "the first one", func() bool { return d.engines[0].running.Load() == 1 })
	var looked atomic.Bool
	d.purse.mu.Lock()
	d.purse.asked = func() {
		if !looked.Swap(true) { // by the second one: its answer has the first one look, too
			close(goes)
			<-ended
		}
	}
	d.purse.mu.Unlock()
	if a := d.chat(`,"max_tokens":1`); a.StatusCode != http.StatusTooManyRequests || a.code() != "budget_reserved" {
		t.Errorf("%d %s", a.StatusCode, a.text)
	}
}
