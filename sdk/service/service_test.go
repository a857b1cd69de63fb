package service

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/provider"
)

// listen serves a provider as the program does and returns its address.
func listen(t *testing.T) string {
	t.Helper()
	chain, err := devchain.Start(t.Context(), devchain.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { chain.Close() })
	provider, err := provider.New(t.Context(), provider.Config{
		RPC: chain.URL, Escrow: chain.Escrow, Token: chain.Token, Key: channel.NewKey(chain.Keys[0]),
		Database: filepath.Join(t.TempDir(), "provider.db"), PricePerGPUHour: "2.50", Source: sim.New(1, sim.Options{}),
		Chain: provider.Chain{ClockTolerance: 24 * time.Hour},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { provider.Close() })
	return serveOn(t, NewServer(provider))
}

func serveOn(t *testing.T, s *http.Server) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(listener)
	t.Cleanup(func() { s.Close() })
	return listener.Addr().String()
}

// slow sends a request a byte at a time, for ever, and returns what came back
// and after how long the server had enough of it.
func slow(t *testing.T, address, head string, drip []byte) (answer string, held time.Duration) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Error(err)
		return "", 0
	}
	defer conn.Close()
	began := time.Now()
	if _, err := io.WriteString(conn, head); err != nil {
		t.Error(err)
	}
	over := make(chan struct{})
	defer close(over)
	go func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(500 * time.Millisecond):
				_, _ = conn.Write(drip)
			}
		}
	}()
	_ = conn.SetReadDeadline(began.Add(time.Minute))
	all, err := io.ReadAll(conn)
	if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
		t.Errorf("the server held a slow connection for %s", time.Since(began))
	}
	return string(all), time.Since(began)
}

// Hundreds of connections that send a byte now and then are cut off in time,
// and a renter is served meanwhile.
func TestSlowLoris(t *testing.T) {
	t.Parallel()
	address := listen(t)
	before := runtime.NumGoroutine()
	var wg sync.WaitGroup
	var longest time.Duration
	var mu sync.Mutex
	for n := range 300 {
		wg.Go(func() {
			var answer string
			var held time.Duration
			switch n % 3 {
			case 0: // never ends its header
				_, held = slow(t, address, "GET /lease HTTP/1.1\r\nHost: x\r\nX-Slow: ", []byte("a"))
			case 1: // never ends its body
				answer, held = slow(t, address, "POST /lease HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n", []byte("a"))
			case 2: // nor its chunks
				answer, held = slow(t, address, "POST /lease HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", []byte("1\r\na\r\n"))
			}
			if n%3 != 0 && !strings.HasPrefix(answer, "HTTP/1.1 400 ") {
				t.Errorf("a slow body got %.60q", answer)
			}
			mu.Lock()
			defer mu.Unlock()
			longest = max(longest, held)
		})
	}
	time.Sleep(2 * time.Second) // all of them hang
	began := time.Now()
	resp, err := http.Get("http://" + address + "/lease")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusPaymentRequired || time.Since(began) > 8*time.Second {
		t.Errorf("meanwhile a renter got %s after %s", resp.Status, time.Since(began))
	}
	wg.Wait()
	t.Logf("300 slow connections: the last was cut off after %s", longest.Round(time.Millisecond))
	http.DefaultClient.CloseIdleConnections()
	for try := 0; runtime.NumGoroutine() > before+50; try++ {
		if try == 50 {
			t.Fatalf("%d goroutines are left, there were %d", runtime.NumGoroutine(), before)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func TestHugeRequests(t *testing.T) {
	t.Parallel()
	address := listen(t)
	for _, row := range []struct {
		name, head string
		tail       int64
		want       string
	}{
		{"header", "GET /lease HTTP/1.1\r\nHost: x\r\nX-Huge: ", 1 << 30, "431 "},
		{"number of headers", "GET /lease HTTP/1.1\r\nHost: x" + strings.Repeat("\r\nA: b", 20_000) + "\r\n\r\n", 0, "431 "},
		{"credential", "GET /lease HTTP/1.1\r\nHost: x\r\nAuthorization: Payment " + strings.Repeat("A", 30_000) + "\r\n\r\n", 0, "400 "},
		{"body", "POST /lease HTTP/1.1\r\nHost: x\r\nContent-Length: 1073741824\r\n\r\n", 1 << 30, "400 "},
		{"chunk", "POST /lease HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n40000000\r\n", 1 << 30, "400 "},
		{"query", "GET /lease?gpus=" + strings.Repeat("1", 30_000) + " HTTP/1.1\r\nHost: x\r\n\r\n", 0, "400 "},
		{"path", "GET /offer/" + strings.Repeat("1", 30_000) + " HTTP/1.1\r\nHost: x\r\n\r\n", 0, "404 "},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			taken := make(chan int64, 1)
			go func() {
				_, _ = io.WriteString(conn, row.head)
				n, _ := io.CopyN(conn, zeros{}, row.tail)
				taken <- n
			}()
			_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
			line, err := bufio.NewReader(conn).ReadString('\n')
			if err != nil || !strings.HasPrefix(line, "HTTP/1.1 "+row.want) {
				t.Errorf("got %q, %v; want %s", line, err, row.want)
			}
			conn.Close()
			if n := <-taken; row.tail > 0 && n > 16<<20 { // what sockets hold
				t.Errorf("%d bytes were taken", n)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = '0'
	}
	return len(b), nil
}

// A stream lasts longer than a request may take to be sent.
func TestStreamsOutliveTheReadTimeout(t *testing.T) {
	t.Parallel()
	s := NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for n := range 20 {
			if r.Context().Err() != nil {
				return
			}
			fmt.Fprintln(w, n)
			_ = http.NewResponseController(w).Flush()
			time.Sleep(100 * time.Millisecond)
		}
	}))
	s.ReadTimeout, s.ReadHeaderTimeout = 300*time.Millisecond, 100*time.Millisecond
	url := "http://" + serveOn(t, s)
	resp, err := http.Get(url)
	for tries := 0; err != nil && tries < 20; tries++ { // on a busy machine the header may not come in time
		resp, err = http.Get(url)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	if lines := strings.Count(string(all), "\n"); err != nil || lines != 20 {
		t.Errorf("the stream ended after %d of 20 lines: %v", lines, err)
	}
}
