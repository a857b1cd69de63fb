package sessionscheme

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/coder/websocket"
)

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
