package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/rig"
)

func TestMain(m *testing.M) {
	if address := os.Getenv(leadOn); address != "" {
		if err := leadForEver(address); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(pgtest.Main(m))
}

// tables opens a provider's database.
func tables(ctx context.Context, address string) (*store.DB, error) {
	return database.Open(ctx, address, "provider", os.DirFS("../leasestore"), "migrations/provider")
}

func openTables(t *testing.T, address string) *store.DB {
	t.Helper()
	db, err := tables(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// TestOneLeadsAndAnotherTakesOver: a leader whose endpoint is dead is one no longer,
// though its database is there; its work goes on with the database it was given,
// and from the moment that another one leads nothing that it writes is kept, by any
// way there is to write.
func TestOneLeadsAndAnotherTakesOver(t *testing.T) {
	t.Parallel()
	address := pgtest.URL(t)
	type led struct {
		name string
		db   *store.DB
		ctx  context.Context
	}
	begun := make(chan led, 10)
	stubborn := make(chan struct{})
	cutOff := map[string]*atomic.Bool{"first": {}, "second": {}}
	for name, cut := range cutOff {
		db := openTables(t, address)
		look := func(context.Context) error {
			if cut.Load() {
				return errors.New("the endpoint is dead")
			}
			return nil
		}
		l := &Leader{DB: db, Name: "test", Owner: name, TTL: leadTTL, Log: slog.New(slog.DiscardHandler), Check: look, Work: func(ctx context.Context, db *store.DB) error {
			begun <- led{name, db, ctx}
			<-stubborn // it does not stop when it is told to
			return ctx.Err()
		}}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- l.Run(ctx) }()
		defer func() { cancel(); <-ended }()
	}
	defer close(stubborn)
	old := <-begun
	txs, err := chain.OpenStore(t.Context(), old.db)
	if err != nil {
		t.Fatal(err)
	}
	terms := channel.Terms{ChainID: 1, Escrow: common.Address{1}, Payer: common.Address{2}, Payee: common.Address{3}, Token: common.Address{4}}
	payee := &channel.Payee{Store: old.db.Payee(), Domain: channel.EscrowDomain(1, common.Address{1})}
	view := channel.ChainView{Deposit: *uint256.NewInt(100)}
	if _, err := payee.Register(t.Context(), terms, view); err != nil {
		t.Fatal(err)
	}
	select {
	case other := <-begun:
		t.Fatalf("%s leads beside %s", other.name, old.name)
	case <-time.After(leadTTL + time.Second):
	}

	cutAt := time.Now()
	cutOff[old.name].Store(true)
	var next led
	select {
	case next = <-begun:
	case <-time.After(time.Minute):
		t.Fatal("a process whose endpoint is dead leads on")
	}
	if next.name == old.name {
		t.Fatal("the stubborn leader leads again") // it cannot: it is still at work
	}
	t.Logf("another leads after %s", time.Since(cutAt).Round(10*time.Millisecond))
	view.Deposit = *uint256.NewInt(200)
	writes := map[string]func() error{
		"channel": func() error { _, err := payee.Observe(t.Context(), terms.ID(), view); return err },
		"new channel": func() error {
			other := terms
			other.Salt[0] = 1
			_, err := payee.Register(t.Context(), other, view)
			return err
		},
		"trail": func() error {
			return txs.Extend(t.Context(), 1, terms.Escrow, nil, chain.Block{Number: 1})
		},
		"waiting": func() error {
			_, err := txs.Since(t.Context(), 1, common.Address{1}, []common.Hash{terms.ID()}, time.Now())
			return err
		},
		"outbox": func() error { _, err := chain.OpenStore(t.Context(), old.db); return err },
		"table":  func() error { return giveBack(t.Context(), old.db) },
	}
	for name, write := range writes {
		if err := write(); !errors.Is(err, ErrDeposed) {
			t.Errorf("%s: written by who leads no more: %v", name, err)
		}
	}
	s, err := next.db.Payee().Load(t.Context(), terms.ID())
	if err != nil || s.Deposit != *uint256.NewInt(100) {
		t.Errorf("deposit %s, %v", s.Deposit.Dec(), err)
	}
	select {
	case <-old.ctx.Done():
	case <-time.After(time.Minute):
		t.Error("the old leader was not told to stop")
	}
}

// giveBack is a write to a table of the provider's.
func giveBack(ctx context.Context, db *store.DB) error {
	return db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM claims WHERE name = 'x'`)
		return err
	})
}

// leadTTL is how long a test's leader leads without a word: more than a machine stands still for.
const leadTTL = 5 * time.Second

// leadOn has the test binary lead over a database until it is killed.
const leadOn = "GPUPAY_TEST_LEAD_ON"

// leadForEver says when it leads, and what a write of its says that fails.
func leadForEver(address string) error {
	db, err := tables(context.Background(), address)
	if err != nil {
		return err
	}
	l := testLeader(db, func(ctx context.Context, db *store.DB) error {
		fmt.Println("leads")
		for {
			if err := giveBack(context.Background(), db); err != nil {
				fmt.Println(err)
				return err
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	return l.Run(context.Background())
}

func testLeader(db *store.DB, work func(context.Context, *store.DB) error) *Leader {
	return &Leader{DB: db, Name: "test", TTL: leadTTL, Log: slog.New(slog.DiscardHandler), Work: work,
		Check: func(context.Context) error { return nil }}
}

// TestStoppedLeaderIsReplaced: a process that is stopped keeps its connections, and
// does no work. Another one leads soon; when the first goes on it writes nothing.
func TestStoppedLeaderIsReplaced(t *testing.T) {
	t.Parallel()
	address := pgtest.URL(t)
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), leadOn+"="+address)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = child.Process.Kill(); _ = child.Wait() })
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "leads" {
		t.Fatalf("the other process: %q, %v", lines.Text(), lines.Err())
	}
	db := openTables(t, address)
	begun, ended := make(chan struct{}), make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		leads := sync.OnceFunc(func() { close(begun) })
		ended <- testLeader(db, func(ctx context.Context, _ *store.DB) error { leads(); <-ctx.Done(); return ctx.Err() }).Run(ctx)
	}()
	defer func() { cancel(); <-ended }()
	if err := child.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	select {
	case <-begun:
	case <-time.After(time.Minute):
		t.Fatal("a process that is stopped leads on")
	}
	if err := child.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	// On a slow machine its write is out of time before it hears that it is deposed.
	if !lines.Scan() || !strings.Contains(lines.Text(), ErrDeposed.Error()) && !strings.Contains(lines.Text(), context.DeadlineExceeded.Error()) {
		t.Errorf("it goes on to write: %q", lines.Text())
	}
}

// clockedStore is the tables of a provider on a server whose clock can be set.
func clockedStore(t *testing.T) (*store.DB, func(ahead time.Duration)) {
	t.Helper()
	t.Parallel()
	address, set := pgtest.Clock(t)
	return openTables(t, address), set
}

// TestLeadBehindAServerClockSetBack: who leads and lives is given time to say so; one that is dead leads for once more its time.
func TestLeadBehindAServerClockSetBack(t *testing.T) {
	db, set := clockedStore(t)
	l := testLeader(db, nil)
	l.TTL = 2 * time.Second
	if term, err := l.elect(t.Context()); err != nil || term != 1 {
		t.Fatal(term, err)
	}
	set(-time.Hour)
	if vacant, err := l.vacant(t.Context()); err != nil || vacant {
		t.Errorf("the lead was taken from who may live: %v", err)
	}
	if term, err := l.elect(t.Context()); err != nil || term != 0 {
		t.Errorf("the lead was taken from who may live: term %d, %v", term, err)
	}
	if behind, err := Restamp(t.Context(), db); err != nil || behind < 59*time.Minute {
		t.Errorf("the clock is %s behind, %v", behind, err)
	}
	rig.Eventually(t, "the next term", func() bool { term, err := l.elect(t.Context()); return err == nil && term == 2 })
}
