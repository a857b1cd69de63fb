package proxy_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/gpupay/gpupay/sdk/proxy"
)

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
