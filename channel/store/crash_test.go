package store_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
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
	"github.com/gpupay/gpupay/internal/pgtest"
)

// The child process is this test binary, told by the environment to be a payee
// that accepts vouchers as fast as it can, or a payer that signs them, and to say
// so.
const (
	crashFile = "GPUPAY_CRASH_STORE"
	crashRole = "GPUPAY_CRASH_ROLE"
)

const crashChannels = 8

func TestMain(m *testing.M) {
	if path := os.Getenv(crashFile); path != "" {
		fmt.Fprintln(os.Stderr, workForEver(path, roles[os.Getenv(crashRole)]))
		os.Exit(1)
	}
	if path := os.Getenv(lockFile); path != "" {
		fmt.Fprintln(os.Stderr, ownForEver(path))
		os.Exit(1)
	}
	os.Exit(pgtest.Main(m))
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

// role does one channel's work without an end, and calls said for every amount
// that it would tell the other side.
type role func(ctx context.Context, db *store.DB, terms channel.Terms, said func(amount uint64)) error

var roles = map[string]role{"payee": acceptForEver, "payer": payForEver}

// workForEver is the child.
func workForEver(path string, work role) error {
	ctx := context.Background()
	db, err := store.Open(ctx, path)
	if err != nil {
		return err
	}
	failed := make(chan error)
	var out sync.Mutex
	for n := range crashChannels {
		said := func(amount uint64) {
			out.Lock()
			defer out.Unlock()
			fmt.Printf("%d %d\n", n, amount)
		}
		go func() { failed <- work(ctx, db, crashTerms(n), said) }()
	}
	return <-failed
}

// acceptForEver accepts the next voucher, charges for it, and only then
// acknowledges it.
func acceptForEver(ctx context.Context, db *store.DB, terms channel.Terms, said func(uint64)) error {
	payee := &channel.Payee{Store: db.Payee(), Domain: crashDomain}
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
		said(amount)
	}
}

func newPayer(db *store.DB) *channel.Payer {
	caps := channel.Caps{PerChannel: channel.MaxAmount(), PerPayee: channel.MaxAmount(), PerDay: channel.MaxAmount()}
	return &channel.Payer{Store: db.Payer(), Domain: crashDomain, Signer: crashKey(), Caps: caps}
}

// payForEver first pays again what it was paying when it was killed.
func payForEver(ctx context.Context, db *store.DB, terms channel.Terms, said func(uint64)) error {
	payer := newPayer(db)
	if err := payer.Open(ctx, terms, channel.MaxAmount()); err != nil {
		return err
	}
	s, err := payer.State(ctx, terms.ID())
	if err != nil {
		return err
	}
	for amount := s.Signed.Uint64(); ; amount++ {
		if _, err := payer.Pay(ctx, terms.ID(), *uint256.NewInt(amount)); err != nil {
			return err
		}
		said(amount)
	}
}

// TestKilledPayeeKeepsWhatItAcknowledged kills a payee with SIGKILL at random
// moments and opens its store again: every acknowledged voucher is there, with
// the signature that settles it and the charge that was made for it.
func TestKilledPayeeKeepsWhatItAcknowledged(t *testing.T) {
	killMany(t, "payee", checkAccepted)
}

// TestKilledPayerKnowsWhatItSigned does the same to a payer: it knows every
// channel and amount that it let out, signs nothing lower, and its budget is the
// sum of its channels.
func TestKilledPayerKnowsWhatItSigned(t *testing.T) {
	killMany(t, "payer", checkSigned)
}

func killMany(t *testing.T, role string, check func(*testing.T, *store.DB, map[int]uint64)) {
	if testing.Short() {
		t.Skip("runs for seconds")
	}
	t.Run("sqlite", func(t *testing.T) { killManyAt(t, filepath.Join(t.TempDir(), "gpupay.db"), role, check) })
	t.Run("postgres", func(t *testing.T) { killManyAt(t, pgtest.URL(t), role, check) })
}

func killManyAt(t *testing.T, path, role string, check func(*testing.T, *store.DB, map[int]uint64)) {
	said := make(map[int]uint64)
	total := 0
	const kills = 10
	for range kills {
		total += killOnce(t, role, path, said)
		db, err := store.Open(context.Background(), path)
		if err != nil {
			t.Fatal(err)
		}
		check(t, db, said)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if total == 0 {
		t.Error("the child said nothing: the test showed nothing")
	}
	t.Logf("%d kills, %d vouchers told of, 0 lost", kills, total)
}

// killOnce runs the child, kills it after some acknowledgements and a moment,
// and returns how many there were.
func killOnce(t *testing.T, role, path string, acknowledged map[int]uint64) int {
	t.Helper()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), crashFile+"="+path, crashRole+"="+role)
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

func checkAccepted(t *testing.T, db *store.DB, said map[int]uint64) {
	t.Helper()
	for n, amount := range said {
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

func checkSigned(t *testing.T, db *store.DB, said map[int]uint64) {
	t.Helper()
	ctx := context.Background()
	payer := newPayer(db)
	var total uint256.Int
	for n := range crashChannels {
		s, err := payer.State(ctx, crashTerms(n).ID())
		if errors.Is(err, channel.ErrUnknown) && said[n] == 0 {
			continue // killed before it was opened
		}
		if err != nil || s.Signed.LtUint64(said[n]) {
			t.Fatalf("channel %d: let out %d, knows %s, %v", n, said[n], s.Signed.Dec(), err)
		}
		total.Add(&total, &s.Signed)
		if said[n] == 0 {
			continue
		}
		if _, err := payer.Pay(ctx, s.ID, *uint256.NewInt(said[n] - 1)); !errors.Is(err, channel.ErrLower) {
			t.Errorf("channel %d: signed %d after %d: %v", n, said[n]-1, said[n], err)
		}
		if _, err := payer.Pay(ctx, s.ID, s.Signed); err != nil {
			t.Errorf("channel %d: cannot pay again what it was paying: %v", n, err)
		}
	}
	var budgets [][]byte
	if err := db.View().Select(&budgets, "SELECT amount FROM payer_budgets WHERE scope LIKE 'payee %'"); err != nil {
		t.Fatal(err)
	}
	var kept uint256.Int
	for _, b := range budgets {
		kept.Add(&kept, new(uint256.Int).SetBytes(b))
	}
	if kept != total {
		t.Errorf("budget %s; the channels add up to %s", kept.Dec(), total.Dec())
	}
}
