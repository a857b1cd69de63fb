// Package e2e runs gpupay as a user would: separate processes, a
// real chain (anvil), real HTTP, real files, and a renter that is killed.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/bindings/testtoken"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"
)

// binaries are built once for all tests of the package.
var binaries string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "gpupay-e2e-")
	if err != nil {
		panic(err)
	}
	binaries = dir
	build := exec.Command("go", "build", "-o", dir, "../../cmd/gpupay")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building gpupay: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// process is a running program and what it printed.
type process struct {
	*testing.T
	cmd  *exec.Cmd
	done chan error

	mu  sync.Mutex
	out bytes.Buffer
}

// start runs a subcommand.
func start(t *testing.T, name string, key *ecdsa.PrivateKey, args ...string) *process {
	t.Helper()
	p := &process{T: t, cmd: exec.Command(filepath.Join(binaries, "gpupay"), append([]string{name}, args...)...), done: make(chan error, 1)}
	p.cmd.Dir = t.TempDir()
	p.cmd.Env = append(os.Environ(), "GPUPAY_KEY="+hex.EncodeToString(crypto.FromECDSA(key)))
	read, write := io.Pipe()
	p.cmd.Stdout, p.cmd.Stderr = write, write
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		lines := bufio.NewScanner(read)
		for lines.Scan() {
			p.mu.Lock()
			fmt.Fprintln(&p.out, lines.Text())
			p.mu.Unlock()
		}
	}()
	go func() {
		err := p.cmd.Wait()
		write.Close()
		p.done <- err
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		if t.Failed() {
			t.Logf("%s printed:\n%s", name, p.output())
		}
	})
	return p
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

// saw waits until the program printed something.
func (p *process) saw(text string) {
	p.Helper()
	p.until(func() bool { return strings.Contains(p.output(), text) }, fmt.Sprintf("print %q", text))
}

func (p *process) until(ok func() bool, what string) {
	p.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			p.Fatalf("%s did not %s within 60 s; it printed:\n%s", filepath.Base(p.cmd.Path), what, p.output())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (p *process) signal(s os.Signal) {
	p.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.Fatal(err)
	}
}

// exit waits for the program to end and returns its exit status.
func (p *process) exit() int {
	p.Helper()
	select {
	case <-p.done:
		time.Sleep(50 * time.Millisecond) // the last lines are on their way
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(90 * time.Second):
		p.Fatalf("%s did not end; it printed:\n%s", filepath.Base(p.cmd.Path), p.output())
		return 0
	}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func address(key *ecdsa.PrivateKey) common.Address { return crypto.PubkeyToAddress(key.PublicKey) }

// site is a chain and the arguments that both programs need for it.
type site struct {
	chain *chaintest.Chain
	payee *ecdsa.PrivateKey
	url   string
	admin string
}

func newSite(t *testing.T) *site {
	c := chaintest.Anvil(t)
	return &site{chain: c, payee: c.Keys[0]}
}

func (s *site) provider(t *testing.T, db string, more ...string) *process {
	t.Helper()
	p := start(t, "serve", s.payee, append([]string{
		"--listen", or(strings.TrimPrefix(s.url, "http://"), "127.0.0.1:0"), "--admin", "127.0.0.1:0", "--gpu", "sim:2", "--rpc", s.chain.URL,
		"--escrow", s.chain.Escrow.Hex(), "--token", s.chain.Token.Hex(), "--db", db, "--price", "3600.00", "--min-deposit", "1",
		"--record-every", "1s", "--credit", "20s", "--settle-age", "1h"}, more...)...)
	p.saw("admin at")
	_, after, _ := strings.Cut(p.output(), " at ")
	s.url = strings.Fields(after)[0]
	if _, after, ok := strings.Cut(p.output(), "admin at "); ok {
		s.admin = strings.Fields(after)[0]
	}
	return p
}

func or(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

func (s *site) renter(t *testing.T, key *ecdsa.PrivateKey, db string, more ...string) *process {
	t.Helper()
	return start(t, "rent", key, append([]string{"--provider", s.url, "--rpc", s.chain.URL, "--token", s.chain.Token.Hex(), "--db", db,
		"--max-price", "3600", "--budget", "900", "--max-per-day", "900", "--max-per-provider", "900", "--pay-every", "2s"}, more...)...)
}

// escrowed is what the escrow holds and what the payee has, in base units.
func (s *site) escrowed(t *testing.T) (escrow, payee uint64) {
	t.Helper()
	return s.chain.Tokens(t, s.chain.Escrow), s.chain.Tokens(t, address(s.payee))
}

// The issue of money: opened gasless, paid, killed mid-lease, resumed, settled,
// closed; every base unit is where it should be. The provider is killed too.
func TestRenterAndProviderAreKilledAndTheLedgerAddsUp(t *testing.T) {
	s := newSite(t)
	key := newKey(t) // tokens, and no native coin at all
	const purse = 500_000_000
	s.chain.Mint(t, address(key), purse)
	providerDB, renterDB := filepath.Join(t.TempDir(), "provider.db"), filepath.Join(t.TempDir(), "renter.db")

	provider := s.provider(t, providerDB)
	renter := s.renter(t, key, renterDB, "--deposit", "300", "--gpus", "2")
	renter.saw("access")
	if escrow, _ := s.escrowed(t); escrow != 300_000_000 {
		t.Fatalf("the escrow holds %d", escrow)
	}
	s.waitAccepted(t, 1)
	renter.signal(syscall.SIGKILL)
	renter.exit()

	time.Sleep(time.Second) // the lease goes on without its renter
	provider.signal(syscall.SIGKILL)
	provider.exit()
	provider = s.provider(t, providerDB)
	provider.saw("lease started") // taken up again

	again := s.renter(t, key, renterDB)
	if code := again.exit(); code != 1 || !strings.Contains(again.output(), "--resume") {
		t.Fatalf("a second rental over an unfinished one: exit %d, %s", code, again.output())
	}
	renter = s.renter(t, key, renterDB, "--resume", "--minutes", "0.1")
	if code := renter.exit(); code != 0 {
		t.Fatalf("resumed renter: exit %d", code)
	}
	settled, refunded := closing(t, renter.output())
	escrow, payee := s.escrowed(t)
	if escrow != 0 || payee != settled || settled+refunded != 300_000_000 || settled == 0 {
		t.Errorf("the escrow holds %d, the payee has %d; settled %d and refunded %d of a deposit of 300000000", escrow, payee, settled, refunded)
	}
	if left := s.chain.Tokens(t, address(key)); left != purse-settled {
		t.Errorf("the renter has %d, of %d, after paying %d", left, purse, settled)
	}
	if code := stop(provider); code != 0 {
		t.Errorf("provider: exit %d", code)
	}
}

func stop(p *process) int {
	p.signal(os.Interrupt)
	return p.exit()
}

// waitAccepted waits until the provider has counted n vouchers.
func (s *site) waitAccepted(t *testing.T, n int) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for time.Now().Before(deadline) {
		for line := range strings.SplitSeq(s.get(t, "/metrics"), "\n") {
			var count float64
			if _, err := fmt.Sscanf(line, `gpupay_vouchers_total{outcome="accepted"} %g`, &count); err == nil && count >= float64(n) {
				return
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("no %d vouchers within 60 s", n)
}

func (s *site) get(t *testing.T, path string) string {
	t.Helper()
	resp, err := http.Get(s.admin + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %v %s", path, resp.Status, err, body)
	}
	return string(body)
}

// closing reads the renter's last line, in base units.
func closing(t *testing.T, out string) (settled, refunded uint64) {
	t.Helper()
	_, line, ok := strings.Cut(out, "closed: ")
	if !ok {
		t.Fatalf("the renter did not say how it closed:\n%s", out)
	}
	var deposited, owed, vouchered, gotSettled, gotRefunded string
	line = strings.ReplaceAll(strings.SplitN(line, "\n", 2)[0], ",", "")
	if _, err := fmt.Sscanf(line, "deposited %s owed %s vouchered %s settled %s refunded %s", &deposited, &owed, &vouchered, &gotSettled, &gotRefunded); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	if owed != vouchered || vouchered != gotSettled {
		t.Errorf("owed %s, vouchered %s, settled %s", owed, vouchered, gotSettled)
	}
	return base(t, gotSettled), base(t, gotRefunded)
}

func base(t *testing.T, units string) uint64 {
	t.Helper()
	whole, part, _ := strings.Cut(units, ".")
	var n uint64
	if _, err := fmt.Sscanf(whole+(part + "000000")[:6], "%d", &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// The allocator's commands get the lease's devices, and its access document
// reaches the renter; health and metrics answer.
func TestHooksRentOutAHostWithoutCode(t *testing.T) {
	s := newSite(t)
	key := newKey(t)
	s.chain.Mint(t, address(key), 500_000_000)
	dir := t.TempDir()
	hook := filepath.Join(dir, "hook.sh")
	script := fmt.Sprintf("#!/bin/sh\necho \"$1 $NVIDIA_VISIBLE_DEVICES $GPUPAY_LEASE\" >> %s/calls\n[ \"$1\" != allocate ] || echo '{\"ssh\":\"gpu.example:2222\"}'\n", dir)
	if err := os.WriteFile(hook, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	s.provider(t, filepath.Join(dir, "p.db"), "--credit", "5s", "--allocate", hook+" allocate", "--suspend", hook+" suspend", "--resume", hook+" resume", "--release", hook+" release")
	renter := s.renter(t, key, filepath.Join(dir, "r.db"), "--deposit", "300", "--pay-every", "1h")
	renter.saw(`{"ssh":"gpu.example:2222"}`)
	calls := func() string {
		raw, _ := os.ReadFile(filepath.Join(dir, "calls"))
		return string(raw)
	}
	renter.signal(syscall.SIGSTOP) // it pays no more
	renter.until(func() bool { return strings.Contains(calls(), "suspend ") }, "get its lease suspended")
	renter.signal(syscall.SIGCONT)
	renter.until(func() bool { return strings.Contains(calls(), "resume ") }, "get its lease resumed")
	if code := stop(renter); code != 0 {
		t.Fatalf("renter: exit %d", code)
	}
	lines := strings.Split(strings.TrimSpace(calls()), "\n")
	if first := strings.Fields(lines[0]); first[0] != "allocate" || first[1] != "SIM-GPU-0" || len(first[2]) != 66 {
		t.Errorf("first call: %v", first)
	}
	if last := strings.Fields(lines[len(lines)-1]); last[0] != "release" || last[2] != strings.Fields(lines[0])[2] {
		t.Errorf("last call: %v", last)
	}
	var health map[string]any
	if err := json.Unmarshal([]byte(s.get(t, "/healthz")), &health); err != nil || health["status"] != "ok" {
		t.Errorf("health is %v (%v)", health, err)
	}
	for _, name := range []string{"gpupay_gpu_seconds_total", "gpupay_spent_tokens", "gpupay_accepted_tokens", "gpupay_settled_tokens", "gpupay_at_risk_tokens", "gpupay_leases", "gpupay_unbilled_seconds_total", "gpupay_gas_spent_ether"} {
		if !strings.Contains(s.get(t, "/metrics"), name) {
			t.Errorf("no metric %s", name)
		}
	}
}

// Two programs of ours meet over x402: paid by the tick, refunded, and every base unit is where it should be.
func TestTicksOverX402(t *testing.T) {
	s := newSite(t)
	s.chain.PlaceBatchSettlement(t)
	key := newKey(t)
	const purse = 500_000_000
	s.chain.Mint(t, address(key), purse)
	provider := s.provider(t, filepath.Join(t.TempDir(), "p.db"), "--x402", "--x402-window", "1s", "--drain")
	renter := s.renter(t, key, filepath.Join(t.TempDir(), "r.db"), "--x402", "--deposit", "100", "--minutes", "0.05")
	if code := renter.exit(); code != 0 || !strings.Contains(renter.output(), "closed: got back") {
		t.Fatalf("renter: exit %d", code)
	}
	if code := stop(provider); code != 0 {
		t.Fatalf("provider: exit %d", code)
	}
	_, payee := s.escrowed(t)
	if held := s.chain.Tokens(t, channel.BatchSettlementEscrow); payee < 1_000_000 || held != 0 {
		t.Errorf("the payee has %d for at least a second, x402's contract holds %d", payee, held)
	}
	if left := s.chain.Tokens(t, address(key)); left != purse-payee {
		t.Errorf("the renter has %d, of %d, the payee %d", left, purse, payee)
	}
}

// Every bad surrounding is one clear line and a non-zero exit, from either
// program.
func TestBadSurroundingsAreOneClearLine(t *testing.T) {
	s := newSite(t)
	rich, poor := s.chain.Keys[1], newKey(t)
	s.chain.Mint(t, address(rich), 10_000_000)
	dir := t.TempDir()
	s.provider(t, filepath.Join(dir, "p.db"))
	plain := tokenWithoutAuthorizations(t, s.chain)
	s.chain.Transact(t, s.chain.Keys[9], plain, testtoken.NewTestToken().PackMint(address(poor), big.NewInt(10_000_000)))
	base := func(name string, more ...string) []string {
		return append([]string{"--rpc", s.chain.URL, "--escrow", s.chain.Escrow.Hex(), "--token", s.chain.Token.Hex(), "--db", filepath.Join(t.TempDir(), name+".db")}, more...)
	}
	serve := func(more ...string) []string {
		return base("p", append([]string{"--listen", "127.0.0.1:0", "--admin", "", "--gpu", "sim"}, more...)...)
	}
	rent := func(more ...string) []string {
		return base("r", append([]string{"--provider", s.url, "--max-price", "3600", "--budget", "900", "--max-per-day", "900", "--max-per-provider", "900"}, more...)...)
	}
	plainSite := *s
	plainSite.url = ""
	plainSite.provider(t, filepath.Join(dir, "plain.db"), "--token", plain.Hex())
	for _, row := range []struct {
		name, program string
		key           *ecdsa.PrivateKey
		args          []string
		says          string
	}{
		{"provider: RPC unreachable", "serve", rich, serve("--rpc", "http://127.0.0.1:1"), "unreachable"},
		{"renter: RPC unreachable", "rent", rich, rent("--rpc", "http://127.0.0.1:1"), "unreachable"},
		{"provider: wrong chain id", "serve", rich, serve("--chain-id", "1"), "wrong chain"},
		{"provider: no contract", "serve", rich, serve("--escrow", "0x0000000000000000000000000000000000000001"), "no contract"},
		{"provider: another contract", "serve", rich, serve("--escrow", s.chain.Token.Hex()), "not a channel escrow"},
		{"provider: no token", "serve", rich, serve("--token", "0x0000000000000000000000000000000000000001"), "no contract"},
		{"renter: no token", "rent", rich, rent("--token", "0x0000000000000000000000000000000000000001"), "no contract"},
		{"renter: escrow it does not trust", "rent", rich, rent("--escrow", "0x0000000000000000000000000000000000000001"), "0x0000000000000000000000000000000000000001"},
		{"provider: grace too short", "serve", rich, serve("--min-grace", "1h"), "grace period"},
		{"provider: no GPU", "serve", rich, serve("--gpu", "nvml"), "--gpu sim"},
		{"provider: unknown GPU source", "serve", rich, serve("--gpu", "abacus"), "abacus"},
		{"provider: price that is none", "serve", rich, serve("--price", "cheap"), "cheap"},
		{"provider: price below a base unit", "serve", rich, serve("--price", "0.0000001"), "0.0000001"},
		{"provider: address cut short", "serve", rich, serve("--escrow", "0x01"), "40 hex digits"},
		{"provider: unknown flag", "serve", rich, serve("--gold"), "gold"},
		{"provider: database in no folder", "serve", rich, serve("--db", "/nowhere/p.db"), "/nowhere/p.db"},
		{"renter: too little balance", "rent", rich, rent("--deposit", "500"), "too little"},
		{"renter: provider is not there", "rent", rich, rent("--provider", "http://127.0.0.1:1"), "127.0.0.1:1"},
		{"renter: too dear", "rent", rich, rent("--max-price", "1"), "above the cap"},
		{"renter: nothing to resume", "rent", rich, rent("--resume"), "no unfinished rental"},
		{"renter: no gas, and a token without authorizations", "rent", poor, rent("--provider", plainSite.url, "--token", plain.Hex(), "--deposit", "6"), "gas"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := start(t, row.program, row.key, row.args...)
			code := p.exit()
			lines := strings.Split(strings.TrimSpace(p.output()), "\n")
			last := lines[len(lines)-1]
			if code == 0 || !strings.HasPrefix(last, "error: ") || !strings.Contains(last, row.says) {
				t.Errorf("exit %d, %q; want an error that says %q", code, last, row.says)
			}
			if strings.Contains(p.output(), hex.EncodeToString(crypto.FromECDSA(row.key))) {
				t.Error("the key was printed")
			}
		})
	}
	t.Run("no key", func(t *testing.T) {
		cmd := exec.CommandContext(t.Context(), filepath.Join(binaries, "gpupay"), append([]string{"serve"}, serve()...)...)
		cmd.Env = []string{}
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "GPUPAY_KEY") {
			t.Errorf("%v: %s", err, out)
		}
	})
	t.Run("clock far from the chain's", func(t *testing.T) {
		s.chain.AdvanceTime(t, time.Hour)
		for program, args := range map[string][]string{"serve": serve(), "rent": rent()} {
			p := start(t, program, rich, args...)
			if code := p.exit(); code == 0 || !strings.Contains(p.output(), "clock") {
				t.Errorf("%s: exit %d, %s", program, code, p.output())
			}
		}
	})
}

// tokenWithoutAuthorizations is the test token with its ERC-3009 entry points
// cut out of the code.
func tokenWithoutAuthorizations(t *testing.T, c *chaintest.Chain) common.Address {
	t.Helper()
	code, err := c.Backend.CodeAt(context.Background(), c.Token, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, selector := range []string{"88b7ab63", "ef55bec6"} { // receiveWithAuthorization, both forms
		old := common.FromHex(selector)
		if !bytes.Contains(code, old) {
			t.Fatalf("selector %s is not in the token's code", selector)
		}
		code = bytes.ReplaceAll(code, old, []byte{0xff, 0xff, 0xff, 0xff})
	}
	at := common.HexToAddress("0x00000000000000000000000000000000000000ee")
	c.RPC(t, nil, "anvil_setCode", at, hexutil.Bytes(code))
	return at
}
