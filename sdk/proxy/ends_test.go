package proxy_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/proxy"
)

const stops = `data: {"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\n"

// writes answers with a text as it stands.
func writes(kind, text string) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", kind)
		_, _ = io.WriteString(w, text)
		_ = http.NewResponseController(w).Flush()
	}
}

const eventStream = "text/event-stream"

// prefills has every provider go on with text.
func prefills(_ *proxy.Config, p *purse) {
	for i := range p.endpoints {
		p.endpoints[i].Prefill = true
	}
}

// TestAnswerTooLarge: an answer that is longer than what is passed on is paid once, is asked for nowhere else, and its caller's client does not send it again.
func TestAnswerTooLarge(t *testing.T) {
	t.Parallel()
	event := strings.TrimSuffix(chunk(strings.Repeat("a", 8<<20)), "\n\n")
	for name, row := range map[string]struct {
		kind, text, members string
		status              int
		code                string
	}{
		"a document":    {"application/json", `{"choices":[],"x":"` + strings.Repeat("a", 32<<20) + `"}`, "", 422, "answer_too_large"},
		"a first event": {eventStream, event, `,"stream":true`, 422, "answer_too_large"},
		"a later event": {eventStream, chunk("Hello") + event, `,"stream":true`, 200, "answer_broken"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t, []*engine{newEngine(t, writes(row.kind, row.text)), newEngine(t, well)}, prefills)
			a := d.chat(row.members)
			if a.StatusCode != row.status || a.code() != row.code || a.Header.Get("X-Should-Retry") == "true" || strings.Contains(a.text, "Send the request again") || !strings.Contains(a.text, "is charged") ||
				d.engines[1].asked.Load() != 0 || d.purse.spent.IsZero() {
				t.Errorf("%d %s %.600s; the other was asked %d times, %s paid", a.StatusCode, a.Header.Get("X-Should-Retry"), a.text, d.engines[1].asked.Load(), d.purse.spent)
			}
		})
	}
}

// TestEndKeptOpen: an answer of which every choice has said its end is over a moment later, though its provider says no [DONE] and keeps it open.
func TestEndKeptOpen(t *testing.T) {
	t.Parallel()
	other := strings.ReplaceAll(stops, `"index":0`, `"index":1`)
	figures := "data: {\"id\":\"1\",\"choices\":[],\"usage\":{\"total_tokens\":9}}\n\n"
	for name, row := range map[string]struct{ path, members, text string }{
		"a chat":         {"/v1/chat/completions", `,"messages":[]`, chunk("Hello") + stops},
		"two answers":    {"/v1/chat/completions", `,"messages":[],"n":2`, chunk("Hello") + other + stops},
		"a completion":   {"/v1/completions", `,"prompt":"Hi"`, strings.Replace(stops, `"delta":{}`, `"text":"Hello"`, 1)},
		"with a grammar": {"/v1/chat/completions", `,"messages":[],"guided_regex":"a*"`, chunk("Hello") + stops},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t, []*engine{newEngine(t, func(w http.ResponseWriter, r *http.Request) {
				writes(eventStream, row.text)(w, r)
				time.Sleep(100 * time.Millisecond)
				writes(eventStream, figures)(w, r)
				<-r.Context().Done()
			})})
			a := d.post(row.path, `{"model":"m","stream":true,"max_tokens":100`+row.members+`}`)
			if a.code() != "" || a.err != nil || strings.Count(a.text, "[DONE]") != 1 || !strings.HasPrefix(a.text, row.text+figures) || d.purse.spent.IsZero() || d.purse.spent.BaseUnits() > 6000 { // six seconds
				t.Errorf("%q %v: %s", a.text, a.err, d.purse.spent)
			}
		})
	}
	d := newDesk(t, []*engine{newEngine(t, func(w http.ResponseWriter, r *http.Request) { // one of two has ended
		writes(eventStream, other)(w, r)
		time.Sleep(3 * time.Second)
		writes(eventStream, chunk("Hello")+last)(w, r)
	})})
	if a := d.chat(`,"stream":true,"n":2`); a.code() != "" || !strings.Contains(a.text, "Hello") {
		t.Errorf("%q", a.text)
	}
}

// TestBehindTheEnd: whatever comes behind the end of an answer, it is whole, paid once and asked for nowhere else.
func TestBehindTheEnd(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"an error": "data: {\"error\":{\"message\":\"x\"}}\n\n", "half of the figures": "data: {\"usa", "half an event": "data: {\"usa\n\n", "an event too long": "data: " + strings.Repeat("a", 9<<20),
	} {
		for _, members := range []string{"", `,"guided_regex":"a*"`} {
			t.Run(name+members, func(t *testing.T) {
				t.Parallel()
				d := newDesk(t, []*engine{newEngine(t, writes(eventStream, chunk("Hello")+stops+text)), newEngine(t, well)}, prefills)
				a := d.chat(`,"stream":true` + members)
				if a.code() != "" || a.err != nil || strings.Count(a.text, "Hello") != 1 || !strings.Contains(a.text, `"stop"`) || d.engines[1].asked.Load() != 0 || d.purse.spent.IsZero() {
					t.Errorf("%.300q %v: the other was asked %d times, %s paid", a.text, a.err, d.engines[1].asked.Load(), d.purse.spent)
				}
			})
		}
	}
}

// TestLinesAndMarks: however lines end, and with a byte order mark, all of the text is passed on, also by who goes on.
func TestLinesAndMarks(t *testing.T) {
	t.Parallel()
	text := chunk("lo") + chunk(" there") + last
	for name, row := range map[string]string{
		"a mark": "\xef\xbb\xbf" + text, "CR": strings.ReplaceAll(text, "\n", "\r"), "CRLF": strings.ReplaceAll(text, "\n", "\r\n"), "a mark and CR": "\xef\xbb\xbf" + strings.ReplaceAll(text, "\n", "\r"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			slow := func(w http.ResponseWriter, r *http.Request) {
				for i := range len(row) {
					writes(eventStream, row[i:i+1])(w, r)
				}
			}
			for _, serve := range []func(http.ResponseWriter, *http.Request){writes(eventStream, row), slow} {
				d := newDesk(t, []*engine{newEngine(t, broken), newEngine(t, serve)}, prefills)
				a := d.chat(`,"stream":true`)
				if got := a.said(); a.code() != "" || got != "Hello there" || strings.Count(a.text, "[DONE]") != 1 {
					t.Errorf("%q: %q", got, a.text)
				}
				d = newDesk(t, []*engine{newEngine(t, serve)})
				if a = d.chat(`,"stream":true`); a.said() != "lo there" || !strings.HasPrefix(a.text, "data: ") {
					t.Errorf("%q", a.text)
				}
			}
		})
	}
	d := newDesk(t, []*engine{newEngine(t, broken), newEngine(t, writes(eventStream, chunk("lo")+strings.TrimSuffix(chunk(" there"), "\n")+"data: [DONE]\n"))}, prefills)
	if a := d.chat(`,"stream":true`); a.code() != "answer_broken" {
		t.Errorf("what could not be passed on is lost unsaid: %q", a.text)
	}
}

// said is the text of a stream, as a client reads it that knows line feeds alone.
func (a answer) said() (all string) {
	for line := range strings.Lines(a.text) {
		var e struct {
			Choices []struct{ Delta struct{ Content string } }
		}
		if line, is := strings.CutPrefix(line, "data: "); is && json.Unmarshal([]byte(line), &e) == nil {
			for _, c := range e.Choices {
				all += c.Delta.Content
			}
		}
	}
	return all
}

// TestOddEventsGoOn: who goes on honestly is paid, and heard, whatever its events look like that say nothing.
func TestOddEventsGoOn(t *testing.T) {
	t.Parallel()
	text := "data: null\n\ndata: {}\n\n" + chunk("lo") + `data: {"id":"2","id":"2","choices":[{"index":0,"index":0,"delta":{"content":" there"},"finish_reason":null}]}` + "\n\n" +
		`data: {"id":"2","choices":[null]}` + "\n\n" + `data: {"id":"2","choices":null,"usage":null}` + "\n\n" +
		`data: {"id":"2","choices":[{"index":0,"delta":null,"finish_reason":"stop"}]}` + "\n\ndata:  [DONE] \n\n"
	d := newDesk(t, []*engine{newEngine(t, broken), newEngine(t, writes(eventStream, text))}, prefills)
	a := d.chat(`,"stream":true`)
	if a.code() != "" || a.said() != "Hello there" || !strings.Contains(a.text, `"delta":{},"finish_reason":"stop"`) || strings.Count(a.text, "[DONE]") != 1 || d.purse.failed != 0 || d.purse.spent.IsZero() {
		t.Errorf("%q, %d failed, %s paid", a.text, d.purse.failed, d.purse.spent)
	}
}

// TestWhiteSpaceAtTheJoint: text goes on where it broke off, whether the next one's template trims it or not.
func TestWhiteSpaceAtTheJoint(t *testing.T) {
	t.Parallel()
	const full = "One.\n\n \u00a0Two."
	for _, trims := range []bool{true, false} {
		for n := 1; n < len("One.\n\n \u00a0Two"); n++ {
			if full[:n] != strings.ToValidUTF8(full[:n], "") {
				continue
			}
			d := newDesk(t, []*engine{newEngine(t, func(w http.ResponseWriter, _ *http.Request) {
				say(w, full[:n])
				reset(w)
			}), newEngine(t, func(w http.ResponseWriter, r *http.Request) {
				var q asked
				_ = json.NewDecoder(r.Body).Decode(&q)
				from := q.Messages[len(q.Messages)-1].Content
				if trims {
					from = strings.TrimSpace(from)
				}
				for _, r := range strings.TrimPrefix(full, from) {
					say(w, string(r))
				}
				_, _ = io.WriteString(w, last)
			})}, prefills)
			if a := d.chat(`,"stream":true`); a.said() != full {
				t.Errorf("after %q, trimmed %t: %q", full[:n], trims, a.said())
			}
		}
	}
}

// TestWhoseTextItIs: text is gone on with by who fits the one that said it, whoever began the answer.
func TestWhoseTextItIs(t *testing.T) {
	t.Parallel()
	role := strings.Replace(chunk(""), `"content":""`, `"role":"assistant","content":""`, 1)
	for kind, goesOn := range map[string]bool{"fp8": false, "int4": true} {
		d := newDesk(t, []*engine{newEngine(t, func(w http.ResponseWriter, r *http.Request) { writes(eventStream, role)(w, r); reset(w) }), newEngine(t, broken),
			newEngine(t, writes(eventStream, chunk("lo")+last))}, prefills, func(_ *proxy.Config, p *purse) {
			p.endpoints[1].Quantization, p.endpoints[2].Quantization = "int4", kind
		})
		if a := d.chat(`,"stream":true`); (a.said() == "Hello") != goesOn || (a.code() == "") != goesOn || (d.engines[2].asked.Load() == 1) != goesOn {
			t.Errorf("%s: %q", kind, a.text)
		}
	}
}
