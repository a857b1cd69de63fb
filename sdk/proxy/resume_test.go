package proxy_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/proxy"
	"github.com/gpupay/gpupay/sdk/route"
)

// scribe is an inference server that always writes the same text, and goes on with what it is given of it.
type scribe struct {
	id    string
	text  string
	piece int // characters of an event
	dies  int // after so many events of text; negative: never
	how   func(w http.ResponseWriter)
	extra string // what each delta has beside text
	bytes int    // that are sent at once; 0: an event
}

const essay = "Größe zählt 中文 and 🎉🎊, \"quoted\" <b>&amp;</b>\nnew\tlines \\ slashes — and so on, until nothing is left to say."

// reset, cut off and reported are how servers die.
func reset(w http.ResponseWriter) {
	_, _ = io.WriteString(w, `data: {"id":"1","choices":[{"ind`)
	_ = http.NewResponseController(w).Flush()
	time.Sleep(10 * time.Millisecond)
	panic(http.ErrAbortHandler)
}

// tears is a reset in the middle of a character.
func tears(w http.ResponseWriter) {
	_, _ = io.WriteString(w, "data: {\"id\":\"1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\xe4\xb8")
	_ = http.NewResponseController(w).Flush()
	time.Sleep(10 * time.Millisecond)
	panic(http.ErrAbortHandler)
}

func ends(http.ResponseWriter) {}

func reports(w http.ResponseWriter) {
	_, _ = io.WriteString(w, "data: {\"error\":{\"message\":\"it died\"}}\n\n")
}

type asked struct {
	Messages []struct{ Role, Content string }
	Continue bool  `json:"continue_final_message"`
	Generate *bool `json:"add_generation_prompt"`
	Max      *int  `json:"max_tokens"`
	Options  struct {
		Usage bool `json:"include_usage"`
	} `json:"stream_options"`
}

func (s scribe) serve(w http.ResponseWriter, r *http.Request) {
	var q asked
	_ = json.NewDecoder(r.Body).Decode(&q)
	left := s.text
	if last := len(q.Messages) - 1; last >= 0 && q.Messages[last].Role == "assistant" && q.Continue && q.Generate != nil && !*q.Generate {
		rest, ok := strings.CutPrefix(left, q.Messages[last].Content)
		if !ok || last > 0 && q.Messages[last-1].Role == "assistant" {
			status(500)(w, r)
			return
		}
		left = rest
	}
	w.Header().Set("Content-Type", "text/event-stream")
	event := func(choices, usage string) {
		text := fmt.Appendf(nil, "data: {\"id\":%q,\"object\":\"chat.completion.chunk\",\"created\":%d,\"model\":\"m-%s\",\"choices\":[%s]%s}\n\n", s.id, len(s.id), s.id, choices, usage)
		size := s.bytes
		if size == 0 {
			size = len(text)
		}
		for piece := range slices.Chunk(text, size) {
			_, _ = w.Write(piece)
			_ = http.NewResponseController(w).Flush()
		}
	}
	event(`{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}`, "")
	runes, finish := []rune(left), "stop"
	for n := 0; len(runes) > 0 && finish == "stop"; n++ {
		if n == s.dies {
			s.how(w)
			return
		}
		piece := runes[:min(s.piece, len(runes))]
		runes = runes[len(piece):]
		text, _ := json.Marshal(string(piece))
		event(`{"index":0,"delta":{"content":`+string(text)+s.extra+`},"logprobs":null,"finish_reason":null}`, "")
		if q.Max != nil && n+1 == *q.Max {
			finish = "length"
		}
	}
	if s.dies >= 0 {
		s.how(w)
		return
	}
	event(`{"index":0,"delta":{},"finish_reason":"`+finish+`"}`, "")
	if q.Options.Usage {
		event("", `,"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}`)
	}
	_, _ = io.WriteString(w, "data: [DONE]\n\n")
}

// heard is what a caller makes of a stream.
type heard struct {
	text, id, finish, fails string
	roles, ends, figures    int
}

func (a answer) heard(t *testing.T) (h heard) {
	t.Helper()
	for line := range strings.Lines(a.text) {
		line, is := strings.CutPrefix(strings.TrimSpace(line), "data: ")
		var e struct {
			ID, Model string
			Created   int
			Error     *struct{ Message string }
			Usage     *struct{}
			Choices   []struct {
				Index  int
				Delta  struct{ Role, Content string }
				Finish string `json:"finish_reason"`
			}
		}
		switch err := error(nil); {
		case !is:
			continue
		case line == "[DONE]":
			h.ends++
			continue
		default:
			if err = json.Unmarshal([]byte(line), &e); err != nil {
				t.Errorf("%q: %v", line, err)
			}
		}
		if e.Error != nil {
			h.fails = e.Error.Message
			continue
		}
		if h.id == "" {
			h.id = e.ID
		}
		if e.ID != h.id || e.Model != "m-"+h.id || e.Created != len(h.id) || h.fails != "" || h.ends > 0 {
			t.Errorf("an event of %s: %s", h.id, line)
		}
		if e.Usage != nil {
			h.figures++
		}
		for _, c := range e.Choices {
			if h.text += c.Delta.Content; c.Delta.Role != "" {
				h.roles++
			}
			if c.Finish != "" {
				h.finish = c.Finish
			}
			if c.Index != 0 || len(e.Choices) > 1 {
				t.Errorf("a choice beside the first: %s", line)
			}
		}
	}
	return h
}

// newScribes is a proxy before servers that go on with text, asked in this order.
func newScribes(t *testing.T, all []scribe, change ...func(*proxy.Config, *purse)) *desk {
	t.Helper()
	var engines []*engine
	for i, s := range all {
		if s.id == "" {
			s.id = strings.Repeat("x", i+1)
		}
		engines = append(engines, newEngine(t, s.serve))
	}
	return newDesk(t, engines, append([]func(*proxy.Config, *purse){func(c *proxy.Config, p *purse) {
		for i := range p.endpoints {
			p.endpoints[i].Prefill = true
		}
	}}, change...)...)
}

// order has the engines be asked in their order.
func (d *desk) order() string {
	var all []string
	for _, e := range d.engines {
		all = append(all, e.URL)
	}
	list, _ := json.Marshal(all)
	return `,"stream":true,"provider":{"order":` + string(list) + `}`
}

// TestGoesOn: wherever a stream breaks, twice at the most, and however, the caller has the text of an unbroken one, as one answer with one end,
// which is paid once.
func TestGoesOn(t *testing.T) {
	t.Parallel()
	draw := rand.New(rand.NewPCG(3, 4))
	events := len([]rune(essay))
	for i := range 64 {
		how, name := []func(http.ResponseWriter){reset, ends, reports, tears}[i%4], []string{"reset", "ends", "reports", "tears"}[i%4]
		all := []scribe{{text: essay, piece: 1 + draw.IntN(5), dies: draw.IntN(events), how: how}, {text: essay, piece: 1 + draw.IntN(5), dies: -1}}
		all[0].bytes, all[1].bytes = draw.IntN(20), draw.IntN(20)
		all[0].dies %= (events+all[0].piece-1)/all[0].piece + 1
		if i%8 > 3 { // the second one dies too
			all = []scribe{all[0], {text: essay, piece: 1 + draw.IntN(3), dies: draw.IntN(4), how: how}, all[1]}
		}
		t.Run(fmt.Sprintf("%s after %d events of %d", name, all[0].dies, all[0].piece), func(t *testing.T) {
			t.Parallel()
			d := newScribes(t, all)
			a := d.chat(d.order() + `,"stream_options":{"include_usage":true}`)
			h := a.heard(t)
			if h.text != essay || h.finish != "stop" || h.ends != 1 || h.roles != 1 || h.id != "x" || h.fails != "" || h.figures != 0 || a.err != nil {
				t.Errorf("%+v %v", h, a.err)
			}
			d.purse.mu.Lock()
			defer d.purse.mu.Unlock()
			cost := a.Trailer.Get("X-Gpupay-Cost")
			paid := d.purse.spent.RoundUp()
			if d.purse.done != len(all) || i%4 != 0 && i%4 != 3 && d.purse.failed != len(all)-1 || cost == "0.00" || cost != money(paid.Uint64()) {
				t.Errorf("%d reservations, %d failures, the trailer says %s, paid %s", d.purse.done, d.purse.failed, cost, d.purse.spent)
			}
			parts := fmt.Sprint(len(all))
			if a.Trailer.Get("X-Gpupay-Attempts") != parts || a.Header.Get("X-Gpupay-Attempts") != "1" || a.Trailer.Get("X-Gpupay-Provider") != d.engines[len(all)-1].URL ||
				!strings.HasSuffix(a.text, ": X-Gpupay-Attempts "+parts+"\n: X-Gpupay-Cost "+cost+"\n") {
				t.Errorf("%v %v %q", a.Header, a.Trailer, a.text)
			}
		})
	}
}

// money is an amount of base units as the proxy says it.
func money(base uint64) string {
	text := strings.TrimRight(fmt.Sprintf("%d.%06d", base/1_000_000, base%1_000_000), "0")
	for len(text)-strings.Index(text, ".") < 3 {
		text += "0"
	}
	return text
}

// TestGoesOnWithoutWords: who goes on gets the caller's request, what was said as the last message, and no word of ours.
func TestGoesOnWithoutWords(t *testing.T) {
	t.Parallel()
	d := newScribes(t, []scribe{{text: essay, piece: 7, dies: 2, how: ends}, {text: essay, piece: 7, dies: -1}})
	a := d.post("/v1/chat/completions", `{"model":"m","messages":[ {"role":"user","content":"<Hi>"} ],"max_tokens":40,"max_completion_tokens":50,"seed":1`+d.order()+`}`)
	body, _ := d.engines[1].got()
	said, _ := json.Marshal(string([]rune(essay)[:14]))
	want := `{"continue_final_message":true,"add_generation_prompt":false,"model":"m","messages":[ {"role":"user","content":"<Hi>"} ,{"role":"assistant","content":` + string(said) +
		`}],"max_tokens":38,"max_completion_tokens":48,"seed":1,"stream":true}`
	if h := a.heard(t); body != want || h.text != essay {
		t.Errorf("got  %s\nwant %s\n%+v", body, want, h)
	}
}

// TestNotGoneOn: what is no plain text, what a request wants another form of, and what nobody can go on with ends with an error event, and is asked for nowhere else.
func TestNotGoneOn(t *testing.T) {
	t.Parallel()
	dies := scribe{text: essay, piece: 3, dies: 4, how: ends}
	tool := dies
	tool.extra = `,"tool_calls":[{"index":0,"id":"t"}]`
	reasons := dies
	reasons.extra = `,"reasoning_content":"hm"`
	torn := dies
	torn.text = "half of a character: \ufffd and more of it"
	torn.piece = 30
	torn.dies = 1
	long := scribe{text: strings.Repeat("abcdefgh", 1<<18), piece: 1 << 15, dies: 40, how: ends} // 1.25 MiB
	for name, row := range map[string]struct {
		first   scribe
		members string
		change  func(*proxy.Config, *purse)
		says    string
	}{
		"a tool call":            {tool, "", nil, ""},
		"reasoning":              {reasons, "", nil, ""},
		"half a character":       {torn, "", nil, ""},
		"more than is kept":      {long, "", nil, ""},
		"two answers":            {dies, `,"n":2`, nil, ""},
		"a form":                 {dies, `,"response_format":{"type":"json_object"}`, nil, ""},
		"a grammar":              {dies, `,"guided_regex":"a*"`, nil, ""},
		"probabilities":          {dies, `,"logprobs":true`, nil, ""},
		"a beginning of its own": {dies, `,"continue_final_message":true`, nil, ""},
		"no tokens left":         {dies, `,"max_tokens":4`, nil, ""},
		"another quantization":   {dies, "", func(_ *proxy.Config, p *purse) { p.endpoints[1].Quantization = "int4" }, "prefill"},
		"another revision":       {dies, "", func(_ *proxy.Config, p *purse) { p.endpoints[1].Revision = "2" }, "prefill"},
		"another model":          {dies, "", func(_ *proxy.Config, p *purse) { p.endpoints[1].Model = "b" }, "prefill"},
		"nobody goes on":         {dies, "", func(_ *proxy.Config, p *purse) { p.endpoints[1].Prefill = false }, "prefill"},
		"one of two of that URL": {dies, "", func(_ *proxy.Config, p *purse) {
			p.endpoints = append(p.endpoints, p.endpoints[1])
			p.endpoints[2].Quantization = "int4"
		}, "prefill"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			change := row.change
			if change == nil {
				change = func(*proxy.Config, *purse) {}
			}
			d := newScribes(t, []scribe{row.first, {text: row.first.text, piece: 9, dies: -1}}, change)
			a := d.chat(d.order() + `,"models":["m","b"]` + row.members)
			h := a.heard(t)
			if a.code() != "answer_broken" || h.ends != 0 || h.text == "" || !strings.HasPrefix(row.first.text, h.text) || d.engines[1].asked.Load() != 0 || !strings.Contains(h.fails, row.says) ||
				strings.Contains(h.fails, "elsewhere") != (row.says != "") || !d.purse.spent.IsZero() || a.Trailer.Get("X-Gpupay-Cost") != "0.00" {
				t.Errorf("%.300s; the other was asked %d times, %s paid", h.fails, d.engines[1].asked.Load(), d.purse.spent)
			}
		})
	}
}

// TestStreamRecovery: who wants the error has it, and another word is refused.
func TestStreamRecovery(t *testing.T) {
	t.Parallel()
	all := []scribe{{text: essay, piece: 3, dies: 4, how: ends}, {text: essay, piece: 9, dies: -1}}
	for how, whole := range map[string]bool{`"error"`: false, `"continue"`: true, `null`: true} {
		d := newScribes(t, all)
		a := d.chat(strings.TrimSuffix(d.order(), "}") + `,"stream_recovery":` + how + `}`)
		if h := a.heard(t); (h.text == essay) != whole || (h.fails == "") != whole {
			t.Errorf("%s: %+v", how, h)
		}
	}
	d := newScribes(t, all)
	for _, how := range []string{`"never"`, `true`, `""`} {
		if a := d.chat(`,"provider":{"stream_recovery":` + how + `}`); a.StatusCode != http.StatusBadRequest || !strings.Contains(a.text, "provider.stream_recovery") {
			t.Errorf("%s: %d %s", how, a.StatusCode, a.text)
		}
	}
}

// TestRefusalIsNotGoneOn: a refusal that comes as events, and breaks off, is no beginning of an answer.
func TestRefusalIsNotGoneOn(t *testing.T) {
	t.Parallel()
	d := newScribes(t, []scribe{{}, {text: essay, piece: 9, dies: -1}})
	d.engines[0].is(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.WriteHeader(http.StatusBadRequest)
		say(w, "No")
		reset(w)
	})
	if a := d.chat(d.order()); a.StatusCode != http.StatusBadRequest || a.code() != "answer_broken" || d.engines[1].asked.Load() != 0 {
		t.Errorf("%d %q; the other was asked %d times", a.StatusCode, a.text, d.engines[1].asked.Load())
	}
}

// TestNothingSaidYet: an answer of which nothing was said is asked for whole, of whoever serves the model.
func TestNothingSaidYet(t *testing.T) {
	t.Parallel()
	d := newScribes(t, []scribe{{text: essay, piece: 3, dies: 0, how: reset}, {text: essay, piece: 9, dies: -1}}, func(_ *proxy.Config, p *purse) {
		p.endpoints[1].Prefill, p.endpoints[1].Quantization = false, "int4"
	})
	a := d.chat(d.order())
	body, _ := d.engines[1].got()
	if h := a.heard(t); h.text != essay || h.roles != 1 || h.ends != 1 || strings.Contains(body, "assistant") || strings.Contains(body, "continue_final_message") {
		t.Errorf("%+v; %s", h, body)
	}
}

// TestEndWithoutDone: an answer whose end was said is whole, and paid, whatever becomes of the figures behind it.
func TestEndWithoutDone(t *testing.T) {
	t.Parallel()
	d := newScribes(t, []scribe{{}, {text: essay, piece: 9, dies: -1}})
	d.engines[0].is(func(w http.ResponseWriter, r *http.Request) {
		say(w, "Hello")
		_, _ = io.WriteString(w, strings.TrimSuffix(last, "data: [DONE]\n\n"))
		time.Sleep(20 * time.Millisecond)
		reset(w)
	})
	a := d.chat(d.order())
	if a.err != nil || a.code() != "" || strings.Count(a.text, "[DONE]") != 1 || !strings.HasPrefix(a.text, chunk("Hello")) || d.engines[1].asked.Load() != 0 || d.purse.spent.IsZero() {
		t.Errorf("%q %v, %s paid", a.text, a.err, d.purse.spent)
	}
}

// TestGoesOnWithinTheBudget: what goes on is reserved for before it is sent, and where the budget does not hold it, the caller reads that.
func TestGoesOnWithinTheBudget(t *testing.T) {
	t.Parallel()
	d := newScribes(t, []scribe{{text: essay, piece: 3, dies: 4}, {text: essay, piece: 9, dies: -1}}, func(_ *proxy.Config, p *purse) {
		p.endpoints[1].Price = route.Price{PerSlotSecond: route.Base(1_000_000)}
	})
	dies := scribe{id: "x", text: essay, piece: 3, dies: 4, how: func(http.ResponseWriter) {
		d.purse.mu.Lock()
		defer d.purse.mu.Unlock()
		d.purse.left = 100_000
	}}
	d.engines[0].is(dies.serve)
	a := d.chat(d.order())
	if h := a.heard(t); a.code() != "answer_broken" || !strings.Contains(h.fails, "today's budget") || d.engines[1].asked.Load() != 0 || !d.purse.spent.IsZero() || a.Trailer.Get("X-Gpupay-Attempts") != "1" {
		t.Errorf("%q; the other was asked %d times", h.fails, d.engines[1].asked.Load())
	}
}

// TestGoesOnThriceAtMost: an answer that breaks off at three providers ends with an error event that names them, and costs nothing.
func TestGoesOnThriceAtMost(t *testing.T) {
	t.Parallel()
	// 12 characters each; a space ends those of the first two, and is said again by the next one
	dies := scribe{text: essay, piece: 3, dies: 4, how: reset}
	d := newScribes(t, []scribe{dies, dies, dies, {text: essay, piece: 9, dies: -1}})
	a := d.chat(d.order())
	h := a.heard(t)
	for i, e := range d.engines {
		if (e.asked.Load() == 1) != (i < 3) || strings.Contains(h.fails, e.URL) != (i < 3) {
			t.Errorf("%d was asked %d times; %s", i, e.asked.Load(), h.fails)
		}
	}
	if a.code() != "answer_broken" || h.text != string([]rune(essay)[:34]) || h.ends != 0 || !d.purse.spent.IsZero() || a.Trailer.Get("X-Gpupay-Attempts") != "3" {
		t.Errorf("%+v %v", h, a.Trailer)
	}
}

// TestWhoCannotGoOn: one that refuses to go on, is full, or answers with something else is passed over for the next one.
func TestWhoCannotGoOn(t *testing.T) {
	t.Parallel()
	for name, second := range map[string]func(http.ResponseWriter, *http.Request){
		"400": status(400), "404": status(404), "429": status(429, "Retry-After", "2"), "500": status(500),
		"a document": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, document)
		},
		"events of something else": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, "data: hello\n\n")
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newScribes(t, []scribe{{text: essay, piece: 3, dies: 4, how: ends}, {}, {text: essay, piece: 9, dies: -1}})
			d.engines[1].is(func(w http.ResponseWriter, r *http.Request) { time.Sleep(200 * time.Millisecond); second(w, r) })
			d.purse.endpoints[2].Price = route.Price{PerSlotSecond: route.Base(1)}
			a := d.chat(d.order())
			if billed := d.purse.spent.BaseUnits() > 20_000; billed != (name == "400" || name == "404") { // of the second one, which asks 101,000 a second
				t.Errorf("%s is paid, and the trailer says %s", d.purse.spent, a.Trailer.Get("X-Gpupay-Cost"))
			}
			if h := a.heard(t); h.text != essay || h.ends != 1 || a.Trailer.Get("X-Gpupay-Attempts") != "3" {
				t.Errorf("%+v %v", h, a.Trailer)
			}
		})
	}
}

// TestWhoLeftIsNotGoneOnFor: nobody is asked to go on with the answer of a caller that has left.
func TestWhoLeftIsNotGoneOnFor(t *testing.T) {
	t.Parallel()
	d := newScribes(t, []scribe{{}, {text: essay, piece: 9, dies: -1}})
	left := make(chan struct{})
	d.engines[0].is(func(w http.ResponseWriter, r *http.Request) {
		say(w, "Hel")
		<-left
		<-r.Context().Done() // the proxy has seen it too
	})
	ctx, leave := context.WithCancel(t.Context())
	r, _ := http.NewRequestWithContext(ctx, http.MethodPost, d.site.URL+"/v1/chat/completions", strings.NewReader(`{"model":"m","messages":[]`+d.order()+`}`))
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	_, _ = io.ReadFull(res.Body, make([]byte, 10))
	leave()
	close(left)
	rig.Eventually(t, "the end", func() bool { d.purse.mu.Lock(); defer d.purse.mu.Unlock(); return d.purse.done == 1 })
	if time.Sleep(50 * time.Millisecond); d.engines[1].asked.Load() != 0 || d.purse.spent.IsZero() {
		t.Errorf("the other was asked %d times, %s paid", d.engines[1].asked.Load(), d.purse.spent)
	}
}

// TestKeyRemovedMeanwhile: a local key that is removed while an answer comes pays for nothing that would go on with it.
func TestKeyRemovedMeanwhile(t *testing.T) {
	t.Parallel()
	keys, err := proxy.OpenKeys(filepath.Join(t.TempDir(), "keys.json"), nil)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := keys.Add("ci", "1", nil)
	if err != nil {
		t.Fatal(err)
	}
	removes := func(http.ResponseWriter) {
		if err := keys.Remove("ci"); err != nil {
			t.Error(err)
		}
	}
	d := newScribes(t, []scribe{{text: essay, piece: 3, dies: 4, how: removes}, {text: essay, piece: 9, dies: -1}}, func(c *proxy.Config, _ *purse) { c.Keys = keys })
	a := d.post("/v1/chat/completions", `{"model":"m","messages":[]`+d.order()+`}`, "Authorization", "Bearer "+secret)
	if h := a.heard(t); a.code() != "answer_broken" || !strings.Contains(h.fails, "key") || d.engines[1].asked.Load() != 0 || !d.purse.spent.IsZero() {
		t.Errorf("%q; the other was asked %d times", h.fails, d.engines[1].asked.Load())
	}
}

// TestSlowIsNotGoneOn: what our own limit has cut is paid, and not gone on with: it would be paid twice.
func TestSlowIsNotGoneOn(t *testing.T) {
	t.Parallel()
	d := newScribes(t, []scribe{{}, {text: essay, piece: 9, dies: -1}}, func(_ *proxy.Config, p *purse) {
		p.left = 2500 // for 2.5 s
		p.endpoints[1].Price = p.endpoints[0].Price
	})
	d.engines[0].is(func(w http.ResponseWriter, r *http.Request) {
		say(w, "Hel")
		d.purse.mu.Lock()
		d.purse.left = 1_000_000 // it is not for want of money
		d.purse.mu.Unlock()
		<-r.Context().Done()
	})
	a := d.chat(d.order() + `,"max_tokens":10`)
	if a.code() != "answer_broken" || d.engines[1].asked.Load() != 0 || d.purse.spent.IsZero() || !strings.Contains(a.text, "reserved") || strings.Contains(a.text, "elsewhere") {
		t.Errorf("%q; the other was asked %d times, %s paid", a.text, d.engines[1].asked.Load(), d.purse.spent)
	}
}

// TestCutWhereItGoesOn: what our own limit cuts of what is gone on with is paid, and ends the answer.
func TestCutWhereItGoesOn(t *testing.T) {
	t.Parallel()
	d := newScribes(t, []scribe{{text: essay, piece: 3, dies: 4, how: ends}, {}, {text: essay, piece: 9, dies: -1}}, func(_ *proxy.Config, p *purse) {
		p.left = 2500 // for 2.5 s
		for i := range p.endpoints {
			p.endpoints[i].Price = p.endpoints[0].Price
		}
	})
	d.engines[1].is(func(w http.ResponseWriter, r *http.Request) { say(w, "zählt"); <-r.Context().Done() })
	a := d.chat(d.order() + `,"max_tokens":10`)
	if a.code() != "answer_broken" || d.engines[2].asked.Load() != 0 || d.purse.spent.IsZero() || !strings.Contains(a.text, "is charged") || !strings.Contains(a.text, "a max_tokens over 10 and") || a.Trailer.Get("X-Gpupay-Cost") == "0.00" {
		t.Errorf("%q; the third was asked %d times, %s paid", a.text, d.engines[2].asked.Load(), d.purse.spent)
	}
}
