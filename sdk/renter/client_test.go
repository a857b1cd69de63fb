package renter_test

import (
	"crypto/ecdsa"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
)

func TestRentPayClose(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	for _, test := range []struct {
		name string
		key  *ecdsa.PrivateKey
		gpus int
	}{
		{"own gas", m.Payer, 1},
		{"gasless", m.Newcomer(t), 2},
		{"too little gas", m.Dusty(t), 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			payer := crypto.PubkeyToAddress(test.key.PublicKey)
			before := m.Tokens(t, m.PayeeAddress())
			r := renterrig.Open(t, renterrig.Config(t, m, test.key))
			l, err := r.Rent(t.Context(), server.URL, renter.Options{GPUs: test.gpus, Deposit: "1", PayEvery: 200 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			if got := len(l.Snapshot().Devices); got != test.gpus {
				t.Fatalf("%d devices, want %d", got, test.gpus)
			}
			done := renterrig.Background(t.Context(), l)
			testrig.Eventually(t, "three payments", func() bool { s := l.Snapshot(); return s.Sequence > 10 && s.Paid.Uint64() > 500 })
			c, err := l.Close(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Fatalf("Run: %v", err)
			}
			checkClosing(t, m, c, payer, before)
			if c.Owed != c.Settled {
				t.Errorf("owed %s, settled %s: the final record was not paid exactly", c.Owed.Dec(), c.Settled.Dec())
			}
			checkBooks(t, r, l, c)
		})
	}
}

// checkClosing holds a closing to the chain: every base unit is with the payee
// or back with the payer.
func checkClosing(t *testing.T, m *testrig.Market, c renter.Closing, payer common.Address, payeeBefore uint64) {
	t.Helper()
	if got := m.Tokens(t, m.PayeeAddress()) - payeeBefore; got != c.Settled.Uint64() {
		t.Errorf("the payee got %d, the closing says %s", got, c.Settled.Dec())
	}
	checkRefund(t, m, c, payer)
}

// checkRefund holds a closing to what its payer has on the chain.
func checkRefund(t *testing.T, m *testrig.Market, c renter.Closing, payer common.Address) {
	t.Helper()
	if got := m.Tokens(t, payer); got != testrig.Thousand-c.Settled.Uint64() {
		t.Errorf("the payer has %d, want %d", got, testrig.Thousand-c.Settled.Uint64())
	}
	var sum uint256.Int
	if sum.Add(&c.Settled, &c.Refunded); sum != c.Deposit {
		t.Errorf("settled %s and refunded %s are not the deposit %s", c.Settled.Dec(), c.Refunded.Dec(), c.Deposit.Dec())
	}
	if c.Settled.Gt(&c.Signed) {
		t.Errorf("settled %s of %s signed", c.Settled.Dec(), c.Signed.Dec())
	}
}

// checkBooks reads back from disk what was paid for.
func checkBooks(t *testing.T, r *renter.Client, l *renter.Rental, c renter.Closing) {
	t.Helper()
	records, err := r.Records(t.Context(), l.ID())
	if err != nil {
		t.Fatal(err)
	}
	last := records[len(records)-1]
	if !last.Final || last.Owed != c.Owed || last.Sequence != uint64(len(records)) {
		t.Errorf("the last of %d records is number %d, final %v, owed %s; want final, owed %s", len(records), last.Sequence, last.Final, last.Owed.Dec(), c.Owed.Dec())
	}
	if open, err := r.Rentals(t.Context()); err != nil || len(open) != 1 || open[0].Phase != renter.PhaseClosed {
		t.Errorf("unfinished are %+v (%v), want this one, which a re-org could still undo", open, err)
	}
	if kept, err := l.Evidence(t.Context()); err != nil || len(kept) != 0 {
		t.Errorf("evidence against an honest provider: %v, %v", kept, err)
	}
	again, err := l.Close(t.Context())
	if err != nil || again != c {
		t.Errorf("closing again: %+v, %v", again, err)
	}
}
