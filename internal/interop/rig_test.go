// Package interop holds what we say on the wire and on the chain against programs that others wrote: viem signs, opens
// and pays as a renter would who never saw our code, and mppx reads and writes the headers of the Payment scheme. Both
// run under node, from what package.json pins.
package interop

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/settle"
)

// noNode is the environment variable that, set to 1, leaves these tests out. Without it they fail where node is missing:
// a check that silently does not happen looks like one that passed.
const noNode = "GPUPAY_NO_NODE"

// leastNode is the oldest node that has what the scripts use: Debian 12 ships it.
const leastNode = 18

// purse is what each renter has, in base units.
const purse = 1_000_000

// rig is a provider with a simulated GPU on a chain of its own, served over HTTP.
type rig struct {
	*testing.T
	chain    *chaintest.Chain
	escrow   *chain.Escrow
	provider *provider.Server
	payee    common.Address
	url      string
	settled  chan settle.Settlement
}

func newRig(t *testing.T) *rig {
	t.Helper()
	needNode(t)
	t.Parallel()
	r := &rig{T: t, chain: chaintest.Anvil(t), settled: make(chan settle.Settlement, 10)}
	key := channel.NewKey(r.chain.Keys[0])
	r.payee = key.Address()
	var err error
	if r.escrow, err = chain.NewEscrow(t.Context(), r.chain.Backend, r.chain.Escrow); err != nil {
		t.Fatal(err)
	}
	r.provider, err = provider.New(t.Context(), provider.Config{
		RPC: r.chain.URL, Escrow: r.chain.Escrow, Token: r.chain.Token, Key: key,
		Database: filepath.Join(t.TempDir(), "provider.db"), PricePerGPUHour: "3.60", Source: testclock.GPUs(1), Metering: provider.Metering{Clock: testclock.Process(),
			Tick: 50 * time.Millisecond, RecordEvery: 100 * time.Millisecond}, Deposits: provider.Deposits{Min: "0.01"}, Chain: provider.Chain{Poll: 50 * time.Millisecond},
		Settlement: settle.Policy{Interval: time.Hour}, OnSettled: func(s settle.Settlement) { r.settled <- s },
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	r.serve()
	return r
}

// serve runs the provider until the test ends.
func (r *rig) serve() {
	ctx, stop := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- r.provider.Run(ctx) }()
	server := httptest.NewServer(r.provider)
	r.url = server.URL
	r.Cleanup(func() {
		stop()
		if err := <-ran; err != nil {
			r.Errorf("Run: %v", err)
		}
		if err := r.provider.Close(); err != nil {
			r.Errorf("Close: %v", err)
		}
		server.CloseClientConnections()
		server.Close()
	})
}

// view is what the contract says about a channel.
func (r *rig) view(id common.Hash) channel.ChainView {
	r.Helper()
	v, err := r.escrow.View(r.Context(), id, nil)
	if err != nil {
		r.Fatal(err)
	}
	return v
}

// carries fails unless a transaction's calldata holds these bytes.
func (r *rig) carries(tx common.Hash, want []byte) {
	r.Helper()
	found, _, err := r.chain.Backend.TransactionByHash(r.Context(), tx)
	if err != nil {
		r.Fatal(err)
	}
	if !bytes.Contains(found.Data(), want) {
		r.Fatalf("transaction %s does not carry %x", tx, want)
	}
}

// needNode fails, or skips where that was asked for, without node and its packages.
func needNode(t *testing.T) {
	t.Helper()
	if os.Getenv(noNode) == "1" {
		t.Skip("interop: " + noNode + "=1: this test needs node and was left out on request")
	}
	version, err := exec.Command("node", "--version").Output()
	if err != nil {
		t.Fatalf("interop: node does not run (%v): install nodejs %d or newer, or set %s=1 to leave these tests out", err, leastNode, noNode)
	}
	major, _, _ := strings.Cut(strings.TrimPrefix(string(version), "v"), ".")
	if n, err := strconv.Atoi(major); err != nil || n < leastNode {
		t.Fatalf("interop: node is %s: install %d or newer, or set %s=1 to leave these tests out", bytes.TrimSpace(version), leastNode, noNode)
	}
	for _, name := range []string{"viem", "mppx"} {
		if _, err := os.Stat(filepath.Join("..", "..", "node_modules", name, "package.json")); err != nil {
			t.Fatalf("interop: the npm package %s is not installed: run `npm ci` first, or set %s=1 to leave these tests out", name, noNode)
		}
	}
}

// node runs a script with input as JSON and parses what it prints.
func node(t *testing.T, output, input any, script string, args ...string) {
	t.Helper()
	text, err := json.Marshal(input)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", append([]string{script}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(text), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("node %s %s: %v\n%s", script, strings.Join(args, " "), err, stderr.String())
	}
	if err := json.Unmarshal(stdout.Bytes(), output); err != nil {
		t.Fatalf("node %s printed %q: %v", script, stdout.String(), err)
	}
}
