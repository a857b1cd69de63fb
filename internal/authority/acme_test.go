package authority

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/acme"
	"github.com/gpupay/gpupay/sdk/service"
)

const domain = "gpu.example.org"

// said is what is logged.
type said struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func listen(t *testing.T) (net.Listener, int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, l.Addr().(*net.TCPAddr).Port
}

// serve answers by a certificate until the test ends.
func serve(t *testing.T, l net.Listener, cert *acme.Certificate) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- service.Serve(ctx, service.Service{TLS: cert.TLS(), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%s by HTTP/%d", r.Host, r.ProtoMajor)
		})}, l, nil)
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// client finds every name at a listener.
func client(l net.Listener, roots *x509.CertPool) *http.Client {
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		ForceAttemptHTTP2: true, DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, l.Addr().String())
		},
	}}
}

// visit is what a renter gets, and the certificate that it is shown.
func visit(l net.Listener, roots *x509.CertPool) (string, *x509.Certificate, error) {
	resp, err := client(l, roots).Get("https://" + domain)
	if err != nil {
		return "", nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), resp.TLS.PeerCertificates[0], err
}

// TestObtain: a server that nothing was set up for is reached by https, and after a restart by the certificate that it has.
func TestObtain(t *testing.T) {
	l, port := listen(t)
	a := Start(t, port, 3600, nil)
	c := acme.Config{Domain: "GPU.example.org.", Dir: filepath.Join(t.TempDir(), "tls"), Authority: a.URL, Roots: a.Roots, Log: slog.New(slog.DiscardHandler)}
	for range 2 {
		cert, err := acme.Obtain(t.Context(), l, c)
		if err != nil {
			t.Fatal(err)
		}
		if left := time.Until(cert.Expires()); left < 50*time.Minute || left > time.Hour {
			t.Errorf("the certificate ends in %s", left)
		}
		cert.Close()
	}
	cert, err := acme.Obtain(t.Context(), l, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cert.Close)
	serve(t, l, cert)
	if body, _, err := visit(l, a.Issuer); err != nil || body != domain+" by HTTP/2" {
		t.Errorf("a renter gets %q, %v", body, err)
	}
	if n := a.Orders.Load(); n != 1 {
		t.Errorf("%d certificates were asked for in three starts", n)
	}
	err = filepath.WalkDir(c.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			err = fmt.Errorf("%s has mode %s: others can read what is under it", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestRenewal: a certificate is renewed while renters come. When it cannot be, that is said with the time that is left, renters notice
// nothing until then, and the next start gets a new one where the kept one has ended.
func TestRenewal(t *testing.T) {
	l, port := listen(t)
	a := Start(t, port, 15, nil)
	log := new(said)
	c := acme.Config{Domain: domain, Dir: t.TempDir(), Authority: a.URL, Roots: a.Roots, Log: slog.New(slog.NewTextHandler(log, nil)), Every: 500 * time.Millisecond}
	cert, err := acme.Obtain(t.Context(), l, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cert.Close)
	serve(t, l, cert)
	_, first, err := visit(l, a.Issuer)
	if err != nil {
		t.Fatal(err)
	}
	second := first
	for second.SerialNumber.Cmp(first.SerialNumber) == 0 {
		time.Sleep(200 * time.Millisecond)
		if _, second, err = visit(l, a.Issuer); err != nil {
			t.Fatalf("while it is renewed: %v", err)
		}
	}
	if !time.Now().Before(first.NotAfter) {
		t.Error("it was renewed when it had ended")
	}
	a.Stop()
	for !strings.Contains(log.String(), "could not be renewed") {
		if time.Sleep(100 * time.Millisecond); time.Now().After(second.NotAfter) {
			t.Fatalf("it has ended, and nothing was said of it:\n%s", log)
		}
	}
	if _, _, err := visit(l, a.Issuer); err != nil {
		t.Errorf("what cannot be renewed is valid still, and a renter gets %v", err)
	}
	if line := log.String(); !strings.Contains(line, "domain="+domain) || !strings.Contains(line, "left=") || !strings.Contains(line, "connection refused") {
		t.Errorf("that it could not be renewed is said so: %s", line)
	}
	time.Sleep(time.Until(second.NotAfter) + time.Second)
	cert.Close()
	next, port := listen(t)
	b := Start(t, port, 3600, nil)
	c.Authority, c.Roots = b.URL, b.Roots
	again, err := acme.Obtain(t.Context(), next, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(again.Close)
	serve(t, next, again)
	if left := time.Until(again.Expires()); left < time.Minute {
		t.Errorf("after a restart with a certificate that has ended it says that the new one ends in %s", left)
	}
	if _, third, err := visit(next, b.Issuer); err != nil || third.NotAfter.Before(time.Now().Add(time.Minute)) {
		t.Errorf("after a restart with a certificate that has ended a renter gets %v", err)
	}
}

// TestReasons: each thing that can stand in the way is one line that says what to do.
func TestReasons(t *testing.T) {
	l, port := listen(t)
	elsewhere := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(elsewhere.Close)
	closed, nobody := listen(t)
	closed.Close()
	day := func(w http.ResponseWriter) {
		w.Header().Set("Date", time.Now().Add(-26*time.Hour).UTC().Format(http.TimeFormat))
	}
	for name, c := range map[string]struct {
		domain, dir string
		port        int
		before      func(http.ResponseWriter)
		down        bool
		strangers   bool
		want        string
	}{
		"a name that leads nowhere":      {domain: "nowhere.example.org", port: port, want: "Could not resolve"},
		"a port that nobody listens on":  {domain: domain, port: nobody, want: "open port 443"},
		"a port of something else":       {domain: domain, port: elsewhere.Listener.Addr().(*net.TCPAddr).Port, want: "have it lead here"},
		"a name that is not given":       {domain: Blocked, port: port, want: "gives no certificate for this name"},
		"a clock that is wrong":          {domain: domain, port: port, before: day, want: "this host's clock says"},
		"an authority that is away":      {domain: domain, port: port, down: true, want: "connection refused"},
		"an authority that nobody knows": {domain: domain, port: port, strangers: true, want: "signed by unknown authority"},
		"no domain":                      {domain: "localhost", port: port, want: "is no domain"},
		"an address":                     {domain: "127.0.0.1", port: port, want: "is no domain"},
		"all of a domain":                {domain: "*.example.org", port: port, want: "is no domain"},
		"a folder that is a file":        {domain: domain, dir: "/dev/null", port: port, want: "/dev/null"},
	} {
		t.Run(name, func(t *testing.T) {
			a := Start(t, c.port, 3600, c.before)
			if c.dir == "" {
				c.dir = t.TempDir()
			}
			config := acme.Config{Domain: c.domain, Dir: c.dir, Authority: a.URL, Roots: a.Roots, Log: slog.New(slog.DiscardHandler)}
			if c.down {
				a.Stop()
			}
			if c.strangers {
				config.Roots = nil
			}
			cert, err := acme.Obtain(t.Context(), l, config)
			if err == nil {
				cert.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v, which does not say %q in one line", err, c.want)
			}
			if taken, failed := net.Listen("tcp", l.Addr().String()); failed == nil {
				taken.Close()
				t.Error("the listener was closed")
			}
		})
	}
}

// TestInterrupted: who waits for a certificate, as an operator does, gets its prompt back.
func TestInterrupted(t *testing.T) {
	l, port := listen(t)
	ctx, interrupt := context.WithCancel(t.Context())
	a := Start(t, port, 3600, func(http.ResponseWriter) { interrupt() })
	cert, err := acme.Obtain(ctx, l, acme.Config{Domain: domain, Dir: t.TempDir(), Authority: a.URL, Roots: a.Roots, Log: slog.New(slog.DiscardHandler)})
	if err == nil {
		cert.Close()
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("an interrupted start: %v", err)
	}
}
