// Package programs runs gpupay as a newcomer does, and reads what they say when something is wrong.
package programs

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/accounts/keystore"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/internal/devchain"
)

// world is a chain, the built programs, and a provider that runs.
type world struct {
	*devchain.Chain
	bin, dir string
	provider string // URL
	env      []string
	secrets  []string // that no program may print
}

// built is the folder of the programs, as they were built before the tests.
var built string

func TestMain(m *testing.M) {
	code, err := withPrograms(m.Run)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(code)
}

func withPrograms(run func() int) (int, error) {
	root, err := chaintest.Root()
	if err != nil {
		return 0, err
	}
	if built, err = os.MkdirTemp("", "gpupay-programs-"); err != nil {
		return 0, err
	}
	defer os.RemoveAll(built)
	build := exec.Command("go", "build", "-o", built, "./cmd/gpupay")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("building the programs: %w\n%s", err, out)
	}
	return run(), nil
}

const passphrase = "correct horse battery"

func newWorld(t *testing.T) *world {
	t.Helper()
	w, err := &world{bin: built, dir: t.TempDir()}, error(nil)
	if w.Chain, err = devchain.Start(t.Context(), devchain.Options{Genesis: devchain.X402()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Chain.Close() })
	if err := w.Fund(t.Context(), crypto.PubkeyToAddress(w.Keys[1].PublicKey), nil, *uint256.NewInt(1e9)); err != nil {
		t.Fatal(err)
	}
	for _, k := range w.Keys {
		w.secrets = append(w.secrets, hex.EncodeToString(crypto.FromECDSA(k)))
	}
	w.secrets = append(w.secrets, passphrase, "hunter2")
	w.provider = "http://" + freeAddress(t)
	w.env = append(os.Environ(), "GPUPAY_RPC="+w.URL, "GPUPAY_ESCROW="+w.Escrow.Hex(), "GPUPAY_TOKEN="+w.Token.Hex(),
		"GPUPAY_KEY="+w.secrets[1], "GPUPAY_PROVIDER="+w.provider, "GPUPAY_ADMIN=")
	return w
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// program is one that was started; what it says can be waited for.
type program struct {
	cmd  *exec.Cmd
	mu   sync.Mutex
	said bytes.Buffer
	done chan struct{}
}

func (p *program) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said.Write(b)
}

func (p *program) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said.String()
}

// start runs a subcommand with more of an environment, which wins.
func (w *world) start(t *testing.T, line string, env ...string) *program {
	t.Helper()
	args := strings.Fields(line)
	p := &program{cmd: exec.Command(filepath.Join(w.bin, "gpupay"), args...), done: make(chan struct{})}
	p.cmd.Dir, p.cmd.Env = w.dir, slices.Concat(w.env, env)
	p.cmd.Stdout, p.cmd.Stderr = p, p
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { defer close(p.done); _ = p.cmd.Wait() }()
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); <-p.done })
	return p
}

// wait waits until the program says something or, of nothing, until it ends.
func (p *program) wait(t *testing.T, text string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute) // of a machine that hangs
	defer cancel()
	for text == "" || !strings.Contains(p.String(), text) {
		select {
		case <-p.done:
			if text != "" && !strings.Contains(p.String(), text) {
				t.Fatalf("%s ended and never said %q:\n%s", p.cmd, text, p)
			}
			return p.String()
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%s does not say %q:\n%s", p.cmd, text, p)
		}
	}
	return p.String()
}

func (p *program) interrupt(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Error(err)
	}
}

func (w *world) runProvider(t *testing.T, flags ...string) *program {
	t.Helper()
	p := w.start(t, "serve --gpu sim:2 --x402 --record-every 1s --poll 200ms "+strings.Join(flags, " "), "GPUPAY_KEY="+w.secrets[0], "GPUPAY_LISTEN="+strings.TrimPrefix(w.provider, "http://"))
	p.wait(t, "renting out 2 GPU(s)")
	return p
}

// checkError: the program failed with one line that says what is wanted, and no secret.
func (w *world) checkError(t *testing.T, p *program, wants ...string) {
	t.Helper()
	said := p.wait(t, "")
	_, line, _ := strings.Cut(said, "error: ")
	if status := p.cmd.ProcessState.ExitCode(); status != 1 && status != 2 && status != 64 || strings.Count("\n"+said, "\nerror: ") != 1 || strings.Count(line, "\n") != 1 {
		t.Errorf("exit status %d, and not one line of an error:\n%s", p.cmd.ProcessState.ExitCode(), said)
	}
	for _, want := range wants {
		if !strings.Contains(line, want) {
			t.Errorf("%q is not said:\n%s", want, said)
		}
	}
	for i, secret := range w.secrets {
		if strings.Contains(strings.ToLower(said), secret) {
			t.Errorf("secret %d is printed:\n%s", i, said)
		}
	}
}

func (w *world) write(t *testing.T, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestErrorsSayWhatToDo provokes what goes wrong in the first ten minutes. Each error says what happened, whose part failed, and what to do.
func TestErrorsSayWhatToDo(t *testing.T) {
	w := newWorld(t)
	w.runProvider(t)
	quiet := log.New(new(bytes.Buffer), "", 0)
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = quiet
	secure.StartTLS()
	defer secure.Close()
	bad := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }))
	defer bad.Close()
	account, err := keystore.NewKeyStore(t.TempDir(), keystore.LightScryptN, keystore.LightScryptP).ImportECDSA(w.Keys[1], "another")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(account.URL.Path, filepath.Join(w.dir, "key.json")); err != nil {
		t.Fatal(err)
	}
	w.write(t, "pass", []byte(passphrase+"\n"))
	plain, nobody := strings.TrimPrefix(w.provider, "http://"), freeAddress(t)
	poor := "GPUPAY_KEY=" + strings.Repeat("1", 64)
	for _, test := range []struct {
		line string
		env  string
		want []string
	}{
		{"rent --provider " + w.provider + "/nothing", "", []string{"404", "no gpupay provider answers there; check its URL"}},
		{"rent --provider " + w.URL, "", []string{"no gpupay provider answers there; check its URL"}},
		{"rent --provider " + bad.URL, "", []string{"502", "proxy"}},
		{"rent --provider https://" + plain, "", []string{"it speaks no TLS there; give its URL with http://"}},
		{"rent --provider http://" + secure.Listener.Addr().String(), "", []string{"give its URL with https://"}},
		{"rent --provider " + secure.URL, "", []string{"its certificate is not trusted here"}},
		{"rent --provider http://" + nobody, "", []string{"provider cannot be reached", "nothing listens there", "check host and port"}},
		{"rent --provider " + plain, "", []string{"not a provider's URL such as https://host/path"}},
		{"rent --x402 --provider http://" + nobody, "", []string{"provider cannot be reached", "nothing listens there"}},
		{"rent --x402 --provider https://" + plain, "", []string{"give its URL with http://"}},
		{"rent --rpc http://" + nobody, "", []string{"RPC endpoint unreachable", "nothing listens there"}},
		{"rent --rpc https://" + strings.TrimPrefix(w.URL, "http://"), "", []string{"RPC endpoint unreachable", "give its URL with http://"}},
		{"rent --rpc " + w.provider, "", []string{"RPC endpoint unreachable", "check the URL"}},
		{"rent --budget 0.1", "", []string{"--budget ($GPUPAY_BUDGET) leaves room for 0.10 TUSD", "take at least 0.416666 TUSD", "raise the cap", "--budget"}},
		{"rent --deposit 0.1", "", []string{"0.10 TUSD", "take at least 0.416666 TUSD", "--deposit"}},
		{"rent --x402 --budget 0.1", "", []string{"0.416666 TUSD", "room for 0.10 TUSD", "--budget"}},
		{"rent --x402 --deposit 0.1", "", []string{"0.10 TUSD", "at least 0.416666 TUSD", "--deposit"}},
		{"rent --max-price 1", "", []string{"2.50 TUSD per GPU-hour", "the cap is 1.00", "--max-price"}},
		{"rent --max-price 5,00", "", []string{"--max-price ($GPUPAY_MAX_PRICE): invalid amount"}},
		{"rent --deposit 1,5", "", []string{"--deposit ($GPUPAY_DEPOSIT): invalid amount"}},
		{"rent", "GPUPAY_TOKEN=", []string{"--token ($GPUPAY_TOKEN) is empty", ". ./devchain.env"}},
		{"rent --gpus 0", "", []string{"--gpus 0: a rental has one GPU at least"}},
		{"rent --gpus 5", "", []string{"5 wanted, 2 free; nothing was deposited"}},
		{"rent --minutes -1", "", []string{"--minutes -1 is negative"}},
		{"rent --resume", "", []string{"no unfinished rental in gpupay-renter.db"}},
		{"rent --resume --leave", "", []string{"give one of them"}},
		{"rent --token " + w.Escrow.Hex(), "", []string{"not a usable ERC-20 token", "check the token's address and the chain"}},
		{"rent --token 0x00000000000000000000000000000000000000aa", "", []string{"no contract at the address", "check the token's address and the chain"}},
		{"rent --escrow " + w.Token.Hex(), "", []string{"not a channel escrow", "check the escrow's address and the chain"}},
		{"rent --chain-id 5", "", []string{"the endpoint serves chain 1337, not 5"}},
		{"rent", poor, []string{"too little of the token", "0.00 TUSD", "the deposit is 0.416666 TUSD"}},
		{"rent", "GPUPAY_KEY=", []string{"GPUPAY_KEY is empty: set it", "--keystore"}},
		{"rent", "GPUPAY_KEY=" + w.secrets[1][:40], []string{"want 64 hex digits, have 40"}},
		{"rent --keystore none.json", "", []string{"--keystore needs --passphrase-file"}},
		{"rent --keystore none.json --passphrase-file none", "", []string{"passphrase file", "no such file"}},
		{"rent --keystore none.json --passphrase-file pass", "", []string{"no usable private key", "none.json", "no such file", "--keystore"}},
		{"rent --keystore pass --passphrase-file pass", "", []string{"keystore pass is not a Web3 Secret Storage file"}},
		{"rent --keystore key.json --passphrase-file pass", "", []string{"keystore key.json: wrong passphrase", "--passphrase-file"}},
		{"serve --gpu sim --db p2.db --listen " + plain, "", []string{"--listen", "address already in use", "end it, or listen elsewhere"}},
		{"serve --gpu sim --db p2.db --admin " + plain + " --listen " + nobody, "", []string{"--admin", "end it, or listen elsewhere"}},
		{"serve --gpu sim --db p2.db --credit 60", "", []string{"--credit", "such as 60s"}},
		{"serve --gpu sim --db p2.db --price 2.12345678", "", []string{"--price ($GPUPAY_PRICE)", "more than the token's 6 decimals"}},
		{"serve --gpu sim --db p2.db", "GPUPAY_ESCROW=", []string{"--escrow ($GPUPAY_ESCROW) is empty", ". ./devchain.env"}},
		{"serve --gpu sim --db p2.db --min-deposit 0.0000001 --listen " + nobody, "", []string{"--min-deposit ($GPUPAY_MIN_DEPOSIT)", "more than the token's 6 decimals"}},
		{"serve --gpu sim --db postgres://u:hunter2@" + nobody + "/gpupay", "", []string{"cannot be reached"}},
		{"serve --gpu sim --db postgres://u:1/hunter2@" + nobody + "/gpupay", "", []string{"%2F"}},
		{"serve --gpu sim --db postgresql+psycopg://u:hunter2@" + nobody + "/gpupay", "", []string{"neither the path of a file nor postgres://"}},
		{"serve --gpu sim --db p2.db --high-water postgres://u:hunter2@" + nobody + "/gpupay", "", []string{"it must be a file of its own"}},
		{"serve --gpu sim --db p2.db --watchtowers ftp://u:hunter2@" + nobody, "", []string{"URL of a watchtower"}},
		{"serve --gpu sim postgres://u:hunter2@" + nobody + "/gpupay", "", []string{"is not a flag"}},
		{"serve --nodes https://u:hunter2@" + nobody, "", []string{"--nodes", "and a URL"}},
		{"serve --gpu nvlm --db p2.db", "", []string{"--gpu", "is not nvml, sim"}},
		{"rent --provider http://u:hunter2@" + plain, "", []string{"not a provider's URL such as https://host/path"}},
		{"rent --list --db postgres://u:hunter2@" + nobody + "/gpupay", "", []string{"cannot be reached"}},
		{"rent --rpc http://u:hunter2@" + nobody + "/hunter2", "", []string{"RPC endpoint unreachable", "nothing listens there"}},
		{"verify export --db postgres://u:hunter2@" + nobody + "/gpupay", "", []string{"cannot be reached"}},
		{"verify none.json --rpc " + w.URL, "", []string{"none.json: no such file"}},
		{"verify pass --rpc http://" + nobody, "", []string{"RPC endpoint unreachable"}},
		{"verify export --db none.db", "", []string{"none.db", "no such file"}},
		{"deploy --mint 0x00000000000000000000000000000000000000aa", "", []string{"--test-token", "give both"}},
		{"deploy --grace 1h", poor, []string{"not enough native coin for gas", "send it native coin"}},
	} {
		t.Run(test.line, func(t *testing.T) { w.checkError(t, w.start(t, test.line, test.env), test.want...) })
	}
	t.Run("what the environment says", func(t *testing.T) {
		help := w.start(t, "serve --help", "GPUPAY_RPC=https://one/hunter2,https://u:hunter2@two", "GPUPAY_DB=postgres://u:hunter2@three/db",
			"GPUPAY_NODES=a=https://u:hunter2@four", "GPUPAY_WATCHTOWERS=https://u:hunter2@five/")
		if said := help.wait(t, ""); !strings.Contains(said, "--watchtowers") || strings.Contains(said, "hunter2") || strings.Contains(said, "https://one") {
			t.Errorf("--help shows:\n%s", said)
		}
	})
	t.Run("a clock that is off", func(t *testing.T) {
		if err := w.AdvanceTime(time.Hour); err != nil {
			t.Fatal(err)
		}
		w.checkError(t, w.start(t, "rent"), "this machine's clock is ", " behind that of chain 1337", "nothing is signed", "set this machine's clock")
	})
}

// TestFirstTickThatFails: a rental over x402 whose first tick fails behind its deposit has the deposit back or, where the
// provider gives none, says how to get it.
func TestFirstTickThatFails(t *testing.T) {
	w := newWorld(t)
	w.runProvider(t, "--x402-window 1s") // what a tick takes
	target, err := url.Parse(w.provider)
	if err != nil {
		t.Fatal(err)
	}
	forward := httputil.NewSingleHostReverseProxy(target)
	for name, refunds := range map[string]bool{"and is refunded": true, "and is not": false} {
		t.Run(name, func(t *testing.T) {
			deposited := false
			proxy := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
				paid := req.Header.Get("PAYMENT-SIGNATURE") != ""
				switch {
				case paid && !deposited:
					deposited = true
					forward.ServeHTTP(httptest.NewRecorder(), req)
					http.Error(rw, "no", http.StatusNotFound)
				case paid && !refunds:
					http.Error(rw, "no", http.StatusNotFound)
				default:
					forward.ServeHTTP(rw, req)
				}
			}))
			defer proxy.Close()
			renter := w.start(t, "rent --x402 --minutes 1 --poll 200ms --provider "+proxy.URL)
			want := []string{"no tick", "404"}
			if !refunds {
				want = append(want, "no refund", "--x402 --leave gets the deposit back without the provider")
			}
			w.checkError(t, renter, want...)
			if said := renter.String(); strings.Contains(said, "closed: got back ") != refunds {
				t.Errorf("refunded: %t, it says:\n%s", refunds, said)
			}
		})
	}
}

// TestResumedRentalKeepsItsTime: a renter that was killed goes on for what is left of the time that it rented for, or for
// another one that it says.
func TestResumedRentalKeepsItsTime(t *testing.T) {
	w := newWorld(t)
	w.runProvider(t)
	renter := w.start(t, "rent --minutes 30 --poll 200ms")
	renter.wait(t, "access ")
	if err := renter.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	renter.wait(t, "")
	resumed := w.start(t, "rent --resume --poll 200ms")
	resumed.wait(t, "of the 30m0s that were rented, ")
	if err := resumed.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	resumed.wait(t, "")
	another := w.start(t, "rent --resume --minutes 0.01 --poll 200ms")
	if said := another.wait(t, ""); !strings.Contains(said, "closed: deposited") || strings.Contains(said, "30m0s") {
		t.Errorf("it goes on for 0.01 minutes:\n%s", said)
	}
}

// TestInterruptedPrograms: an interrupt, and a provider that stops in the middle, leave nobody without a word on what is to be done.
func TestInterruptedPrograms(t *testing.T) {
	w := newWorld(t)
	provider := w.runProvider(t)
	provider.wait(t, fmt.Sprintf("chain 1337 by %s, token %s, confirmations 1; credit 1m0s of GPU time, settled within 1h0m0s; database gpupay-provider.db", w.URL, w.Token))
	renter := w.start(t, "rent --poll 200ms")
	renter.wait(t, "access ")
	renter.interrupt(t)
	renter.interrupt(t) // as a shell, go run or a supervisor passes the terminal's on
	if said := renter.wait(t, ""); !strings.Contains(said, "closed: deposited") || renter.cmd.ProcessState.ExitCode() != 0 {
		t.Errorf("an interrupted renter does not close:\n%s", said)
	}

	renter = w.start(t, "rent --poll 200ms --log-level error")
	renter.wait(t, "access ")
	provider.interrupt(t)
	if said := provider.wait(t, ""); !strings.Contains(said, "stopping: leases and vouchers are kept") || provider.cmd.ProcessState.ExitCode() != 0 {
		t.Errorf("a provider that stops:\n%s", said)
	}
	renter.interrupt(t)
	w.checkError(t, renter, "provider cannot be reached", "nothing listens there", "--resume asks again when the provider is back, --leave gets the deposit back without it")
	w.checkError(t, w.start(t, "serve --gpu nvlm", "GPUPAY_KEY="+w.secrets[0]), "--gpu", "is not nvml, sim") // also with a channel that is to be settled
	w.checkError(t, w.start(t, "rent"), "1 unfinished rental(s)", "--resume to go on", "--leave to get them back")

	leaving := w.start(t, "rent --leave --poll 200ms")
	leaving.wait(t, "the refund comes after the grace period")
	leaving.interrupt(t)
	w.checkError(t, leaving, "interrupted: ", "--list shows", "--leave gets the deposit back")
	w.runProvider(t)
	resumed := w.start(t, "rent --resume --poll 200ms")
	if said := resumed.wait(t, ""); !strings.Contains(said, "closed: deposited") || resumed.cmd.ProcessState.ExitCode() != 0 {
		t.Errorf("a rental that was left is not closed by its provider, who is back:\n%s", said)
	}
	if said := w.start(t, "rent --leave").wait(t, ""); !strings.Contains(said, "there is nothing to leave") {
		t.Errorf("--leave of nothing:\n%s", said)
	}
}

// TestDrainedProviderIsPaid: a provider that is stopped with --drain is paid for the final record, and closes its renters' channels,
// before its database closes.
func TestDrainedProviderIsPaid(t *testing.T) {
	w := newWorld(t)
	if err := w.Fund(t.Context(), crypto.PubkeyToAddress(w.Keys[2].PublicKey), nil, *uint256.NewInt(1e9)); err != nil {
		t.Fatal(err)
	}
	provider := w.runProvider(t, "--drain")
	renters := []*program{w.start(t, "rent --poll 200ms --db one.db"), w.start(t, "rent --poll 200ms --db two.db", "GPUPAY_KEY="+w.secrets[2])}
	for _, r := range renters {
		r.wait(t, "access ")
	}
	provider.interrupt(t)
	for _, r := range renters {
		if said := r.wait(t, ""); !strings.Contains(said, "closed: deposited") || r.cmd.ProcessState.ExitCode() != 0 {
			t.Errorf("a renter of a provider that drains:\n%s", said)
		}
	}
	if said := provider.wait(t, ""); strings.Contains(said, "is closed") || strings.Contains(said, "request failed") || provider.cmd.ProcessState.ExitCode() != 0 {
		t.Errorf("a provider that drains:\n%s", said)
	}
}
