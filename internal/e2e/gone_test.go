package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gpupay/gpupay/internal/chaintest"
)

// TestProviderIsGoneForGood: a provider is killed and its disk is lost, under two rentals whose renter has lost its databases
// too. The renter finds both channels on the chain and leaves them at once, is killed while it waits, and has both deposits
// back after one grace period, for two transactions each.
func TestProviderIsGoneForGood(t *testing.T) {
	s := newSite(t)
	key := s.chain.Keys[1]
	const purse = 500_000_000
	s.chain.Mint(t, address(key), purse)
	dir, mine := filepath.Join(t.TempDir(), "provider"), filepath.Join(t.TempDir(), "renter")
	for _, d := range []string{dir, mine} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	provider := s.provider(t, filepath.Join(dir, "p.db"))
	rentals := []*process{s.renter(t, key, filepath.Join(mine, "one.db"), "--deposit", "300")}
	rentals[0].saw("access")
	rentals = append(rentals, s.renter(t, key, filepath.Join(mine, "two.db"), "--deposit", "100"))
	rentals[1].saw("access")
	s.waitAccepted(t, 2)
	for _, p := range append(rentals, provider) {
		p.signal(syscall.SIGKILL)
		p.exit()
	}
	if held, payee := s.escrowed(t); held != 400_000_000 || payee != 0 {
		t.Fatalf("the escrow holds %d, the payee has %d", held, payee)
	}
	for _, d := range []string{dir, mine} {
		if err := os.RemoveAll(d); err != nil {
			t.Fatal(err)
		}
	}

	db := filepath.Join(t.TempDir(), "again.db")
	found := s.renter(t, key, db, "--escrow", s.chain.Escrow.Hex(), "--recover", "0")
	if code := found.exit(); code != 0 || strings.Count(found.output(), "found channel ") != 2 {
		t.Fatalf("exit %d, it found:\n%s", code, found.output())
	}
	before := s.transactions(t, key)
	leaving := s.renter(t, key, db, "--leave", "--poll", "200ms")
	leaving.until(func() bool {
		for _, p := range rentals {
			if s.view(t, channelOf(t, p)).CloseRequestedAt == 0 {
				return false
			}
		}
		return true
	}, "request both closes")
	leaving.signal(syscall.SIGKILL)
	leaving.exit()
	leaving = s.renter(t, key, db, "--leave", "--poll", "200ms")
	leaving.until(func() bool { return strings.Count(leaving.output(), "leaving channel ") == 2 }, "go on with both")
	s.chain.AdvanceTime(t, chaintest.Grace)
	if code := leaving.exit(); code != 0 || strings.Count(leaving.output(), "closed: ") != 2 {
		t.Errorf("leaving: exit %d:\n%s", code, leaving.output())
	}
	held, payee := s.escrowed(t)
	if left := s.chain.Tokens(t, address(key)); left != purse || held != 0 || payee != 0 {
		t.Errorf("the renter has %d of %d, the escrow holds %d, the payee has %d", left, purse, held, payee)
	}
	if n := s.transactions(t, key) - before; n != 4 {
		t.Errorf("leaving two channels took %d transactions, want 4", n)
	}
}
