package gateway

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/gpupay/gpupay/sdk/wire"
)

// keyEnv is where the gateway's key is, and nowhere but in a gateway.
const keyEnv = "GPUPAY_BENCH_GATEWAY_KEY"

const clockTicks = 100 // a second, in /proc/*/stat, on every Linux that Go runs on

// Main is the first call of every program that starts gateways, which are processes of that program: in one of them it serves
// and ends the process; otherwise it returns.
func Main() {
	if os.Getenv(keyEnv) == "" {
		return
	}
	if err := serve(context.Background(), os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "gateway:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Process is a gateway that runs.
type Process struct {
	Started
	database string
	cmd      *exec.Cmd
	log      bytes.Buffer
}

// launch starts a gateway and returns when it serves.
func launch(ctx context.Context, key string, o Options) (*Process, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	in, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	p := &Process{database: o.Database, cmd: exec.CommandContext(ctx, program)}
	p.cmd.Stdin, p.cmd.Stderr = bytes.NewReader(in), &p.log
	p.cmd.Env = append(os.Environ(), keyEnv+"="+key)
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	if err := json.NewDecoder(out).Decode(&p.Started); err != nil {
		_ = p.Kill()
		return nil, fmt.Errorf("the gateway did not start: %w: %s", err, p.Said())
	}
	return p, nil
}

// Said is the end of what the gateway logged; after kill.
func (p *Process) Said() string {
	text := p.log.String()
	return text[max(0, len(text)-2000):]
}

// Kill ends the gateway at once: what its last records would cost is not of interest, and it must stand that anyway.
func (p *Process) Kill() error {
	err := p.cmd.Process.Kill()
	_ = p.cmd.Wait() // says that it was killed
	return err
}

// Memory is the gateway's resident set, bytes.
func (p *Process) Memory() (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			return kib * 1024, err
		}
	}
	return 0, errors.New("the gateway has ended: " + p.Said())
}

// Processor is the time that the gateway has used, in the kernel too.
func (p *Process) Processor() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat: %q", p.cmd.Process.Pid, text)
	}
	user, err := strconv.Atoi(fields[11])
	system, failed := strconv.Atoi(fields[12])
	return time.Duration(user+system) * time.Second / clockTicks, errors.Join(err, failed)
}

// Challenge is what the gateway wants for a lease. It is good for minutes and for any number of vouchers.
func (p *Process) Challenge(ctx context.Context) (challenge wire.Challenge, err error) {
	err = p.Get(ctx, "/lease", func(resp *http.Response) error {
		all, err := wire.ParseChallenges(resp.Header)
		if err == nil && len(all) == 0 {
			err = fmt.Errorf("the gateway answered %s without a challenge", resp.Status)
		}
		if err == nil {
			challenge = all[0]
		}
		return err
	})
	return challenge, err
}

// Get asks the gateway for a document.
func (p *Process) Get(ctx context.Context, path string, read func(*http.Response) error) error {
	req, err := http.NewRequestWithContext(ctx, "GET", p.URL+path, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return read(resp)
}

// Lag is how late devices were read since it was asked last.
func (p *Process) Lag(ctx context.Context) (r LagReport, err error) {
	err = p.Get(ctx, "/lag", func(resp *http.Response) error { return json.NewDecoder(resp.Body).Decode(&r) })
	return r, err
}

// Records is how many usage records are on disk.
func (p *Process) Records(ctx context.Context) (n int, err error) {
	db, err := sql.Open("sqlite3", "file:"+p.database+"?mode=ro&_busy_timeout=5000")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	err = db.QueryRowContext(ctx, `SELECT count(*) FROM records`).Scan(&n)
	return n, err
}
