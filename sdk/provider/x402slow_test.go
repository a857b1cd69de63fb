package provider

import (
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"
)

// TestClientThatDoesNotReadHoldsNobodyUp: a streamed route that serves one request at a time goes on to the next payer after one that
// takes the head of its answer and reads no more: when a write waited for it for too long, and when the time that it paid for is over.
func TestClientThatDoesNotReadHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ maxTime, writeTimeout time.Duration }{
		"a write waits for it": {time.Minute, time.Second},
		"its time is over":     {time.Second, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			failed := make(chan error, 1)
			first := true
			r, slow := meteredRig(t, Route{MaxTime: c.maxTime, Streamed: true, writeTimeout: c.writeTimeout}, func(w http.ResponseWriter, _ *http.Request) {
				if first {
					first = false
					_, err := w.Write(make([]byte, 64<<20)) // more than sockets hold
					failed <- err
				}
				fmt.Fprint(w, "done")
			}, func(p *Config) { p.X402.MaxReply = 1 << 20 })
			slow.pay(slow.depositing(slow.next(), 100_000)) // its body is closed when the test ends
			next := r.buyer("/infer")
			payment := next.depositing(next.next(), 100_000)
			defer time.AfterFunc(15*time.Second, func() {
				t.Error("the next payer waits for one that does not read")
				r.server.CloseClientConnections()
			}).Stop()
			text, err := io.ReadAll(next.pay(payment).Body)
			if err != nil || string(text) != "done" {
				t.Errorf("%q %v", text, err)
			}
			if err := <-failed; err == nil {
				t.Error("64 MB went to a client that did not read")
			}
		})
	}
}

// TestStreamedAnswerThatPauses: a streamed answer goes on after a pause that is longer than what one write may wait for its client.
func TestStreamedAnswerThatPauses(t *testing.T) {
	const timeout = 2 * time.Second
	_, b := meteredRig(t, Route{MaxTime: time.Minute, Streamed: true, writeTimeout: timeout}, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "one")
		time.Sleep(timeout * 5 / 4) // deadlines are of the wall clock
		_, _ = w.Write(make([]byte, 100<<10))
	})
	resp := b.pay(b.depositing(b.next(), 100_000))
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != 3+100<<10 {
		t.Errorf("%s: %d bytes, %v", resp.Status, n, err)
	}
}
