package fleet

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/internal/chaintest"
)

// program is the provider program and nodeProgram the node's, built once.
var program, nodeProgram string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "gpupay-fleet-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	program, nodeProgram = filepath.Join(dir, "provider"), filepath.Join(dir, "node")
	build := exec.Command("go", "build", "-o", dir, "../../examples/provider", "../../examples/node")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building the programs: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// gateway is a provider process, and the next one at the same address when it
// was killed.
type gateway struct {
	t       *testing.T
	url     string
	command func() *exec.Cmd

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has ended
	out  safeBuffer
}

// safeBuffer is what a process printed, read while it prints.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// newGateway starts one of several gateways over a database, on one host with
// that many devices.
func newGateway(t *testing.T, c *chaintest.Chain, database string, devices int) *gateway {
	t.Helper()
	return supervise(t, func(address string) *exec.Cmd {
		return provider(c, address, database, "--gpu", fmt.Sprintf("sim:%d", devices), "--credit", "60s", "--record-every", "3s")
	})
}

// provider is the command of a gateway.
func provider(c *chaintest.Chain, address, database string, more ...string) *exec.Cmd {
	cmd := exec.Command(program, append([]string{"--listen", address, "--admin", "", "--rpc", c.URL,
		"--escrow", c.Escrow.Hex(), "--token", c.Token.Hex(), "--db", database, "--price", "3.60", "--min-deposit", "0.01", "--min-transfer", "0",
		"--takeover", "2s", "--settle-every", "2s", "--settle-age", "5s", "--log-level", "warn"}, more...)...)
	cmd.Env = append(os.Environ(), "GPUPAY_KEY="+hex.EncodeToString(crypto.FromECDSA(c.Keys[0])))
	return cmd
}

// supervise starts a program at an address of its own.
func supervise(t *testing.T, command func(address string) *exec.Cmd) *gateway {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String() // free, and kept for all its processes
	listener.Close()
	g := &gateway{t: t, url: "http://" + address}
	g.command = func() *exec.Cmd {
		cmd := command(address)
		cmd.Stdout, cmd.Stderr = &g.out, &g.out
		return cmd
	}
	g.start()
	t.Cleanup(func() {
		g.kill()
		if t.Failed() {
			text := g.out.String()
			t.Logf("%s printed, at the end:\n%s", g.url, text[max(0, len(text)-6000):])
		}
	})
	return g
}

// start runs the program, again where it ends by itself, as a supervisor does:
// it gives up where it finds no database at its start.
func (g *gateway) start() {
	g.mu.Lock()
	defer g.mu.Unlock()
	cmd, done := g.command(), make(chan struct{})
	if err := cmd.Start(); err != nil {
		g.t.Error(err)
		return
	}
	g.cmd, g.done = cmd, done
	go func() {
		_ = cmd.Wait()
		close(done)
		time.Sleep(200 * time.Millisecond)
		g.mu.Lock()
		alone := g.cmd == cmd
		g.mu.Unlock()
		if alone {
			g.start()
		}
	}()
}

// kill ends the process as a power cut would.
func (g *gateway) kill() {
	g.mu.Lock()
	cmd, done := g.cmd, g.done
	g.cmd = nil
	g.mu.Unlock()
	if cmd != nil {
		_ = cmd.Process.Kill()
		<-done
	}
}

// ready waits until it answers.
func (g *gateway) ready() {
	g.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if resp, err := http.Get(g.url + "/offer"); err == nil {
			resp.Body.Close()
			return
		}
	}
	g.t.Fatalf("%s does not answer; it printed:\n%s", g.url, g.out.String())
}

// fleet is all gateways; renters go round.
type fleet struct {
	gateways []*gateway
	turn     atomic.Uint64
}

func (f *fleet) next() *gateway { return f.gateways[f.turn.Add(1)%uint64(len(f.gateways))] }
