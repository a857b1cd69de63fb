package leases

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
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// keyEnv is where the gateway's key is.
const keyEnv = "GPUPAY_KEY"

const clockTicks = 100 // a second, in /proc/*/stat, on every Linux that Go runs on

// build makes the gateway's program.
func build(ctx context.Context, dir string) (string, error) {
	path := filepath.Join(dir, "gateway")
	out, err := exec.CommandContext(ctx, "go", "build", "-o", path, "github.com/gpupay/gpupay/internal/bench/leases/gateway").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building the gateway: %w\n%s", err, out)
	}
	return path, nil
}

// process is a gateway that runs.
type process struct {
	started
	database string
	cmd      *exec.Cmd
	log      bytes.Buffer
}

// launch starts a gateway and returns when it serves.
func launch(ctx context.Context, program, key string, o options) (*process, error) {
	in, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	p := &process{database: o.Database, cmd: exec.CommandContext(ctx, program)}
	p.cmd.Stdin, p.cmd.Stderr = bytes.NewReader(in), &p.log
	p.cmd.Env = append(os.Environ(), keyEnv+"="+key)
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	if err := json.NewDecoder(out).Decode(&p.started); err != nil {
		_ = p.kill()
		return nil, fmt.Errorf("the gateway did not start: %w: %s", err, p.said())
	}
	return p, nil
}

// said is the end of what the gateway logged; after kill.
func (p *process) said() string {
	text := p.log.String()
	return text[max(0, len(text)-2000):]
}

// kill ends the gateway at once: what its last records would cost is not of interest, and it must stand that anyway.
func (p *process) kill() error {
	err := p.cmd.Process.Kill()
	_ = p.cmd.Wait() // says that it was killed
	return err
}

// memory is the gateway's resident set, bytes.
func (p *process) memory() (float64, error) {
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
	return 0, errors.New("the gateway has ended: " + p.said())
}

// processor is the time that the gateway has used, in the kernel too.
func (p *process) processor() (time.Duration, error) {
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

func (p *process) get(ctx context.Context, path string, read func(*http.Response) error) error {
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

func (p *process) lag(ctx context.Context) (r lagReport, err error) {
	err = p.get(ctx, "/lag", func(resp *http.Response) error { return json.NewDecoder(resp.Body).Decode(&r) })
	return r, err
}

// recorded is how many usage records are on disk.
func (p *process) recorded(ctx context.Context) (n int, err error) {
	db, err := sql.Open("sqlite3", "file:"+p.database+"?mode=ro&_busy_timeout=5000")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	err = db.QueryRowContext(ctx, `SELECT count(*) FROM records`).Scan(&n)
	return n, err
}
