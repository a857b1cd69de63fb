package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// rented returns the databases of both sides after a rental on a real chain.
func rented(t *testing.T, c *chaintest.Chain) (books, client, channelID, lease string) {
	t.Helper()
	books, client = filepath.Join(t.TempDir(), "provider.db"), filepath.Join(t.TempDir(), "renter.db")
	log := slog.New(slog.DiscardHandler)
	p, err := provider.New(t.Context(), provider.Config{
		RPC: c.URL, Escrow: c.Escrow, Token: c.Token, Key: channel.NewKey(c.Keys[0]), Database: books,
		PricePerGPUHour: "3.60", Deposits: provider.Deposits{Min: "0.01"}, Source: sim.New(1, sim.Options{}), Terms: provider.Terms{Credit: 2 * time.Second},
		Metering: provider.Metering{Tick: 50 * time.Millisecond, RecordEvery: 100 * time.Millisecond}, Chain: provider.Chain{Poll: 50 * time.Millisecond}, Log: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	go p.Run(context.WithoutCancel(t.Context()))
	server := httptest.NewServer(p)
	defer func() {
		server.Close()
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}()
	c.Mint(t, crypto.PubkeyToAddress(c.Keys[1].PublicKey), 10_000_000)
	r, err := renter.New(t.Context(), renter.Config{
		RPC: c.URL, Token: c.Token, Key: channel.NewKey(c.Keys[1]), Database: client, Chain: wallet.Chain{Poll: 50 * time.Millisecond}, Log: log,
		Caps: wallet.Caps{PricePerGPUHour: "4", PerLease: "1", PerDay: "1", PerPayee: "1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1", PayEvery: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ran := make(chan struct{})
	go func() { defer close(ran); _ = l.Run(ctx) }()
	for s := l.Snapshot(); ctx.Err() == nil && (s.Sequence < 3 || s.Paid.IsZero()); s = l.Snapshot() {
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	<-ran
	if _, err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	return books, client, l.ID().Hex(), l.Snapshot().Lease.Hex()
}

func verifies(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	app := new(cli.App)
	v := newVerify(app)
	v.out, v.export.out = &out, &out
	err := app.Run(t.Context(), append([]string{"gpupay", "verify"}, args...), "gpupay", "", "", v.command())
	return out.String(), err
}

func TestExportAndVerify(t *testing.T) {
	c := chaintest.Anvil(t)
	books, renter, channelID, lease := rented(t, c)
	dir := t.TempDir()
	payee, payer := filepath.Join(dir, "payee.json"), filepath.Join(dir, "payer.json")
	for _, args := range [][]string{
		{"export", "--db", books, "--lease", lease, "--out", payee},
		{"export", "--db", renter, "--channel", channelID, "--out", payer},
	} {
		if out, err := verifies(t, args...); err != nil {
			t.Fatalf("%v: %v %s", args, err, out)
		}
	}
	for _, args := range [][]string{{payee}, {payer}, {"--rpc", c.URL, payee, payer}} {
		out, err := verifies(t, args...)
		if err != nil || strings.Contains(out, "FAILED") || strings.Count(out, "ok ") < 10 {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
		lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
		if last := lines[len(lines)-1]; !strings.HasPrefix(last, fmt.Sprintf("verified: all %d checks hold (", len(lines)-1)) || strings.Contains(last, "offline") == (args[0] == "--rpc") {
			t.Errorf("%v: the verdict is %q", args, last)
		}
	}
	if out, err := verifies(t, "--rpc", chaintest.Anvil(t).URL, payer); err == nil || !strings.Contains(out, "FAILED  contract: ") || !strings.Contains(out, "started anew") {
		t.Errorf("on a chain that was started anew: %v\n%s", err, out)
	}
	other := badrpc.New(t, c.URL)
	other.On("eth_chainId", func(x *badrpc.Exchange) { x.Result = json.RawMessage(`"0x1092"`) })
	if out, err := verifies(t, "--rpc", other.URL, payer); cli.Status(err) != statusUnknown || !strings.Contains(fmt.Sprint(err), "serves 4242") || strings.Contains(out, "FAILED") {
		t.Errorf("on another chain: status %d, %v\n%s", cli.Status(err), err, out)
	}
	tampered := filepath.Join(dir, "tampered.json")
	raw, err := os.ReadFile(payee)
	if err != nil {
		t.Fatal(err)
	}
	raw = bytes.Replace(raw, []byte(`"nanos": "`), []byte(`"nanos": "1`), 1)
	if err := os.WriteFile(tampered, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := verifies(t, tampered); err == nil || !strings.Contains(out, "FAILED") {
		t.Errorf("a tampered bundle: %v\n%s", err, out)
	}
}

func TestEquivocationFails(t *testing.T) {
	c := chaintest.Anvil(t)
	books, _, channelID, _ := rented(t, c)
	b, err := provider.ExportFile(t.Context(), books, common.HexToHash(channelID))
	if err != nil {
		t.Fatal(err)
	}
	other := *b
	other.Leases = append([]audit.Lease(nil), b.Leases...)
	records := append(other.Leases[0].Records[:0:0], other.Leases[0].Records...)
	records[0].To++
	domain := metering.Domain(b.Terms.ChainID, common.Address(b.Terms.Escrow))
	if records[0].Signature, err = channel.NewKey(c.Keys[0]).Sign(t.Context(), records[0].Digest(domain)); err != nil {
		t.Fatal(err)
	}
	other.Leases[0].Records = records
	dir := t.TempDir()
	one, two, proof := filepath.Join(dir, "1.json"), filepath.Join(dir, "2.json"), filepath.Join(dir, "proof.json")
	for path, v := range map[string]any{one: b, two: &other} {
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := verifies(t, "--equivocation", proof, one, two); err == nil || !strings.Contains(out, "two different records") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := verifies(t, proof); err != nil || !strings.HasPrefix(out, "ok      equivocation: payee") {
		t.Errorf("the proof does not stand alone: %v\n%s", err, out)
	}
}

// hostile erases a line, writes a better one in colours, by both kinds of control characters, and turns the direction of reading.
const hostile = "\x1b[2K\x1b[1A\rok      x\nok      everything: this bundle holds\u009b8m\x7f\u202e\x07"

// steers reports what of a text a terminal would not just show.
func steers(text string) bool {
	return strings.ContainsFunc(text, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) })
}

// spoiled returns copies of a JSON document, in each of which all texts of one path have something hostile added, and one in
// which all texts there are have.
func spoiled(t *testing.T, document []byte) map[string][]byte {
	t.Helper()
	paths, all := map[string]bool{}, map[string][]byte{}
	var walk func(v any, path, only string) any
	walk = func(v any, path, only string) any {
		switch v := v.(type) {
		case map[string]any:
			for key := range v {
				v[key] = walk(v[key], path+"."+key, only)
			}
		case []any:
			for i := range v {
				v[i] = walk(v[i], path, only)
			}
		case string:
			if paths[path] = true; only == path || only == "all" && path != ".kind" {
				return v + hostile
			}
		}
		return v
	}
	copyWith := func(only string) []byte {
		var tree any
		dec := json.NewDecoder(bytes.NewReader(document))
		dec.UseNumber()
		if err := dec.Decode(&tree); err != nil {
			t.Fatal(err)
		}
		raw, err := json.Marshal(walk(tree, "", only))
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	all["all"] = copyWith("all")
	for path := range paths {
		all[path] = copyWith(path)
	}
	return all
}

// TestBundleSteersNoTerminal: whatever a bundle has in any of its texts, verify prints one line a check, which steers no terminal
// and can be told from the others, and what it exports says the same and is as plain.
func TestBundleSteersNoTerminal(t *testing.T) {
	books, _, channelID, _ := rented(t, chaintest.Anvil(t))
	b, err := provider.ExportFile(t.Context(), books, common.HexToHash(channelID))
	if err != nil {
		t.Fatal(err)
	}
	twice := b.Leases[0] // whose GPU is named, since it is billed twice
	twice.ID[0] ^= 1
	b.Leases = append(b.Leases, twice)
	b.Evidence = append(b.Evidence, audit.Evidence{Reason: "garbage", Document: "{}"})
	document, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	path, named := filepath.Join(t.TempDir(), "bundle.json"), false
	for name, raw := range spoiled(t, document) {
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := verifies(t, path)
		if err == nil {
			t.Errorf("%s: it holds:\n%s", name, out)
		}
		if steers(out) {
			t.Errorf("%s: it steers a terminal: %.2000q", name, out)
		}
		named = named || strings.Contains(out, "[2K")
		for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
			if line != "" && !strings.HasPrefix(line, "ok      ") && !strings.HasPrefix(line, "FAILED  ") && !strings.HasPrefix(line, "LOOK    ") || strings.HasPrefix(line, "ok      everything") {
				t.Errorf("%s: a line that no check is: %q", name, line)
			}
		}
	}
	if !named {
		t.Error("nothing of a bundle's texts was printed at all: the test tries nothing")
	}
	b.Evidence[0].Document = hostile
	if err := write(path, b, nil); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(path)
	if err != nil || steers(string(raw)) {
		t.Errorf("an export steers a terminal: %v", err)
	}
	if again, err := audit.Parse(raw); err != nil || again.Evidence[0].Document != hostile {
		t.Errorf("an export does not say the same: %v", err)
	}
}

func TestMistakes(t *testing.T) {
	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage.json")
	if err := os.WriteFile(garbage, []byte("not JSON"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		args []string
		says string
	}{
		{nil, "name a bundle"},
		{[]string{filepath.Join(dir, "none.json")}, "no such file"},
		{[]string{garbage}, "not JSON"},
		{[]string{"export"}, "--db"},
		{[]string{"exprt", "--db", "x"}, "--db"},
		{[]string{"export", "--db", garbage, "bundle.json"}, "bundle.json"},
		{[]string{garbage, "--rpc", "http://127.0.0.1:1"}, "unreachable"}, // not a check that passed without the chain
		{[]string{"export", "--db", garbage, "--channel", "0x12"}, "64 hex digits"},
		{[]string{"export", "--db", garbage, "--channel", "0x" + strings.Repeat("1", 64)}, "not a database"},
		{[]string{"export", "--db", filepath.Join(dir, "none.db"), "--channel", "0x" + strings.Repeat("1", 64)}, "no such file"},
	} {
		if out, err := verifies(t, row.args...); err == nil || !strings.Contains(err.Error(), row.says) || out != "" {
			t.Errorf("%v: %v\n%s", row.args, err, out)
		}
	}
}
