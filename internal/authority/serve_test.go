package authority

import (
	"encoding/pem"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/internal/devchain"
)

// TestServe: the program asks a renter for money by https, after one command.
func TestServe(t *testing.T) {
	chain, err := devchain.Start(t.Context(), devchain.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { chain.Close() })
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", dir, "./cmd/gpupay")
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	l, port := listen(t)
	l.Close() // for the program
	a := Start(t, port, 3600, nil)
	trusted := filepath.Join(dir, "roots.pem")
	if err := os.WriteFile(trusted, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	program := exec.Command(filepath.Join(dir, "gpupay"), "serve", "--gpu", "sim", "--rpc", chain.URL, "--escrow", chain.Escrow.Hex(), "--token", chain.Token.Hex(), "--admin", "",
		"--listen", l.Addr().String(), "--domain", domain, "--acme-url", a.URL)
	program.Dir, program.Env = dir, append(os.Environ(), "GPUPAY_KEY="+hexutil.Encode(crypto.FromECDSA(chain.Keys[0])), "SSL_CERT_FILE="+trusted)
	log := new(said)
	program.Stdout, program.Stderr = log, log
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- program.Wait() }()
	for end := time.Now().Add(time.Minute); !strings.Contains(log.String(), "at https://"+domain); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) || program.ProcessState != nil {
			t.Fatal(log)
		}
	}
	resp, err := client(l, a.Issuer).Get("https://" + domain + "/lease")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusPaymentRequired {
		t.Errorf("a renter is answered %s", resp.Status)
	}
	if err := program.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("%v\n%s", err, log)
	}
}
