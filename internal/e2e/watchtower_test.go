package e2e

import (
	"crypto/ecdsa"
	"fmt"
	"math"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/sdk/chain"
)

// freePort is where nobody listens yet, so that a watchtower comes back where it was.
func freePort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

func (s *site) watchtower(t *testing.T, key *ecdsa.PrivateKey, listen, db string, more ...string) *process {
	t.Helper()
	p := start(t, "tower", key, append([]string{"--listen", listen, "--admin", "127.0.0.1:0", "--rpc", s.chain.URL,
		"--escrow", s.chain.Escrow.Hex(), "--tokens", s.chain.Token.Hex() + "=0.50", "--db", db, "--patience", "5s", "--poll", "200ms"}, more...)...)
	p.saw("admin at")
	return p
}

// adminOf is where a program serves its operator.
func adminOf(p *process) string {
	_, after, _ := strings.Cut(p.output(), "admin at ")
	return strings.Fields(after)[0]
}

// metric reads one figure, NaN if there is none.
func metric(t *testing.T, admin, name string) float64 {
	t.Helper()
	for line := range strings.SplitSeq((&site{admin: admin}).get(t, "/metrics"), "\n") {
		var value float64
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			if _, err := fmt.Sscan(rest, &value); err == nil {
				return value
			}
		}
	}
	return math.NaN()
}

// channelOf reads the channel's id from what a renter printed.
func channelOf(t *testing.T, renter *process) common.Hash {
	t.Helper()
	_, after, ok := strings.Cut(renter.output(), "channel ")
	if !ok {
		t.Fatalf("the renter printed no channel:\n%s", renter.output())
	}
	return common.HexToHash(strings.Fields(after)[0])
}

func (s *site) view(t *testing.T, id common.Hash) channel.ChainView {
	t.Helper()
	escrow, err := chain.NewEscrow(t.Context(), s.chain.Backend, s.chain.Escrow)
	if err != nil {
		t.Fatal(err)
	}
	view, err := escrow.View(t.Context(), id, nil)
	if err != nil {
		t.Fatal(err)
	}
	return view
}

func (s *site) transactions(t *testing.T, key *ecdsa.PrivateKey) uint64 {
	t.Helper()
	n, err := s.chain.Backend.NonceAt(t.Context(), address(key), nil)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// The provider is killed and never comes back; its renter leaves, and the watchtower was down too, for most of the grace
// period. The provider has what was vouchered to it, the renter the rest, the watchtower nothing.
func TestProviderIsGoneAndTheWatchtowerSettles(t *testing.T) {
	s := newSite(t)
	renterKey, towerKey := s.chain.Keys[1], s.chain.Keys[2]
	s.chain.Mint(t, address(renterKey), 500_000_000)
	dir := t.TempDir()
	listen, towerDB, renterDB := freePort(t), filepath.Join(dir, "t.db"), filepath.Join(dir, "r.db")
	provider := s.provider(t, filepath.Join(dir, "p.db"), "--watchtowers", "http://"+listen, "--watchtower-every", "200ms")
	renter := s.renter(t, renterKey, renterDB, "--deposit", "300", "--gpus", "2", "--pay-every", "1s")
	renter.saw("access")
	s.waitAccepted(t, 2)
	provider.saw("does not have the newest vouchers") // the watchtower is not there yet; the lease goes on
	tower := s.watchtower(t, towerKey, listen, towerDB, "--payees", address(s.payee).Hex())
	s.waitAccepted(t, 4)
	renter.signal(syscall.SIGKILL)
	renter.exit()
	accepted := uint64(math.Round(metric(t, s.admin, "gpupay_accepted_tokens") * 1e6))
	if accepted == 0 {
		t.Fatal("nothing was vouchered")
	}
	tower.until(func() bool { return metric(t, adminOf(tower), `gpupay_tower_vouchers_total{outcome="accepted"}`) >= 1 }, "take a voucher")
	time.Sleep(3 * time.Second) // more than the pause after a failure
	provider.signal(syscall.SIGKILL)
	provider.exit()
	tower.signal(syscall.SIGKILL)
	tower.exit()

	leaving := s.renter(t, renterKey, renterDB, "--leave", "--poll", "200ms")
	id := channelOf(t, renter)
	leaving.until(func() bool { return s.view(t, id).CloseRequestedAt != 0 }, "request the close")
	s.chain.AdvanceTime(t, chaintest.Grace-time.Minute)
	began := time.Now()
	tower = s.watchtower(t, towerKey, listen, towerDB, "--payees", address(s.payee).Hex())
	tower.until(func() bool { v := s.view(t, id); return v.Settled.Uint64() == accepted }, "settle")
	t.Logf("settled %d base units %s after it was started, with under a minute of %s left", accepted, time.Since(began).Round(time.Millisecond), chaintest.Grace)
	s.chain.AdvanceTime(t, time.Minute)
	if code := leaving.exit(); code != 0 {
		t.Fatalf("leaving: exit %d", code)
	}
	escrow, payee := s.escrowed(t)
	if escrow != 0 || payee != accepted {
		t.Errorf("the escrow holds %d, the payee has %d of %d vouchered", escrow, payee, accepted)
	}
	if left := s.chain.Tokens(t, address(renterKey)); left != 500_000_000-accepted {
		t.Errorf("the renter has %d after paying %d", left, accepted)
	}
	if n, has := s.transactions(t, towerKey), s.chain.Tokens(t, address(towerKey)); n != 1 || has != 0 {
		t.Errorf("the watchtower sent %d transactions and has %d tokens", n, has)
	}
	if code := stop(tower); code != 0 {
		t.Errorf("watchtower: exit %d", code)
	}
}

// A renter without native coin but for one wei, too little for anything, leaves a provider that is gone through a
// watchtower, which is killed with the close request on its way and sends it once.
func TestRenterWithoutCoinLeavesThroughTheWatchtower(t *testing.T) {
	s := newSite(t)
	renterKey, towerKey := newKey(t), s.chain.Keys[2]
	s.chain.Mint(t, address(renterKey), 500_000_000)
	dir := t.TempDir()
	listen, towerDB, renterDB := freePort(t), filepath.Join(dir, "t.db"), filepath.Join(dir, "r.db")
	provider := s.provider(t, filepath.Join(dir, "p.db"))
	renter := s.renter(t, renterKey, renterDB, "--deposit", "300")
	renter.saw("access")
	provider.signal(syscall.SIGKILL)
	provider.exit()
	renter.signal(syscall.SIGKILL)
	renter.exit()
	id := channelOf(t, renter)
	settled := s.view(t, id).Settled

	s.chain.RPC(t, nil, "anvil_setBalance", address(renterKey), "0x1")
	s.chain.Automine(t, false)
	leaving := s.renter(t, renterKey, renterDB, "--leave", "--relay", "http://"+listen, "--poll", "200ms")
	leaving.saw("has not done it yet") // the watchtower is not there yet
	tower := s.watchtower(t, towerKey, listen, towerDB)
	tower.until(func() bool {
		n, err := s.chain.Backend.PendingNonceAt(t.Context(), address(towerKey))
		return err == nil && n == 1
	}, "send the close request")
	tower.signal(syscall.SIGKILL)
	tower.exit()
	tower = s.watchtower(t, towerKey, listen, towerDB)
	time.Sleep(time.Second) // it looks at its outbox
	s.chain.Mine(t, 1)
	s.chain.Automine(t, true)
	tower.until(func() bool { return s.view(t, id).CloseRequestedAt != 0 }, "request the close")
	time.Sleep(time.Second)
	if n := s.transactions(t, towerKey); n != 1 {
		t.Errorf("the close request took %d transactions", n)
	}
	s.chain.AdvanceTime(t, chaintest.Grace)
	if code := leaving.exit(); code != 0 {
		t.Fatalf("leaving: exit %d", code)
	}
	escrow, payee := s.escrowed(t)
	if escrow != 0 || payee != settled.Uint64() {
		t.Errorf("the escrow holds %d, the payee has %d", escrow, payee)
	}
	if left := s.chain.Tokens(t, address(renterKey)); left != 500_000_000-payee {
		t.Errorf("the renter has %d", left)
	}
	if coin, err := s.chain.Backend.BalanceAt(t.Context(), address(renterKey), nil); err != nil || !coin.IsUint64() || coin.Uint64() != 1 {
		t.Errorf("the renter has %v wei (%v): the test shows nothing", coin, err)
	}
	if n, has := s.transactions(t, towerKey), s.chain.Tokens(t, address(towerKey)); n != 2 || has != 0 {
		t.Errorf("the watchtower sent %d transactions, not a close request and a withdrawal, and has %d tokens", n, has)
	}
	if coin := metric(t, adminOf(tower), "gpupay_tower_gas_spent_ether"); !(coin > 0) {
		t.Errorf("the watchtower says that it spent %v ether", coin)
	}
}

// Every bad surrounding of the watchtower is one clear line and a non-zero exit.
func TestWatchtowerSaysWhatIsWrong(t *testing.T) {
	s := newSite(t)
	for name, row := range map[string]struct {
		args []string
		says string
	}{
		"no tokens":           {[]string{"--tokens", ""}, "--tokens ($GPUPAY_TOKENS) is empty"},
		"token without a sum": {[]string{"--tokens", s.chain.Token.Hex()}, "an amount"},
		"no contract":         {[]string{"--escrow", "0x0000000000000000000000000000000000000001"}, "no contract"},
		"unreachable":         {[]string{"--rpc", "http://127.0.0.1:1"}, "unreachable"},
		"bad payee":           {[]string{"--payees", "0x01"}, "40 hex digits"},
		"bad budget":          {[]string{"--relay-gas", "1"}, "two amounts"},
		"the payee's key":     {[]string{"--payees", address(s.payee).Hex()}, "key of its own"},
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, "tower", s.payee, append([]string{"--listen", "127.0.0.1:0", "--admin", "", "--rpc", s.chain.URL, "--escrow", s.chain.Escrow.Hex(),
				"--tokens", s.chain.Token.Hex() + "=1", "--db", filepath.Join(t.TempDir(), "t.db")}, row.args...)...)
			code := p.exit()
			lines := strings.Split(strings.TrimSpace(p.output()), "\n")
			if last := lines[len(lines)-1]; code == 0 || !strings.HasPrefix(last, "error: ") || !strings.Contains(last, row.says) {
				t.Errorf("exit %d, %q; want an error that says %q", code, last, row.says)
			}
		})
	}
}
