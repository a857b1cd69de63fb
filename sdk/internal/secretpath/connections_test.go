package secretpath

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
)

// TestConnectionsAreKept: who asks eight things at once asks the next eight over the same connections.
func TestConnectionsAreKept(t *testing.T) {
	var made atomic.Int32
	var together sync.WaitGroup
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		together.Done()
		together.Wait() // all are asked at once
		io.WriteString(w, "{}")
	}))
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			made.Add(1)
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	endpoint, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &Transport{Endpoint: endpoint, Body: func(b io.ReadCloser) io.ReadCloser { return b }}}
	const atOnce = 8
	for range 2 {
		together.Add(atOnce)
		var asked sync.WaitGroup
		for range atOnce {
			asked.Go(func() {
				resp, err := client.Get(server.URL)
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				if _, err := io.Copy(io.Discard, resp.Body); err != nil {
					t.Error(err)
				}
			})
		}
		asked.Wait()
	}
	if n := made.Load(); n > atOnce {
		t.Errorf("%d connections were made for %d requests at once", n, atOnce)
	}
}
