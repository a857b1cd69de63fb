package proxy_test

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/route"
)

// TestChat: an answer reaches the caller as the provider gave it, and says who gave it, for how much, and what is left.
func TestChat(t *testing.T) {
	t.Parallel()
	d := newDesk(t, []*engine{newEngine(t, well)})
	a := d.chat("")
	if a.StatusCode != http.StatusOK || a.text != document || a.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%d %s", a.StatusCode, a.text)
	}
	for name, want := range map[string]string{"X-Gpupay-Provider": d.engines[0].URL, "X-Gpupay-Attempts": "1"} {
		if got := a.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if cost, left := a.Header.Get("X-Gpupay-Cost"), a.Header.Get("X-Gpupay-Budget-Left"); !strings.HasPrefix(cost, "0.00") || cost == "0.00" || !strings.HasPrefix(left, "999.99") {
		t.Errorf("cost %q, left %q", cost, left)
	}
}

// TestStream: events go on at once, and the last line says the cost in a way that no client takes for an event.
func TestStream(t *testing.T) {
	t.Parallel()
	next := make(chan struct{})
	d := newDesk(t, []*engine{newEngine(t, func(w http.ResponseWriter, r *http.Request) {
		say(w, "one")
		select {
		case <-next:
		case <-r.Context().Done():
		}
		_, _ = io.WriteString(w, ": ping\n\n")
		say(w, "two")
		_, _ = io.WriteString(w, last)
	})})
	res, err := http.Post(d.site.URL+"/v1/chat/completions", "application/json", strings.NewReader(`{"model":"m","stream":true,"messages":[]}`))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewReader(res.Body)
	if first, err := lines.ReadString('\n'); err != nil || !strings.Contains(first, "one") {
		t.Fatalf("%q %v", first, err)
	}
	close(next) // the first event was here before the second was made
	rest, err := io.ReadAll(lines)
	text := string(rest)
	if err != nil || !strings.Contains(text, "two") || !strings.Contains(text, "data: [DONE]\n\n: X-Gpupay-Cost 0.0") || strings.Contains(text, "ping\n\n") {
		t.Errorf("%q %v", text, err)
	}
	if tail := text[strings.LastIndex(text, ": X-"):]; strings.HasSuffix(tail, "\n\n") {
		t.Errorf("a blank line stands behind a comment: %q", tail)
	}
	if cost := res.Trailer.Get("X-Gpupay-Cost"); !strings.HasPrefix(cost, "0.0") || cost == "0.00" {
		t.Errorf("the trailer says %q", cost)
	}
}

// TestBodyIsUntouched: what a provider gets is what the caller wrote, byte for byte, but for what is the proxy's; and no credential.
func TestBodyIsUntouched(t *testing.T) {
	t.Parallel()
	d := newDesk(t, []*engine{newEngine(t, well)})
	const tools = `"tools": [ {"type":"function","function":{"name":"f","parameters":{"z":1,"a":1.10,"big":12345678901234567890,"html":"<&>"}}} ]`
	a := d.post("/v1/chat/completions", `{"model":"m","provider":{"sort":"price"},`+tools+`,"models":["other"],"messages":[]}`, "Authorization", "Bearer sk-callers", "Cookie", "a=b", "OpenAI-Organization", "org")
	body, header := d.engines[0].got()
	if want := `{"model":"m",` + tools[:8] + tools[9:] + `,"messages":[]}`; a.StatusCode != http.StatusOK || body != want {
		t.Errorf("%d: a provider got %s\nwant %s", a.StatusCode, body, want)
	}
	for _, name := range []string{"Authorization", "Cookie", "OpenAI-Organization"} {
		if header.Get(name) != "" {
			t.Errorf("a provider got %s: %s", name, header.Get(name))
		}
	}
}

// TestAbort: a caller that leaves ends the provider's work at once, and its time until then is what is paid.
func TestAbort(t *testing.T) {
	t.Parallel()
	d := newDesk(t, []*engine{newEngine(t, func(w http.ResponseWriter, r *http.Request) {
		say(w, "one")
		<-r.Context().Done()
	})})
	ctx, leave := context.WithCancel(t.Context())
	r, _ := http.NewRequestWithContext(ctx, http.MethodPost, d.site.URL+"/v1/chat/completions", strings.NewReader(`{"model":"m","stream":true,"messages":[]}`))
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	leave()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		d.purse.mu.Lock()
		done, spent := d.purse.done, d.purse.spent
		d.purse.mu.Unlock()
		if d.engines[0].running.Load() == 0 && done == 1 {
			if spent.IsZero() || spent.Cmp(route.Base(5000)) > 0 {
				t.Errorf("%s was paid", spent)
			}
			return
		}
		if time.Now().After(end) {
			t.Fatal("the provider still works")
		}
	}
}

// TestReserved: while a request runs, what it can cost at the most is out of the budget; after it, what it cost.
func TestReserved(t *testing.T) {
	t.Parallel()
	var d *desk
	var least route.Nano
	d = newDesk(t, []*engine{newEngine(t, func(w http.ResponseWriter, r *http.Request) {
		least, _ = d.purse.Left("")
		well(w, r)
	})})
	before, _ := d.purse.Left("")
	d.chat("")
	after, _ := d.purse.Left("")
	if least.Add(route.Base(1000)).Cmp(before) > 0 || after.Add(route.Base(1000)).Cmp(before) < 0 { // a second costs 1000, and it may take longer
		t.Errorf("%s were left before, %s while it ran, %s after", before, least, after)
	}
}

// TestCommentsAreNotKept: comments before the first event are passed on with it, and those of a provider that sends nothing else for long fill no
// memory.
func TestCommentsAreNotKept(t *testing.T) {
	t.Parallel()
	d := newDesk(t, []*engine{newEngine(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, ": first\n\n"+strings.Repeat(":"+strings.Repeat("x", 1000)+"\n\n", 1000))
		say(w, "Hello")
		_, _ = io.WriteString(w, last)
	})})
	a := d.chat(`,"stream":true`)
	if n := strings.Index(a.text, "data:"); a.StatusCode != http.StatusOK || !strings.HasPrefix(a.text, ": first\n") || n < 0 || n > 5000 || !strings.Contains(a.text, "Hello") {
		t.Errorf("%d, %d bytes before the first event: %.300q", a.StatusCode, n, a.text)
	}
}

// TestLongEvent: an event that is too long ends the answer, and the error is an event of its own.
func TestLongEvent(t *testing.T) {
	t.Parallel()
	d := newDesk(t, []*engine{newEngine(t, func(w http.ResponseWriter, r *http.Request) {
		say(w, "Hello")
		_, _ = io.WriteString(w, `data: {"choices":[{"index":0,"delta":{"content":"`+strings.Repeat("a", 9<<20))
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})})
	if a := d.chat(`,"stream":true,"max_tokens":1000`); a.code() != "answer_broken" || !strings.Contains(a.text, "\n\ndata: {\"error\"") || !strings.Contains(a.text, "8 MiB") {
		t.Errorf("it ends %q", a.text[max(0, len(a.text)-500):])
	}
}

// TestNameOfNoEvent: an event without data gives its name to no other.
func TestNameOfNoEvent(t *testing.T) {
	t.Parallel()
	d := newDesk(t, []*engine{newEngine(t, func(w http.ResponseWriter, _ *http.Request) {
		say(w, "a")
		_, _ = io.WriteString(w, ": one\nevent: ping\n: two\n\n"+chunk("b")+last)
	})})
	if a := d.chat(`,"stream":true`); strings.Contains(a.text, "ping") || !strings.Contains(a.text, ": one\n: two\ndata: ") {
		t.Errorf("%q", a.text)
	}
}
