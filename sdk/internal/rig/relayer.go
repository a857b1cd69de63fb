package rig

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/outcome"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Relayer is a renter.Relay with a key of its own that pays the gas.
type Relayer struct {
	Escrow *chain.Escrow
	Sender *chain.Sender
}

// RequestClose sends a signed request and waits until it is mined. What the
// contract would refuse is not sent.
func (r Relayer) RequestClose(ctx context.Context, q wire.LeaveRequest) error {
	if err := q.Check(); err != nil {
		return err
	}
	return r.send(ctx, q.Channel(), r.Escrow.RequestCloseAuthorizedCall(q.Channel(), q.Deadline, q.Signature))
}

// Withdraw sends a withdrawal and waits until it is mined.
func (r Relayer) Withdraw(ctx context.Context, terms channel.Terms) error {
	return r.send(ctx, terms, r.Escrow.WithdrawCall(terms))
}

func (r Relayer) send(ctx context.Context, terms channel.Terms, call chain.Call) error {
	if terms.ChainID != r.Escrow.ChainID() || terms.Escrow != r.Escrow.Address() {
		return fmt.Errorf("%w: channel %s is in escrow %s on chain %d, this relayer serves %s on chain %d", channel.ErrTerms,
			terms.ID(), terms.Escrow, terms.ChainID, r.Escrow.Address(), r.Escrow.ChainID())
	}
	return outcome.SendOnce(ctx, r.Sender, call, 1)
}

// Relayer is a stranger with a little coin, who sends what renters signed.
func (m *Market) Relayer(t testing.TB) Relayer {
	t.Helper()
	escrow, err := chain.NewEscrow(t.Context(), m.Backend, m.Escrow)
	if err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "relay.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	outbox, err := chain.OpenStore(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	return Relayer{Escrow: escrow, Sender: &chain.Sender{
		Backend: m.Backend, Key: channel.NewKey(m.Keys[4]), Store: outbox, Poll: 50 * time.Millisecond, Log: slog.New(slog.DiscardHandler),
	}}
}
