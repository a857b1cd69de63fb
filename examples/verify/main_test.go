package main

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk"
)

// rented returns the databases of both sides after a rental on a real chain.
func rented(t *testing.T, c *chaintest.Chain) (provider, renter, channelID, lease string) {
	t.Helper()
	provider, renter = filepath.Join(t.TempDir(), "provider.db"), filepath.Join(t.TempDir(), "renter.db")
	log := slog.New(slog.DiscardHandler)
	p, err := sdk.NewProvider(t.Context(), sdk.ProviderConfig{
		RPC: c.URL, Escrow: c.Escrow, Token: c.Token, Key: channel.NewKey(c.Keys[0]), Database: provider,
		PricePerGPUHour: "3.60", MinDeposit: "0.01", Source: sim.New(1, sim.Options{}), Credit: 2 * time.Second,
		Tick: 50 * time.Millisecond, RecordEvery: 100 * time.Millisecond, Poll: 50 * time.Millisecond, Log: log,
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
	r, err := sdk.NewRenter(t.Context(), sdk.RenterConfig{
		RPC: c.URL, Token: c.Token, Key: channel.NewKey(c.Keys[1]), Database: renter, Poll: 50 * time.Millisecond, Log: log,
		Caps: sdk.Caps{PricePerGPUHour: "4", PerLease: "1", PerDay: "1", PerPayee: "1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l, err := r.Rent(t.Context(), server.URL, sdk.RentOptions{Deposit: "1", PayEvery: 100 * time.Millisecond})
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
	return provider, renter, l.ID().Hex(), l.Snapshot().Lease.Hex()
}

func verify(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := run(t.Context(), args, &out)
	return out.String(), err
}

func TestExportAndVerify(t *testing.T) {
	c := chaintest.Anvil(t)
	provider, renter, channelID, lease := rented(t, c)
	dir := t.TempDir()
	payee, payer := filepath.Join(dir, "payee.json"), filepath.Join(dir, "payer.json")
	for _, args := range [][]string{
		{"export", "--db", provider, "--lease", lease, "--out", payee},
		{"export", "--db", renter, "--channel", channelID, "--out", payer},
	} {
		if out, err := verify(t, args...); err != nil {
			t.Fatalf("%v: %v %s", args, err, out)
		}
	}
	for _, args := range [][]string{{payee}, {payer}, {"--rpc", c.URL, payee, payer}} {
		out, err := verify(t, args...)
		if err != nil || strings.Contains(out, "FAILED") || strings.Count(out, "ok ") < 10 {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
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
	if out, err := verify(t, tampered); err == nil || !strings.Contains(out, "FAILED") {
		t.Errorf("a tampered bundle: %v\n%s", err, out)
	}
}

func TestEquivocationFails(t *testing.T) {
	c := chaintest.Anvil(t)
	provider, _, channelID, _ := rented(t, c)
	b, err := sdk.ExportFile(t.Context(), provider, common.HexToHash(channelID))
	if err != nil {
		t.Fatal(err)
	}
	other := *b
	other.Leases = append([]sdk.BundleLease(nil), b.Leases...)
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
	if out, err := verify(t, "--equivocation", proof, one, two); err == nil || !strings.Contains(out, "two different records") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := verify(t, proof); err != nil || !strings.HasPrefix(out, "ok      equivocation: payee") {
		t.Errorf("the proof does not stand alone: %v\n%s", err, out)
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
		{[]string{garbage, "--rpc", "http://127.0.0.1:1"}, "unreachable"}, // not a check that passed without the chain
		{[]string{"export", "--db", garbage, "--channel", "0x12"}, "64 hex digits"},
		{[]string{"export", "--db", garbage, "--channel", "0x" + strings.Repeat("1", 64)}, "not a database"},
		{[]string{"export", "--db", filepath.Join(dir, "none.db"), "--channel", "0x" + strings.Repeat("1", 64)}, "no such file"},
	} {
		if out, err := verify(t, row.args...); err == nil || !strings.Contains(err.Error(), row.says) {
			t.Errorf("%v: %v\n%s", row.args, err, out)
		}
	}
}
