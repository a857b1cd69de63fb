package provider

import (
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/sdk/internal/cluster"
	"github.com/gpupay/gpupay/sdk/internal/sessionscheme"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestOneDepositForTheLastGPU: while a payer's deposit is on its way, the GPUs
// that it is for are its own. Another payer is told so before its money moves, and
// has them when the first one's deposit does not come.
func TestOneDepositForTheLastGPU(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ first, second string }{
		"ticks": {"/tick?gpus=2", "/tick"}, "a tick and a stream": {"/tick", "/lease?gpus=2"}, "streams": {"/lease?gpus=2", "/lease"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newPayRig(t)
			a, b := r.buyer(c.first), r.buyer(c.second)
			mine, theirs := a.depositing(a.next(), 20_000), b.depositing(b.next(), 20_000)
			r.chain.Automine(t, false)
			served := make(chan *http.Response, 1)
			go func() { served <- a.pay(mine) }()
			r.underWay(a)
			if refused := b.pay(theirs); refused.StatusCode != http.StatusServiceUnavailable || len(r.transactions(b)) != 0 {
				t.Errorf("the second: %s %v, sent %v", refused.Status, wire.ParseProblem(refused), r.transactions(b))
			}
			r.chain.Automine(t, true)
			r.chain.Mine(t, 1)
			if resp := <-served; resp.StatusCode != http.StatusOK {
				t.Fatalf("the first: %s %v", resp.Status, wire.ParseProblem(resp))
			}
			if kept, err := r.provider.reserved[""].Others(t.Context(), [32]byte{}); b.holds() != 0 || kept != nil || err != nil {
				t.Errorf("the second's channel holds %d; kept: %v, %v", b.holds(), kept, err)
			}
		})
	}
}

// TestGatewaysShareTheReservations: of two payers after the last GPUs, each at a gateway of its own over one database, one is
// refused before its money moves, and nothing is kept when the other one is served. What a gateway kept that died ends.
func TestGatewaysShareTheReservations(t *testing.T) {
	database := pgtest.URL(t)
	change := func(c *Config) {
		c.Database, c.Takeover = database, 20*time.Second
		c.Records.HighWater = filepath.Join(t.TempDir(), "signed")
	}
	one := newPayRig(t, change)
	two := payRigOn(t, one.chain, change)
	dead := cluster.Reservation{ID: "dead", Pool: one.provider.capacity("").Pool(), Channel: "of a gateway that died", GPUs: 2}
	if err := (cluster.Reservations{DB: one.provider.db}).Keep(t.Context(), dead, time.Millisecond, func([]cluster.Kept) error { return nil }); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Millisecond)
	a, b := one.buyer("/tick?gpus=2"), two.buyer("/tick")
	mine, theirs := a.depositing(a.next(), 20_000), b.depositing(b.next(), 20_000)
	one.chain.Automine(t, false)
	served := make(chan *http.Response, 1)
	go func() { served <- a.pay(mine) }()
	one.underWay(a)
	if refused := b.pay(theirs); refused.StatusCode != http.StatusServiceUnavailable || len(two.transactions(b)) != 0 {
		t.Errorf("the second: %s %v, sent %v", refused.Status, wire.ParseProblem(refused), two.transactions(b))
	}
	one.chain.Automine(t, true)
	one.chain.Mine(t, 1)
	if resp := <-served; resp.StatusCode != http.StatusOK {
		t.Fatalf("the first: %s %v", resp.Status, wire.ParseProblem(resp))
	}
	if kept, err := two.provider.reserved[""].Others(t.Context(), [32]byte{}); err != nil || len(kept) != 0 || b.holds() != 0 {
		t.Errorf("kept: %v, %v; the second's channel holds %d", kept, err, b.holds())
	}
}

// TestReservationEndsWithItsDeposit: what did not come in time keeps no GPU from
// others, nor does what the chain refuses.
func TestReservationEndsWithItsDeposit(t *testing.T) {
	r := newPayRig(t, func(c *Config) { c.Deposits.Timeout = 2 * time.Second })
	a, b := r.buyer("/tick?gpus=2"), r.buyer("/tick?gpus=2")
	forged := a.depositing(a.next(), 20_000)
	forged.Payload.Deposit.Authorization.Signature[3] ^= 1
	refused := a.refused(a.pay(forged))
	if kept, err := r.provider.reserved[""].Others(t.Context(), [32]byte{}); refused.Error == "" || kept != nil || err != nil {
		t.Errorf("a forged one: %v; kept: %v, %v", refused, kept, err)
	}
	mine, theirs := a.depositing(a.next(), 20_000), b.depositing(b.next(), 20_000)
	r.chain.Automine(t, false)
	if late := a.pay(mine); late.StatusCode == http.StatusOK {
		t.Fatal("served without a deposit")
	}
	r.chain.Automine(t, true)
	var resp *http.Response
	eventually(t, "the other is served", func() bool { // once its own deposit comes in time
		resp = b.pay(theirs)
		return resp.StatusCode != http.StatusServiceUnavailable
	})
	b.take(resp)
}

// underWay waits until a buyer's deposit is in the outbox.
func (r *payRig) underWay(b *buyer) {
	r.Helper()
	eventually(r.T, "a deposit to be sent", func() bool { return len(r.transactions(b)) > 0 })
}

// TestSessionsShareTheReservations: the same of a session's open and of its
// top-up that begins a lease, against x402 and against one another.
func TestSessionsShareTheReservations(t *testing.T) {
	r := newPayRig(t)
	other := r.buyer("/tick")
	p := r.provider
	open := func(method string, gpus int, id byte) (*sessionscheme.Request, error) {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://x/lease", nil)
		if err != nil {
			t.Fatal(err)
		}
		q := &sessionscheme.Request{Request: req, GPUs: gpus, Offer: p.Offer()}
		return q, sessionOf(p).Deposits.ReserveFor(q, [32]byte{id})
	}
	first, err := open("GET", 2, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open("GET", 1, 2); err == nil {
		t.Error("reserved twice")
	}
	if again, err := open("GET", 2, 1); err != nil {
		t.Errorf("the same channel again: %v", err)
	} else {
		again.Seat.Release()
	}
	if _, err := open("POST", 1, 3); err != nil {
		t.Errorf("an open without a lease needs no GPU: %v", err)
	}
	if free := p.free(""); free == nil || *free != 0 {
		t.Errorf("%v are said to be free", free)
	}
	if refused := other.pay(other.depositing(other.next(), 20_000)); refused.StatusCode != http.StatusServiceUnavailable || other.holds() != 0 {
		t.Errorf("x402: %s", refused.Status)
	}
	if err := sessionOf(p).Admission.CanServe(t.Context(), [32]byte{9}, p.Offer(), 1); err == nil || !strings.Contains(err.Error(), "0 free") {
		t.Errorf("a lease on a channel that holds money: %v", err)
	}
	first.Seat.Release()
	first.Seat.Release()
	if err := sessionOf(p).Admission.CanServe(t.Context(), [32]byte{9}, p.Offer(), 2); err != nil {
		t.Error(err)
	}
}
