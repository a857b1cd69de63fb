package fleet

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/internal/fault"
)

// program is gpupay, built once.
var program string

// Main runs a package's tests with gpupay, and other programs beside it,
// built into a folder that goes with the tests. GOFLAGS counts: with -overlay in it
// the programs are those of other source files.
func Main(m *testing.M, others ...string) int {
	dir, err := os.MkdirTemp("", "gpupay-fleet-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "gpupay")
	build := exec.Command("go", append([]string{"build", "-tags", "faults", "-o", dir, "../../cmd/gpupay"}, others...)...)
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building the programs: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// Program is the path of a program that Main has built.
func Program(name string) string { return filepath.Join(filepath.Dir(program), name) }

// Process is a program, and the next one at the same address when it was killed.
type Process struct {
	t       *testing.T
	URL     string
	Address string
	command func() *exec.Cmd
	wall    *os.File // by how much its wall clock is ahead: see fault.Wall

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

// Provider is the command of a gateway.
func Provider(c *chaintest.Chain, address, database string, more ...string) *exec.Cmd {
	cmd := exec.Command(program, append([]string{"serve", "--listen", address, "--admin", "", "--rpc", c.URL,
		"--escrow", c.Escrow.Hex(), "--token", c.Token.Hex(), "--db", database, "--price", "3.60", "--min-deposit", "0.01", "--min-transfer", "0",
		"--takeover", "2s", "--settle-every", "2s", "--settle-age", "5s", "--log-level", "warn"}, more...)...)
	cmd.Env = append(os.Environ(), "GPUPAY_KEY="+hex.EncodeToString(crypto.FromECDSA(c.Keys[0])))
	return cmd
}

// Supervise starts a program at an address of its own.
func Supervise(t *testing.T, command func(address string) *exec.Cmd) *Process {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String() // free, and kept for all its processes
	listener.Close()
	p := &Process{t: t, Address: address, URL: "http://" + address}
	if p.wall, err = os.Create(filepath.Join(t.TempDir(), "wall")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.wall.Close() })
	p.SetWall(0)
	p.command = func() *exec.Cmd {
		cmd := command(address)
		if cmd.Env == nil {
			cmd.Env = os.Environ()
		}
		cmd.Env = append(cmd.Env, fault.Wall+"="+p.wall.Name())
		cmd.Stdout, cmd.Stderr = &p.out, &p.out
		die(cmd)
		return cmd
	}
	p.Start()
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			text := p.out.String()
			t.Logf("%s printed, at the end:\n%s", p.URL, text[max(0, len(text)-6000):])
		}
	})
	return p
}

// Start runs the program, again where it ends by itself, as a supervisor does:
// it gives up where it finds no database at its start.
func (p *Process) Start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	cmd, done := p.command(), make(chan struct{})
	if err := cmd.Start(); err != nil {
		p.t.Error(err)
		return
	}
	p.cmd, p.done = cmd, done
	go func() {
		_ = cmd.Wait()
		close(done)
		time.Sleep(200 * time.Millisecond)
		p.mu.Lock()
		alone := p.cmd == cmd
		p.mu.Unlock()
		if alone {
			p.Start()
		}
	}()
}

// Kill ends the process as a power cut would, also one that is stopped.
func (p *Process) Kill() {
	p.mu.Lock()
	cmd, done := p.cmd, p.done
	p.cmd = nil
	p.mu.Unlock()
	if cmd != nil {
		_ = cmd.Process.Kill()
		<-done
	}
}

// Signal sends the process a signal: SIGSTOP has it do nothing, with all its
// connections open, until SIGCONT.
func (p *Process) Signal(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		_ = p.cmd.Process.Signal(s)
	}
}

// SetWall sets the process's wall clock, and that of the next ones, ahead of the host's,
// or behind it. On other systems than linux/amd64 it does nothing.
func (p *Process) SetWall(ahead time.Duration) {
	if _, err := p.wall.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(ahead)), 0); err != nil {
		p.t.Error(err)
	}
}

// PID is the process's number, 0 while it is killed.
func (p *Process) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// Ready waits until it answers.
func (p *Process) Ready() {
	p.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if resp, err := http.Get(p.URL + "/offer"); err == nil {
			resp.Body.Close()
			return
		}
	}
	p.t.Fatalf("%s does not answer; it printed:\n%s", p.URL, p.out.String())
}
