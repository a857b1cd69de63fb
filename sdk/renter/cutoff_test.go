package renter_test

import (
	"context"
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/chain"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
)

// cutOffAt ends what do does as soon as the chain has a transaction of a call's method: nobody hears what became of it.
func cutOffAt(t *testing.T, bad *badrpc.Endpoint, call chain.Call, do func(context.Context)) {
	t.Helper()
	ctx, cut := context.WithCancel(t.Context())
	defer cut()
	method := hex.EncodeToString(call.Data[:4])
	bad.On("eth_sendRawTransaction", func(x *badrpc.Exchange) {
		if strings.Contains(string(x.Params), method) {
			cut()
		}
	})
	do(ctx)
	if t.Context().Err() == nil && ctx.Err() == nil {
		t.Fatalf("%s was not sent", call)
	}
	bad.Heal()
}

// TestBooksOfWhatWasCutOff: a renter ends while a transaction of its own is on its way, which is mined before the channel closes,
// and the next process finds the channel closed, or closes it: its books have that transaction, also where the node cannot tell
// at first what became of it.
func TestBooksOfWhatWasCutOff(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	leave := func(ctx context.Context, t *testing.T, l *renter.Rental) { _, _ = l.Leave(ctx) }
	for name, test := range map[string]struct {
		call   func(*renter.Rental) chain.Call
		do     func(context.Context, *testing.T, *renter.Rental)
		before func(*testing.T, *renter.Rental, *badrpc.Endpoint)
	}{
		"top-up": {
			call: func(l *renter.Rental) chain.Call {
				return l.Lease().Escrow.TopUpCall(l.Lease().Terms, l.Lease().Row.Deposit)
			},
			do: func(ctx context.Context, t *testing.T, l *renter.Rental) {
				release, err := l.Lease().Claim(t.Context()) // as Run does
				if err != nil {
					t.Fatal(err)
				}
				defer release()
				_ = l.Lease().TopUp(ctx)
			},
		},
		"request to close": {call: func(l *renter.Rental) chain.Call { return l.Lease().Escrow.RequestCloseCall(l.Lease().Terms) }, do: leave},
		"withdrawal": {
			before: func(t *testing.T, l *renter.Rental, bad *badrpc.Endpoint) {
				cutOffAt(t, bad, l.Lease().Escrow.RequestCloseCall(l.Lease().Terms), func(ctx context.Context) { leave(ctx, t, l) })
				testrig.Eventually(t, "the request on the chain", func() bool { // it may still be on its way there
					view, err := l.Lease().Escrow.View(t.Context(), l.Lease().ID, nil)
					return err == nil && view.CloseRequestedAt != 0
				})
				m.Pass(t, 2*chaintest.Grace)
			},
			call: func(l *renter.Rental) chain.Call { return l.Lease().Escrow.WithdrawCall(l.Lease().Terms) }, do: leave,
		},
	} {
		t.Run(name, func(t *testing.T) {
			config, bad := behindEndpoint(t, m)
			config.Chain.ClockTolerance, config.Now = 1000*time.Hour, m.Now
			r := renterrig.Open(t, config)
			l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "0.5", TopUp: "0.5"})
			if err != nil {
				t.Fatal(err)
			}
			if test.before != nil {
				test.before(t, l, bad)
			}
			cutOffAt(t, bad, test.call(l), func(ctx context.Context) { test.do(ctx, t, l) })
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			bad.On("eth_getTransactionReceipt", badrpc.Times(3, badrpc.Fail(-32000, "transaction indexing is in progress")))
			r = renterrig.Open(t, config)
			if l, err = r.Resume(t.Context(), l.ID()); err != nil {
				t.Fatal(err)
			}
			if _, err := l.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			b, err := r.Export(t.Context(), l.ID())
			if err != nil {
				t.Fatal(err)
			}
			if err := audit.Failures(audit.Verify(t.Context(), b, m.Backend)); err != nil {
				t.Errorf("its books: %v", err)
			}
			if paid, err := r.Wallet().DB.Payer().Load(t.Context(), l.ID()); err != nil || paid.Status != channel.Finalized {
				t.Errorf("%s, %v", paid.Status, err)
			}
		})
	}
}
