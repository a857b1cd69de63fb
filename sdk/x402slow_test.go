package sdk

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// TestClientThatDoesNotReadHoldsNobodyUp: a streamed route that serves one request at a time goes on to the next payer after one that
// takes the head of its answer and reads no more: when a write waited for it for too long, and when the time that it paid for is over.
func TestClientThatDoesNotReadHoldsNobodyUp(t *testing.T) {
	for name, c := range map[string]struct{ maxTime, writeTimeout time.Duration }{
		"a write waits for it": {time.Minute, time.Second},
		"its time is over":     {time.Second, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			failed := make(chan error, 1)
			first := true
			r, slow := meteredRig(t, MeteredRoute{MaxTime: c.maxTime, Streamed: true, writeTimeout: c.writeTimeout}, func(w http.ResponseWriter, _ *http.Request) {
				if first {
					first = false
					_, err := w.Write(make([]byte, 64<<20)) // more than sockets hold
					failed <- err
				}
				fmt.Fprint(w, "done")
			}, func(p *ProviderConfig) { p.X402.MaxReply = 1 << 20 })
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
	_, b := meteredRig(t, MeteredRoute{MaxTime: time.Minute, Streamed: true, writeTimeout: timeout}, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "one")
		time.Sleep(timeout * 5 / 4) // deadlines are of the wall clock
		_, _ = w.Write(make([]byte, 100<<10))
	})
	resp := b.pay(b.depositing(b.next(), 100_000))
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != 3+100<<10 {
		t.Errorf("%s: %d bytes, %v", resp.Status, n, err)
	}
}

// TestWebSocketThatIsNotRead: a message to a renter that does not read fails in time, and ends the connection.
func TestWebSocketThatIsNotRead(t *testing.T) {
	failed := make(chan error, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d := &duplex{w: w, r: r, timeout: time.Second, some: make(chan struct{}, 1), room: make(chan struct{}, 1)}
		err := d.begin()
		if err == nil {
			err = d.write(websocket.MessageText, make([]byte, 64<<20)) // more than sockets hold
			<-d.waits()                                                // nothing more is read from it
		}
		d.close(err)
		failed <- err
	}))
	defer server.Close()
	conn, _, err := websocket.Dial(t.Context(), server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer time.AfterFunc(15*time.Second, func() {
		t.Error("a message waits for a renter that does not read")
		_ = conn.CloseNow()
	}).Stop()
	if err := <-failed; err == nil {
		t.Error("64 MB went to a renter that did not read")
	}
	_ = conn.CloseNow()
}
