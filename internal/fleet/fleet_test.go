package fleet

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
)

// number is a figure of the test, or what the environment wants instead: a longer
// run is the same test.
func number(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q is no number", name, text)
	}
	return n
}

// TestGatewaysAreKilledWhileRentersPay: three gateways over one PostgreSQL and
// one host's GPUs serve renters who turn to each of them in turn, while one after
// the other is killed with SIGKILL and started again, and PostgreSQL crashes
// once. At the end no acknowledged
// voucher is lost, nothing was counted or metered twice, and the payee has
// exactly what was vouchered.
func TestGatewaysAreKilledWhileRentersPay(t *testing.T) {
	if testing.Short() {
		t.Skip("runs for a minute")
	}
	renters, kills := number(t, "GPUPAY_FLEET_RENTERS", 200), number(t, "GPUPAY_FLEET_KILLS", 15)
	c := chaintest.Anvil(t)
	server := pgtest.OwnServer(t)
	database, err := server.Schema()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, chain: c, server: server, database: database, fleet: &fleet{}}
	for range 3 {
		w.fleet.gateways = append(w.fleet.gateways, newGateway(t, c, w.database, renters))
	}
	for _, g := range w.fleet.gateways {
		g.Ready()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	began := time.Now()
	w.open(ctx, renters)
	opened := time.Now()
	w.payAndKill(ctx, kills)
	killed := time.Now()
	w.each(func(r *Renter) error { return r.Finish(ctx) })
	db, err := store.Open(ctx, w.database)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	w.settled(ctx, db)
	w.check(ctx, db)
	t.Logf("opened in %s, paid under fire for %s, ended and settled in %s", opened.Sub(began).Round(time.Second),
		killed.Sub(opened).Round(time.Second), time.Since(killed).Round(time.Second))
}

type world struct {
	*testing.T
	chain    *chaintest.Chain
	server   *pgtest.Server
	database string
	fleet    *fleet
	victims  []*Process // die in turn; if empty, gateways at random
	renters  []*Renter

	vouchers, tries atomic.Int64
	kills           int
}

// each lets all renters do something at once.
func (w *world) each(do func(*Renter) error) {
	w.Helper()
	var wait sync.WaitGroup
	for _, r := range w.renters {
		wait.Go(func() {
			if err := do(r); err != nil {
				w.Error(err)
			}
		})
	}
	wait.Wait()
	if w.Failed() {
		w.FailNow()
	}
}

func (w *world) open(ctx context.Context, n int) {
	w.Helper()
	token, err := chain.NewToken(ctx, w.chain.Backend, w.chain.Token)
	if err != nil {
		w.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: n}}
	w.Cleanup(client.CloseIdleConnections)
	for i := range n {
		r := NewRenter(w.T, w.chain, w.fleet.next, client, token, i)
		r.vouchers, r.tries = &w.vouchers, &w.tries
		w.renters = append(w.renters, r)
	}
	slots := make(chan struct{}, 24)
	w.each(func(r *Renter) error {
		slots <- struct{}{}
		defer func() { <-slots }()
		return r.Open(ctx)
	})
}

// payAndKill has all renters pay while gateways die.
func (w *world) payAndKill(ctx context.Context, kills int) {
	w.Helper()
	over := make(chan struct{})
	go func() {
		defer close(over)
		for n := range kills {
			pause(ctx, time.Duration(500+rand.IntN(1500))*time.Millisecond)
			g := w.victim(n)
			g.Kill()
			w.kills++
			pause(ctx, time.Duration(rand.IntN(1000))*time.Millisecond)
			g.Start()
			if n == kills/2 { // and the server once
				if err := w.server.Crash(); err != nil {
					w.Error(err)
				}
			}
		}
		pause(ctx, time.Second)
	}()
	w.each(func(r *Renter) error { return r.payUntil(ctx, over) })
	for _, g := range append(w.victims, w.fleet.gateways...) {
		g.Ready()
	}
}

func (w *world) victim(n int) *Process {
	if len(w.victims) == 0 {
		return w.fleet.gateways[rand.IntN(len(w.fleet.gateways))]
	}
	return w.victims[n%len(w.victims)]
}

func (w *world) payee() common.Address { return crypto.PubkeyToAddress(w.chain.Keys[0].PublicKey) }

// vouchered is what all renters have signed for.
func (w *world) vouchered() (sum uint64) {
	for _, r := range w.renters {
		sum += r.Amount
	}
	return sum
}

// settled waits until whoever leads has fetched everything, and knows it.
func (w *world) settled(ctx context.Context, db *store.DB) {
	w.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; pause(ctx, 200*time.Millisecond) {
		left, err := db.Payee().Unsettled(ctx)
		if err == nil && len(left) == 0 && w.chain.Tokens(w.T, w.payee()) == w.vouchered() {
			return
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			w.Fatalf("the payee has %d of %d vouchered, %d channels are unsettled, %v", w.chain.Tokens(w.T, w.payee()), w.vouchered(), len(left), err)
		}
	}
}

// check holds the database, the chain and the renters against each other.
func (w *world) check(ctx context.Context, db *store.DB) {
	w.Helper()
	lost, records := 0, 0
	for _, r := range w.renters {
		s, err := db.Payee().Load(ctx, r.Terms.ID())
		if err != nil {
			w.Error(err)
			continue
		}
		if s.Accepted.LtUint64(r.Acked) {
			lost++
			w.Errorf("channel %s: acknowledged %d, kept %s", s.ID, r.Acked, s.Accepted.Dec())
		}
		if s.Accepted.Uint64() != r.Amount || s.Settled != s.Accepted {
			w.Errorf("channel %s: signed %d, accepted %s, settled %s", s.ID, r.Amount, s.Accepted.Dec(), s.Settled.Dec())
		}
		if s.Spent != r.Final.Owed {
			w.Errorf("channel %s: charged %s, the final record says %s", s.ID, s.Spent.Dec(), r.Final.Owed.Dec())
		}
		if passed := r.Ended.Sub(r.Opened) + time.Second; time.Duration(r.Final.Nanos) > passed {
			w.Errorf("channel %s: %s of one GPU's time in %s: metered twice", s.ID, time.Duration(r.Final.Nanos), passed)
		}
		records += w.checkRecords(ctx, db, r)
	}
	var leaders, taken, nonces int
	w.get(ctx, db, &leaders, `SELECT COALESCE(max(term), 0) FROM leaders`)
	w.get(ctx, db, &taken, `SELECT count(*) FROM leases WHERE term > 1`)
	w.get(ctx, db, &nonces, `SELECT count(*) FROM chain_tx`)
	if nonce := w.nonce(ctx); nonce != uint64(nonces) {
		w.Errorf("%d transactions in the outbox, %d on the chain", nonces, nonce)
	}
	if got := w.chain.Tokens(w.T, w.chain.Escrow); got != uint64(len(w.renters))*Deposit-w.vouchered() {
		w.Errorf("the escrow holds %d", got)
	}
	fmt.Printf("fleet: %d gateways, %d renters, %d vouchers acknowledged (%d sent), %d kills and 1 crash of PostgreSQL, %d leaders, %d leases taken over, %d usage records, %d lost, %d base units settled = vouchered\n",
		len(w.fleet.gateways), len(w.renters), w.vouchers.Load(), w.tries.Load(), w.kills, leaders, taken, records, lost, w.vouchered())
	if taken == 0 || leaders < 2 {
		w.Errorf("%d leases were taken over and %d leaders led: the kills showed too little", taken, leaders)
	}
}

func (w *world) nonce(ctx context.Context) uint64 {
	w.Helper()
	n, err := w.chain.Backend.NonceAt(ctx, w.payee(), nil)
	if err != nil {
		w.Error(err)
	}
	return n
}

func (w *world) get(ctx context.Context, db *store.DB, into *int, query string) {
	w.Helper()
	if err := db.View().GetContext(ctx, into, query); err != nil {
		w.Error(err)
	}
}

// checkRecords makes sure that a channel had one lease with one chain of records,
// whoever wrote them, and that its last one is what the renter was given.
func (w *world) checkRecords(ctx context.Context, db *store.DB, r *Renter) int {
	w.Helper()
	var rows []string
	err := db.View().SelectContext(ctx, &rows, db.View().Rebind(
		`SELECT record FROM records JOIN leases ON leases.id = records.lease WHERE leases.channel = ? ORDER BY records.lease, records.sequence`), r.Terms.ID().Hex())
	if err != nil || len(rows) == 0 {
		w.Errorf("records of channel %s: %d, %v", r.Terms.ID(), len(rows), err)
		return 0
	}
	domain := metering.Domain(r.Terms.ChainID, r.Terms.Escrow)
	records, err := Records(domain, rows)
	if err != nil {
		w.Error(err)
		return 0
	}
	last := records[len(records)-1]
	if last.Record != r.Final.Record || !last.Final {
		w.Errorf("channel %s: the renter's final record is not the newest: it has number %d of lease %s (final %t), and kept are %d, the newest number %d of lease %s (final %t)", r.Terms.ID(),
			r.Final.Sequence, r.Final.LeaseID, r.Final.Final, len(records), last.Sequence, last.LeaseID, last.Final)
	}
	return len(rows)
}

// newGateway starts one of several gateways over a database, on one host with
// that many devices.
func newGateway(t *testing.T, c *chaintest.Chain, database string, devices int) *Process {
	t.Helper()
	more := append(marks(t), "--gpu", fmt.Sprintf("sim:%d", devices), "--credit", "60s", "--record-every", "3s")
	return Supervise(t, func(address string) *exec.Cmd { return Provider(c, address, database, more...) })
}

// marks gives a gateway a file of high-water marks of its own: this user's one has those of earlier tests, which had other chains.
func marks(t *testing.T) []string {
	t.Helper()
	return []string{"--high-water", filepath.Join(t.TempDir(), "signed")}
}
