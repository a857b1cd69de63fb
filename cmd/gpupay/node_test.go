package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/node/nodekeys"
)

// TestNodeServesItsGateways: the program makes the certificates and its own metering key, serves who has the gateway's, and nobody
// else. It needs no other key.
func TestNodeServesItsGateways(t *testing.T) {
	ca := filepath.Join(t.TempDir(), "ca")
	if err := program(t.Context(), "--issue", "north,south", "--ca", ca); err != nil {
		t.Fatal(err)
	}
	if err := program(t.Context(), "--issue", "north", "--ca", ca); err == nil || !strings.Contains(err.Error(), "exists") {
		t.Errorf("north's key is made again: %v", err)
	}
	if err := program(t.Context(), "--issue", "east", "--ca", ca); err != nil {
		t.Errorf("a third node, later: %v", err)
	}
	address := free(t)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- program(ctx, "--name", "north", "--node-identity", filepath.Join(ca, "nodes", "north"), "--gpu", "sim:2", "--listen", address, "--admin", "",
			"--db", filepath.Join(t.TempDir(), "spool.db"), "--log-level", "error")
	}()
	gateway, err := nodekeys.ReadIdentity(filepath.Join(ca, "gateway"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(gateway.CA)
	who := &tls.Config{RootCAs: roots, ServerName: "north.node.gpupay.internal"}
	get := func() (*http.Response, error) {
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: who.Clone(), DisableKeepAlives: true}}
		return client.Get("https://" + address + "/status")
	}
	who.Certificates = []tls.Certificate{gateway.Certificate}
	var resp *http.Response
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if resp, err = get(); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("a gateway is answered %s", resp.Status)
	}
	who.Certificates = nil
	if resp, err := get(); err == nil {
		t.Errorf("a stranger is answered %s", resp.Status)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	made, err := os.Stat(filepath.Join(ca, "nodes", "north", "meter-key.pem"))
	if err != nil || made.Mode().Perm() != 0o600 {
		t.Errorf("its metering key is %v (%v)", made, err)
	}
}

// program runs this command.
func program(ctx context.Context, args ...string) error {
	return run(ctx, append([]string{"node"}, args...))
}

// TestKeyFromBefore: a node that is given the key which all nodes signed with signs leases from before with it, and has its own.
func TestKeyFromBefore(t *testing.T) {
	t.Setenv("GPUPAY_KEY", "4646464646464646464646464646464646464646464646464646464646464646")
	o, err := parseNode(t, []string{"--name", "north"})
	if err != nil {
		t.Fatal(err)
	}
	if past := o.config.PastKeys; len(past) != 1 || past[0].Address() != common.HexToAddress("0x9d8A62f656a8d1615C1294fd71e9CFb3E4855A4F") || o.config.MeterKey != nil {
		t.Errorf("past keys %v, its own %v", past, o.config.MeterKey)
	}
}

// TestFlagsThatCannotWork are refused with a line that says why.
func TestFlagsThatCannotWork(t *testing.T) {
	ca := filepath.Join(t.TempDir(), "ca")
	if err := program(t.Context(), "--issue", "north", "--ca", ca); err != nil {
		t.Fatal(err)
	}
	identity := filepath.Join(ca, "nodes", "north")
	for want, flags := range map[string][]string{
		"not a flag":            {"x"},
		"no such file":          {"--name", "north", "--gpu", "sim", "--node-identity", filepath.Join(ca, "nodes", "south")},
		"no name of a node":     {"--gpu", "sim", "--node-identity", identity},
		"not south.node.gpupay": {"--name", "south", "--gpu", "sim", "--node-identity", identity, "--db", filepath.Join(t.TempDir(), "spool.db")},
		"A is no name":          {"--issue", "A", "--ca", ca},
	} {
		if err := program(t.Context(), flags...); err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), `"`, ""), want) {
			t.Errorf("%v: %v, want %q", flags, err, want)
		}
	}
}

// free is an address that nobody listens on.
func free(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(nil)
	defer server.Close()
	return server.Listener.Addr().String()
}
