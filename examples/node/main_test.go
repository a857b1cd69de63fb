package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/cli"
)

const key = "4646464646464646464646464646464646464646464646464646464646464646"

// TestNodeOverTLS: the program serves gateways over TLS, and tells a stranger
// nothing.
func TestNodeOverTLS(t *testing.T) {
	cert, private := certificate(t)
	t.Setenv("GPUPAY_KEY", key)
	t.Setenv(cli.NodeSecret, strings.Repeat("s", 40))
	address := free(t)
	args := os.Args
	t.Cleanup(func() { os.Args = args })
	os.Args = []string{"node", "--name", "north", "--gpu", "sim:2", "--listen", address, "--admin", "", "--db", filepath.Join(t.TempDir(), "spool.db"),
		"--tls-cert", cert, "--tls-key", private, "--log-level", "error"}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	raw, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(raw)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "example.com"}}}
	var resp *http.Response
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if resp, err = client.Get("https://" + address + "/status"); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a stranger is answered %s", resp.Status)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestFlagsThatCannotWork are refused with a line that says why.
func TestFlagsThatCannotWork(t *testing.T) {
	t.Setenv("GPUPAY_KEY", key)
	t.Setenv(cli.NodeSecret, "short")
	for want, flags := range map[string][]string{
		"go together": {"--tls-cert", "x"},
		"not a flag":  {"x"},
		"at least 32": {"--name", "north", "--gpu", "sim", "--db", filepath.Join(t.TempDir(), "spool.db")},
		"no name":     {"--gpu", "sim", "--db", filepath.Join(t.TempDir(), "spool.db")},
	} {
		args := os.Args
		os.Args = append([]string{"node"}, flags...)
		err := run(t.Context())
		os.Args = args
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", flags, err, want)
		}
	}
}

// certificate writes a certificate and its key for a test's server.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	pair := server.TLS.Certificates[0]
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, kind string, bytes []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: bytes}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("cert.pem", "CERTIFICATE", pair.Certificate[0]), write("key.pem", "PRIVATE KEY", der)
}

// free is an address that nobody listens on.
func free(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(nil)
	defer server.Close()
	return server.Listener.Addr().String()
}
