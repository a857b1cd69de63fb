package renter_test

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/testclock"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wire"
)

// crash cuts a renter off at the n-th step that the world could see: before a
// signature, before a request is sent, or after it was answered and before the
// answer is read. From then on nothing works any more, as after a kill.
type crash struct {
	channel.Signer
	mu    sync.Mutex
	at    int
	steps int
	dead  chan struct{}
	where string
}

var errKilled = errors.New("killed")

func newCrash(key *ecdsa.PrivateKey, at int) *crash {
	return &crash{Signer: channel.NewKey(key), at: at, dead: make(chan struct{})}
}

func (c *crash) step(where string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.steps == c.at {
		return errKilled
	}
	if c.steps++; c.steps == c.at {
		c.where = where
		close(c.dead)
		return errKilled
	}
	return nil
}

func (c *crash) Sign(ctx context.Context, digest common.Hash) ([]byte, error) {
	if err := c.step("sign"); err != nil {
		return nil, err
	}
	return c.Signer.Sign(ctx, digest)
}

func (c *crash) RoundTrip(req *http.Request) (*http.Response, error) {
	what := req.Method + " " + req.URL.Path
	if cred, err := wire.ParseCredential(req.Header); err == nil {
		what += " " + cred.Payload.Action
	}
	if err := c.step("before " + what); err != nil {
		return nil, err
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if err := c.step("after " + what); err != nil {
		return nil, errors.Join(err, resp.Body.Close())
	}
	body := mortal{resp.Body, c.dead}
	resp.Body = &body
	if line, ok := body.ReadCloser.(io.Writer); ok {
		resp.Body = &mortalLine{body, line, c}
	}
	return resp, nil
}

// mortalLine is a duplex stream that a dead process writes nothing to.
type mortalLine struct {
	mortal
	io.Writer
	crash *crash
}

func (m *mortalLine) Write(p []byte) (int, error) {
	if err := m.crash.step("before a write to the stream"); err != nil {
		return 0, err
	}
	return m.Writer.Write(p)
}

// mortal is a stream that a dead process reads nothing of.
type mortal struct {
	io.ReadCloser
	dead chan struct{}
}

func (m *mortal) Read(p []byte) (int, error) {
	n, err := m.ReadCloser.Read(p)
	select {
	case <-m.dead:
		return 0, errKilled
	default:
		return n, err
	}
}

// TestCrashAnywhere kills a renter at every step of renting, paying, topping up
// and closing, in turn, and takes the rental up again from the disk. Whatever
// the step: the deposit is made once, nothing is paid twice, and the books add
// up to the base unit.
func TestCrashAnywhere(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, func(c *provider.Config) { c.Deposits.Min, c.Source = "0.002", testclock.GPUs(16) })
	for _, test := range []struct {
		name string
		key  func() *ecdsa.PrivateKey
	}{
		{"gasless", func() *ecdsa.PrivateKey { return m.Newcomer(t) }},
		{"own gas", func() *ecdsa.PrivateKey {
			key := m.Newcomer(t)
			m.RPC(t, nil, "anvil_setBalance", crypto.PubkeyToAddress(key.PublicKey), "0xde0b6b3a7640000")
			return key
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if testing.Short() && test.name == "own gas" {
				t.Skip("the long run kills it at every step here too")
			}
			before := m.Tokens(t, m.PayeeAddress())
			settled, kills := everyStep(t, m, server.URL, test.key)
			if got := m.Tokens(t, m.PayeeAddress()) - before; got != settled {
				t.Errorf("the payee got %d, the closings say %d", got, settled)
			}
			t.Logf("killed and resumed at %d steps, %d base units settled", kills, settled)
		})
	}
}

// everyStep kills at step 1, 2 and so on, some at a time, until one comes
// through.
func everyStep(t *testing.T, m *testrig.Market, url string, key func() *ecdsa.PrivateKey) (settled uint64, kills int) {
	t.Helper()
	const atOnce = 8
	for first := 1; ; first += atOnce {
		var wait sync.WaitGroup
		where, got := make([]string, atOnce), make([]uint64, atOnce)
		for i := range atOnce {
			payer := key()
			wait.Add(1)
			go func() {
				defer wait.Done()
				where[i], got[i] = crashAt(t, m, url, payer, first+i)
			}()
		}
		wait.Wait()
		through := false
		for i := range atOnce {
			settled += got[i]
			if through = through || where[i] == ""; where[i] != "" {
				kills++
			}
		}
		if through || t.Failed() {
			return settled, kills
		}
	}
}

// crashAt says where the renter was killed, "" if it came through, and what was
// settled in the end.
func crashAt(t *testing.T, m *testrig.Market, url string, key *ecdsa.PrivateKey, at int) (string, uint64) {
	t.Helper()
	payer := crypto.PubkeyToAddress(key.PublicKey)
	config := renterrig.Config(t, m, key)
	config.Patience = 10 * time.Second
	fault := newCrash(key, at)
	mortal := config
	mortal.Key, mortal.HTTP = fault, &http.Client{Transport: fault}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		select {
		case <-fault.dead:
			cancel()
		case <-ctx.Done():
		}
	}()
	r, err := renter.New(t.Context(), mortal)
	if err != nil {
		t.Error(err)
		return "", 0
	}
	c, err := wholeLife(ctx, t, r, func() (*renter.Rental, error) {
		return r.Rent(ctx, url, renter.Options{Deposit: "0.004", TopUp: "0.004", PayEvery: 100 * time.Millisecond})
	})
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-fault.dead:
	default:
		if err != nil {
			t.Errorf("nobody killed it: %v", err)
		}
		checkRefund(t, m, c, payer)
		return "", c.Settled.Uint64()
	}
	return fault.where, resumed(t, m, config, payer, fmt.Sprintf("killed at step %d, %s", at, fault.where))
}

// resumed takes up what a killed renter left on its disk, and ends it.
func resumed(t *testing.T, m *testrig.Market, config renter.Config, payer common.Address, how string) uint64 {
	t.Helper()
	r, err := renter.New(t.Context(), config)
	if err != nil {
		t.Error(err)
		return 0
	}
	defer r.Close()
	all, err := r.Store().All(t.Context())
	if err != nil || len(all) > 1 {
		t.Errorf("%s: %d rentals (%v), there was one", how, len(all), err)
		return 0
	}
	if len(all) == 0 { // killed before it began
		if got := m.Tokens(t, payer); got != testrig.Thousand {
			t.Errorf("%s: no rental is on disk and %d of %d are left", how, got, testrig.Thousand)
		}
		return 0
	}
	c, err := wholeLife(t.Context(), t, r, func() (*renter.Rental, error) { return r.Resume(t.Context(), all[0].Terms.ID()) })
	if err != nil {
		t.Errorf("%s: %v", how, err)
		return 0
	}
	checkRefund(t, m, c, payer)
	want := c.Owed
	if want.Gt(&c.Deposit) { // read late, with its deposit used up: the provider's own
		want = c.Deposit
	}
	if c.Settled != want {
		t.Errorf("%s: settled %s, owed %s", how, c.Settled.Dec(), c.Owed.Dec())
	}
	if kept, err := r.Evidence(t.Context(), c.Channel); err != nil || len(kept) != 0 {
		t.Errorf("%s: the crash made the renter accuse an honest provider: %v, %v", how, kept, err)
	}
	return c.Settled.Uint64()
}

// wholeLife runs a rental until it was topped up and has paid for a while, and
// closes it. A rental that was being closed is only closed.
func wholeLife(ctx context.Context, t *testing.T, r *renter.Client, begin func() (*renter.Rental, error)) (renter.Closing, error) {
	t.Helper()
	l, err := begin()
	if err != nil {
		return renter.Closing{}, err
	}
	if l.Snapshot().Phase == renter.PhaseRunning {
		done := renterrig.Background(ctx, l)
		for s := l.Snapshot(); ctx.Err() == nil && (s.Deposit.Uint64() < 8000 || s.Paid.Uint64() < 900); s = l.Snapshot() {
			select {
			case err := <-done:
				return renter.Closing{}, err
			case <-time.After(5 * time.Millisecond):
			}
		}
		defer func() { <-done }()
	}
	return l.Close(ctx)
}
