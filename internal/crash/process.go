package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/internal/fault"
)

// build makes gpupay with its fault points.
func build(t testing.TB, dir string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-tags", "faults", "-o", dir, "github.com/gpupay/gpupay/cmd/gpupay")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the programs: %v\n%s", err, out)
	}
}

// program is something to run again and again.
type program struct {
	path string // of gpupay
	verb string // its subcommand
	key  *ecdsa.PrivateKey
	log  string // file that outputs are appended to
	uid  int    // of the user that runs it, ours if zero
}

// spawner starts every program from one thread that stays: the kernel then ends
// them when the harness is ended, however that happens.
type spawner chan func()

func newSpawner(t testing.TB) spawner {
	s := make(spawner)
	go func() {
		lockThread()
		for start := range s {
			start()
		}
	}()
	t.Cleanup(func() { close(s) })
	return s
}

// process is one life of a program.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}

	mu  sync.Mutex
	out bytes.Buffer
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

func (s spawner) start(prog program, step string, args ...string) (*process, error) {
	p := &process{cmd: exec.Command(prog.path, append([]string{prog.verb}, args...)...), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), "GPUPAY_KEY="+hex.EncodeToString(crypto.FromECDSA(prog.key)), fault.Env+"="+step)
	p.cmd.Dir = filepath.Dir(prog.log)
	p.cmd.Stdout, p.cmd.Stderr = p, p
	dieWithUs(p.cmd, prog.uid)
	started := make(chan error)
	s <- func() { started <- p.cmd.Start() }
	if err := <-started; err != nil {
		return nil, err
	}
	go func() {
		_ = p.cmd.Wait() // ProcessState says how it ended
		p.keep(prog.log, step)
		close(p.done)
	}()
	return p, nil
}

// keep appends what the process said to a file, for who has to find out why.
func (p *process) keep(path, step string) {
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return
	}
	defer file.Close()
	fmt.Fprintf(file, "---- %s %s %s\n%s", time.Now().Format(time.TimeOnly), step, p.cmd.ProcessState, p.output())
}

// killed reports whether the process was killed, and not by its own decision.
func (p *process) killed() bool {
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// saw waits until the process said something, or ended.
func (p *process) saw(ctx context.Context, text string) error {
	for !strings.Contains(p.output(), text) {
		select {
		case <-p.done:
			return fmt.Errorf("it ended (%s): %s", p.cmd.ProcessState, p.output())
		case <-ctx.Done():
			return errors.Join(ctx.Err(), p.stop(syscall.SIGKILL))
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

func (p *process) stop(signal syscall.Signal) error {
	if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.done
	return nil
}
