package sidecar_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wire"
)

type tap func(*http.Request)

func (f tap) RoundTrip(r *http.Request) (*http.Response, error) {
	f(r)
	return http.DefaultTransport.RoundTrip(r)
}

// bearer is the token of a guest's lease.
func (g *guest) bearer() (token string) {
	g.Helper()
	kept := g.http
	g.http = &http.Client{Transport: g.rental.Transport(tap(func(r *http.Request) { token = strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ") }))}
	g.must(1)
	g.http = kept
	return token
}

// part sends the beginning of a request with a body of 32 MiB, and n bytes of that.
func (s *shop) part(token string, n int) net.Conn {
	conn, err := net.Dial("tcp", s.site.Listener.Addr().String())
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { _ = conn.Close() })
	_, _ = fmt.Fprintf(conn, "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n", token, 32<<20)
	for piece := bytes.Repeat([]byte(" "), 1<<20); n > 0; {
		wrote, err := conn.Write(piece[:min(n, len(piece))])
		if n -= wrote; err != nil {
			break
		}
	}
	return conn
}

// TestBodiesOfOneLeaseStopNoOther: a renter whose requests never arrive whole, and cost nothing, does not keep others out.
func TestBodiesOfOneLeaseStopNoOther(t *testing.T) {
	s := newShop(t)
	bad, good := s.guest(renter.Options{}), s.guest(renter.Options{})
	token := bad.bearer()
	var wait sync.WaitGroup
	for n := range 17 { // 16 whole but for a byte, and what is left: bodies count in pieces of 32 KiB
		wait.Add(1)
		go func() {
			defer wait.Done()
			if n == 16 {
				s.part(token, 17<<15-1)
				return
			}
			s.part(token, 32<<20-1)
		}()
	}
	wait.Wait()
	time.Sleep(time.Second)
	if status, text, _, err := good.post(t.Context(), ask{Millis: 10}); err != nil || status != http.StatusOK {
		t.Errorf("another renter is answered %d %.200s: %v", status, text, err)
	}
}

// TestRequestsInLineAreBounded: of one lease no more are read than can have a slot soon, however small; who is refused is not read.
func TestRequestsInLineAreBounded(t *testing.T) {
	s := newShop(t)
	bad, good := s.guest(renter.Options{}), s.guest(renter.Options{})
	token := bad.bearer()
	var refused int
	for range 3 + 16 + 5 {
		conn := s.part(token, 1)
		_ = conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		var answer [64]byte
		if n, _ := io.ReadAtLeast(conn, answer[:], 12); strings.HasPrefix(string(answer[:n]), "HTTP/1.1 429") {
			refused++
		}
	}
	if refused != 5 {
		t.Errorf("%d are refused", refused)
	}
	good.must(10)
}

// TestLastID: after the last number that there is, a request without one is the client's mistake.
func TestLastID(t *testing.T) {
	s := newShop(t)
	g := s.guest(renter.Options{})
	token := g.bearer()
	for _, c := range []struct {
		id   string
		want int
	}{{"18446744073709551615", http.StatusOK}, {"18446744073709551615", http.StatusBadRequest}, {"", http.StatusBadRequest}} {
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, s.site.URL+"/v1/chat/completions", strings.NewReader(`{"millis":1}`))
		r.Header.Set("Authorization", "Bearer "+token)
		r.Header.Set(wire.RequestHeader, c.id)
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if res.StatusCode != c.want {
			t.Errorf("%q: %d %s", c.id, res.StatusCode, text)
		}
	}
}
