package proxy_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/proxy"
)

// TestCallerThatDoesNotRead: a caller that does not read pays what was reserved, and is waited for no longer than a moment after it.
func TestCallerThatDoesNotRead(t *testing.T) {
	t.Parallel()
	d := newDesk(t, []*engine{newEngine(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for r.Context().Err() == nil {
			if _, err := io.WriteString(w, chunk(strings.Repeat("a", 60<<10))); err != nil {
				return
			}
		}
	})}, func(_ *proxy.Config, p *purse) { p.left = 3000 }) // for three seconds
	conn, err := net.Dial("tcp", strings.TrimPrefix(d.site.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	body := `{"model":"m","stream":true,"messages":[],"max_tokens":1}`
	_, _ = fmt.Fprintf(conn, "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		d.purse.mu.Lock()
		done, spent := d.purse.done, d.purse.spent
		d.purse.mu.Unlock()
		if done == 1 && spent.BaseUnits() <= 3000 {
			return
		}
		if done == 1 || time.Now().After(end) {
			t.Fatalf("%d done, %s spent", done, spent)
		}
	}
}

// TestAnswerKeptOpen: a stream is over with its last event, and a provider that keeps it open is paid no longer.
func TestAnswerKeptOpen(t *testing.T) {
	t.Parallel()
	d := newDesk(t, []*engine{newEngine(t, func(w http.ResponseWriter, r *http.Request) {
		say(w, "Hello", " there")
		_, _ = io.WriteString(w, last)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})})
	a := d.chat(`,"stream":true,"max_tokens":100`)
	if a.code() != "" || !strings.Contains(a.text, "[DONE]") || a.err != nil || d.purse.spent.IsZero() || d.purse.spent.BaseUnits() > 1000 { // a second
		t.Errorf("%q %v: %s", a.text, a.err, d.purse.spent)
	}
}
