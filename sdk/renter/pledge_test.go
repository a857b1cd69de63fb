package renter_test

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// leftDuring is a rental whose leave is signed and relayed while a top-up of it waits for an endpoint's answer to the requests
// that wait names. It returns what the channel held before, and the top-up's end.
func leftDuring(t *testing.T, m *testrig.Market, d *drawer, bad *badrpc.Endpoint, l *renter.Rental, method, wait string) (before uint64, topUp chan error) {
	t.Helper()
	asked, answer := make(chan struct{}), make(chan struct{})
	var once sync.Once
	bad.On(method, func(x *badrpc.Exchange) {
		if strings.Contains(string(x.Params), wait) {
			once.Do(func() { close(asked); <-answer })
		}
	})
	before, topUp = d.deposited(), make(chan error, 1)
	go func() {
		release, err := l.Lease().Claim(t.Context()) // as Run does
		if err != nil {
			topUp <- err
			return
		}
		defer release()
		topUp <- l.Lease().TopUp(t.Context())
	}()
	select {
	case <-asked:
	case err := <-topUp:
		t.Fatalf("the top-up did not ask for it: %v", err)
	}
	request, err := l.SignLeave(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Relayer(t).RequestClose(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	close(answer)
	return before, topUp
}

// checkLeft: the channel holds what it held when the leave was signed, its close request stands, and no authorization was
// handed out beside the open's.
func checkLeft(t *testing.T, d *drawer, before uint64, authorizations int) {
	t.Helper()
	view, err := d.escrow.View(t.Context(), d.terms.ID(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := d.deposited(); got != before || view.CloseRequestedAt == 0 {
		t.Errorf("the channel holds %d, %d when the leave was signed; close requested at %d", got, before, view.CloseRequestedAt)
	}
	if got := len(d.payloads()); got != authorizations {
		t.Errorf("%d authorizations were handed out, want %d", got, authorizations)
	}
}

// TestLeaveDuringATopUp: a leave that is signed while a top-up waits for a slow endpoint, before its signature, is not taken
// back by it: the top-up is forgotten, and what it would have moved is free under the caps.
func TestLeaveDuringATopUp(t *testing.T) {
	const domainSeparator = "3644e515"
	for _, test := range []struct {
		name, method, wait string
		gasless            bool
	}{
		{"authorization", "eth_call", domainSeparator, true},
		{"transaction", "eth_sendRawTransaction", "", false}, // of the approval before it
	} {
		t.Run(test.name, func(t *testing.T) {
			m := testrig.NewMarket(t)
			d := newDrawer(t, m)
			config, bad := behindEndpoint(t, m)
			r := renterrig.Open(t, config)
			l, err := r.Rent(t.Context(), d.Server.URL, renter.Options{Deposit: "0.5", TopUp: "0.7", Gasless: test.gasless})
			if err != nil {
				t.Fatal(err)
			}
			d.terms = l.Terms()
			signed := len(d.payloads())
			if test.gasless {
				d.submit(d.payloads()[0])
			}
			before, topUp := leftDuring(t, m, d, bad, l, test.method, test.wait)
			if err := <-topUp; err != nil && !errors.Is(err, channel.ErrClosing) {
				t.Error(err)
			}
			checkLeft(t, d, before, signed)
			paid, err := l.Lease().Payer.State(t.Context(), l.ID())
			if err != nil || l.Lease().Row.TopUp != nil || paid.Authorized.Uint64() > before {
				t.Errorf("top-up %v, %s authorized (%v): it is forgotten", l.Lease().Row.TopUp, paid.Authorized.Dec(), err)
			}
			l.Lease().Detach()
		})
	}
}

// TestLeaveBeforeAStoredTopUp: a top-up that was on disk and not signed when the process ended, or signed and not handed out,
// does not take back a leave that was signed since.
func TestLeaveBeforeAStoredTopUp(t *testing.T) {
	for _, test := range []struct {
		name    string
		gasless bool
		fails   []string
	}{
		{"unsigned authorization", true, []string{"eth_getBlockByNumber"}},
		{"unsent transaction", false, []string{"eth_sendRawTransaction", "eth_estimateGas", "eth_feeHistory", "eth_gasPrice", "eth_getTransactionCount"}},
		{"signed authorization", true, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := testrig.NewMarket(t)
			d := newDrawer(t, m)
			config, bad := behindEndpoint(t, m)
			r := renterrig.Open(t, config)
			l, err := r.Rent(t.Context(), d.Server.URL, renter.Options{Deposit: "0.5", TopUp: "0.7", Gasless: test.gasless})
			if err != nil {
				t.Fatal(err)
			}
			d.terms = l.Terms()
			signed := len(d.payloads())
			if test.gasless {
				d.submit(d.payloads()[0])
			}
			storeTopUp(t, l, bad, test.fails)
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			r = renterrig.Open(t, config)
			if l, err = r.Resume(t.Context(), l.ID()); err != nil || l.Lease().Row.TopUp == nil {
				t.Fatalf("the top-up is not on disk: %v", err)
			}
			other, err := r.Rental(t.Context(), l.ID()) // as another part of the program has it
			if err != nil {
				t.Fatal(err)
			}
			request, err := other.SignLeave(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := m.Relayer(t).RequestClose(t.Context(), request); err != nil {
				t.Fatal(err)
			}
			before := d.deposited()
			if err := l.Lease().FinishTopUp(t.Context()); err != nil && !rental.IsTransient(err) {
				t.Error(err)
			}
			checkLeft(t, d, before, signed)
		})
	}
}

// storeTopUp puts a top-up on disk that gets no further: what it needs of the endpoint fails or, where nothing does, its
// signature is the last that is done.
func storeTopUp(t *testing.T, l *renter.Rental, bad *badrpc.Endpoint, fails []string) {
	t.Helper()
	step, salt := l.Lease().Step(), l.Lease().TopUpSalt()
	deposit := l.Lease().Committed()
	if err := l.Lease().Payer.Fund(t.Context(), l.Lease().ID, *deposit.Add(&deposit, &step)); err != nil {
		t.Fatal(err)
	}
	amount := wire.NewAmount(step)
	l.Lease().Row.TopUp = &wire.Payload{
		Action: wire.ActionTopUp, Type: l.Lease().Row.Funding.Type, ChannelID: l.Lease().ID, AdditionalDeposit: &amount, Salt: &salt,
	}
	if err := l.Lease().Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, method := range fails {
		bad.On(method, func(x *badrpc.Exchange) { x.Status = 500 })
	}
	if failed, stopped := l.Lease().SignTopUp(t.Context()); stopped != nil || (failed == nil) != (len(fails) == 0) {
		t.Fatalf("signing it: %v, %v", failed, stopped)
	}
	bad.Heal()
	l.Lease().Detach()
}

// TestLeaveSignedDuringALeave: a Leave that nobody could send takes back that it ended payments, but not where the request was
// signed for others to send meanwhile.
func TestLeaveSignedDuringALeave(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	config, bad := behindEndpoint(t, m)
	config.Key = channel.NewKey(m.Newcomer(t))
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1"})
	if err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	bad.On("eth_getBalance", func(*badrpc.Exchange) {
		once.Do(func() {
			if _, err := l.SignLeave(t.Context()); err != nil {
				t.Error(err)
			}
		})
	})
	if _, err := l.Leave(t.Context()); !errors.Is(err, wallet.ErrNoGas) {
		t.Fatalf("Leave: %v, want ErrNoGas", err)
	}
	if paid, err := l.Lease().Payer.State(t.Context(), l.ID()); err != nil || !paid.Closed || l.Snapshot().Phase != renter.PhaseLeaving {
		t.Errorf("the channel is open for payments, its rental %s (%v)", l.Snapshot().Phase, err)
	}
}
