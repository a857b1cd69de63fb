package main

import (
	"context"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/sdk/sweep"
)

// TestPayoutIsSentOnce: a provider that is killed when a transfer to its cold address is on disk, is broadcast or is mined, moves that
// money once: what it moves is what came, and the reserve stays, though as much again would be there.
func TestPayoutIsSentOnce(t *testing.T) {
	for _, step := range []fault.Step{fault.TxStored, fault.TxBroadcast, fault.TxMined} {
		t.Run(string(step), func(t *testing.T) {
			t.Parallel()
			c, dir, spawn := chaintest.Anvil(t), t.TempDir(), newSpawner(t)
			serve := program{path: filepath.Join(programs, "gpupay"), verb: "serve", key: c.Keys[0], log: filepath.Join(dir, "provider.log")}
			cold := common.HexToAddress("0xc01d")
			args := []string{"--listen", freeAddress(t), "--admin", "", "--gpu", "sim", "--rpc", c.URL, "--escrow", c.Escrow.Hex(), "--token", c.Token.Hex(), "--db", filepath.Join(dir, "provider.db"),
				"--price", "3600.00", "--min-deposit", "1", "--poll", "100ms", "--payout", cold.Hex(), "--payout-reserve", "6", "--payout-every", "100ms"}
			c.Mint(t, addressOf(c.Keys[0]), 10_000_000)
			c.Automine(t, step == fault.TxMined) // or it would be mined before it is killed
			p, err := spawn.start(serve, string(fault.Of(string(sweep.Kind), step)), args...)
			if err != nil {
				t.Fatal(err)
			}
			select {
			case <-p.done:
			case <-time.After(time.Minute):
				t.Fatalf("it lives: %s", p.output())
			}
			if !p.killed() {
				t.Fatalf("it ended by itself: %s", p.output())
			}
			c.Automine(t, true)
			if p, err = spawn.start(serve, "", args...); err != nil {
				t.Fatal(err)
			}
			has := func() [2]uint64 { return [2]uint64{c.Tokens(t, addressOf(c.Keys[0])), c.Tokens(t, cold)} }
			moves := func(want [2]uint64) {
				t.Helper()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				for has() != want && ctx.Err() == nil {
					c.Mine(t, 1)
					time.Sleep(20 * time.Millisecond)
				}
				c.Mine(t, 40)
				time.Sleep(500 * time.Millisecond) // another one would be sent
				c.Mine(t, 40)
				if got := has(); got != want {
					t.Errorf("the provider has %d, the cold address %d, want %d: %s", got[0], got[1], want, p.output())
				}
			}
			moves([2]uint64{6_000_000, 4_000_000})
			c.Mint(t, addressOf(c.Keys[0]), 5_000_000)
			moves([2]uint64{6_000_000, 9_000_000})
			if err := p.stop(syscall.SIGTERM); err != nil {
				t.Error(err)
			}
		})
	}
}
