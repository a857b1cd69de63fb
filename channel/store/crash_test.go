package store_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
)

// The child process is this test binary, told by the environment to be a payee
// that accepts vouchers as fast as it can and says so.
const crashFile = "GPUPAY_CRASH_STORE"

const crashChannels = 8

func TestMain(m *testing.M) {
	if path := os.Getenv(crashFile); path != "" {
		fmt.Fprintln(os.Stderr, acceptForEver(path))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

var crashDomain = channel.EscrowDomain(31337, common.Address{1})

func crashKey() *channel.Key {
	private, err := crypto.ToECDSA(bytes.Repeat([]byte{1}, 32))
	if err != nil {
		panic(err)
	}
	return channel.NewKey(private)
}

func crashTerms(n int) channel.Terms {
	return channel.Terms{ChainID: 31337, Escrow: common.Address{1}, Payer: crashKey().Address(),
		Payee: common.Address{3}, Token: common.Address{4}, Salt: common.BigToHash(uint256.NewInt(uint64(n)).ToBig())}
}

// acceptForEver is the child: on every channel it accepts the next voucher,
// charges for it, and only then acknowledges it on its standard output.
func acceptForEver(path string) error {
	ctx := context.Background()
	db, err := store.Open(ctx, path)
	if err != nil {
		return err
	}
	payee := &channel.Payee{Store: db.Payee(), Domain: crashDomain}
	failed := make(chan error)
	var out sync.Mutex
	for n := range crashChannels {
		go func() { failed <- acceptOn(ctx, payee, crashTerms(n), n, &out) }()
	}
	return <-failed
}

func acceptOn(ctx context.Context, payee *channel.Payee, terms channel.Terms, n int, out *sync.Mutex) error {
	s, err := payee.Register(ctx, terms, channel.ChainView{Deposit: channel.MaxAmount()})
	if err != nil {
		return err
	}
	for amount := s.Accepted.Uint64() + 1; ; amount++ {
		v, err := crashDomain.Sign(ctx, crashKey(), terms.ID(), *uint256.NewInt(amount))
		if err != nil {
			return err
		}
		r, err := payee.Accept(ctx, v)
		if err != nil || r.Outcome != channel.Accepted {
			return fmt.Errorf("%v: %w", r.Outcome, err)
		}
		if _, err := payee.Charge(ctx, terms.ID(), v.Cumulative); err != nil {
			return err
		}
		out.Lock()
		fmt.Printf("%d %d\n", n, amount)
		out.Unlock()
	}
}

// TestKilledPayeeKeepsWhatItAcknowledged kills a payee with SIGKILL at random
// moments and opens its store again: every acknowledged voucher is there, with
// the signature that settles it and the charge that was made for it.
func TestKilledPayeeKeepsWhatItAcknowledged(t *testing.T) {
	if testing.Short() {
		t.Skip("runs for seconds")
	}
	path := filepath.Join(t.TempDir(), "gpupay.db")
	acknowledged := make(map[int]uint64)
	total := 0
	const kills = 10
	for range kills {
		total += killOnce(t, path, acknowledged)
		checkKept(t, path, acknowledged)
	}
	if total == 0 {
		t.Error("no voucher was acknowledged: the test showed nothing")
	}
	t.Logf("%d kills, %d vouchers acknowledged, 0 lost", kills, total)
}

// killOnce runs the child, kills it after some acknowledgements and a moment,
// and returns how many there were.
func killOnce(t *testing.T, path string, acknowledged map[int]uint64) int {
	t.Helper()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), crashFile+"="+path)
	child.Stderr = os.Stderr
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(stdout)
	count := readAcks(t, lines, acknowledged, 1+rand.IntN(200))
	timer := time.AfterFunc(time.Duration(rand.IntN(20_000))*time.Microsecond, func() { child.Process.Kill() })
	defer timer.Stop()
	count += readAcks(t, lines, acknowledged, 1<<30) // what it had said when it died counts too
	child.Wait()                                     // killed
	return count
}

// readAcks reads up to limit acknowledgements; a line cut off by the kill is
// none.
func readAcks(t *testing.T, lines *bufio.Reader, acknowledged map[int]uint64, limit int) int {
	t.Helper()
	for count := range limit {
		line, err := lines.ReadString('\n')
		if err == io.EOF {
			return count
		}
		var n int
		var amount uint64
		if _, err := fmt.Sscanf(line, "%d %d\n", &n, &amount); err != nil {
			t.Fatalf("child said %q: %v", line, err)
		}
		acknowledged[n] = amount
	}
	return limit
}

func checkKept(t *testing.T, path string, acknowledged map[int]uint64) {
	t.Helper()
	db, err := store.Open(context.Background(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for n, amount := range acknowledged {
		s, err := db.Payee().Load(context.Background(), crashTerms(n).ID())
		if err != nil {
			t.Fatal(err)
		}
		if s.Accepted.LtUint64(amount) || s.Spent.LtUint64(amount) || s.Spent.Gt(&s.Accepted) {
			t.Errorf("channel %d: acknowledged %d, kept %s, charged %s", n, amount, s.Accepted.Dec(), s.Spent.Dec())
		}
		if err := crashDomain.Verify(s.Voucher(), s.Terms.Signer()); err != nil {
			t.Errorf("channel %d: what is kept does not settle: %v", n, err)
		}
	}
}
