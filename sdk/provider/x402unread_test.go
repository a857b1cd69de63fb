package provider

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/sdk/internal/x402scheme"
	"github.com/gpupay/gpupay/sdk/internal/x402server"
)

// TestX402SaysWhatItCannotRead: what could not be read is not taken for a channel that holds nothing, for a refund that was
// never sent, or for an answer that was noted.
func TestX402SaysWhatItCannotRead(t *testing.T) {
	r := newPayRig(t)
	d := x402Of(r.provider)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Find(ended, &x402server.PaidRequest{ID: common.Hash{1}}); !errors.Is(err, context.Canceled) {
		t.Errorf("a channel: %v", err)
	}
	if answer, err := d.Refunds.Again(ended, &x402scheme.Request{PaidRequest: x402server.PaidRequest{ID: common.Hash{1}}}, x402server.Account{}, x402server.Entry{}); !errors.Is(err, context.Canceled) || answer != nil {
		t.Errorf("a refund that may have been sent: %v, %v", answer, err)
	}
	rename := func(from, to string) {
		err := r.provider.db.Update(t.Context(), func(tx *sqlx.Tx) error {
			_, err := tx.Exec("ALTER TABLE " + from + " RENAME TO " + to)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	rename("x402_requests", "gone")
	if err := d.Journal.Answered(t.Context(), x402server.Entry{}, false); err == nil {
		t.Error("an answer that was not noted counts as noted")
	}
	rename("gone", "x402_requests")
}

// TestX402NeedsItsContract: a provider that is told to take x402 where its contract is not says so at the start.
func TestX402NeedsItsContract(t *testing.T) {
	t.Parallel()
	net := chaintest.Anvil(t)
	p, err := New(t.Context(), payConfig(t, channel.NewKey(net.Keys[0]), net.URL, net.Escrow.Hex(), net.Token.Hex(), t.TempDir()+"/provider.db"))
	if err == nil || !strings.HasPrefix(err.Error(), "provider: X402: ") {
		t.Errorf("%v", err)
	}
	if err == nil {
		_ = p.Close()
	}
}
