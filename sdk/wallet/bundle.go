package wallet

import (
	"context"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/evidence"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Bundle begins the bundle of a channel: its terms, amounts and newest voucher as the payer keeps them, and the payer's own
// transactions about it. Its leases are left to who knows them.
func (s Store) Bundle(ctx context.Context, txs *chain.Store, id common.Hash) (*audit.Bundle, error) {
	state, err := s.DB.Payer().Load(ctx, id)
	if err != nil {
		return nil, err
	}
	b, err := audit.New(ctx, txs, audit.KeptByPayer, state.Terms)
	if err != nil {
		return nil, err
	}
	b.Deposit, b.Settled = wire.NewAmount(state.Deposit), wire.NewAmount(state.Settled)
	if len(state.Signature) > 0 {
		b.Vouchers = append(b.Vouchers, audit.Voucher{Cumulative: wire.NewAmount(state.Signed), Signature: state.Signature})
	}
	return b, nil
}

// AddEvidence adds to a bundle what was refused and what was proven of its channel. What is called a secret in it is cut out, and
// so are the secrets.
func (s Store) AddEvidence(ctx context.Context, b *audit.Bundle, secrets ...string) error {
	kept, err := s.Evidence(ctx, b.Channel)
	if err != nil {
		return err
	}
	for _, e := range kept {
		b.Evidence = append(b.Evidence, audit.Evidence{Reason: e.Reason, At: e.At.UTC(), Document: evidence.Redact(string(e.Document), secrets...)})
	}
	proofs, err := s.Proofs(ctx, b.Channel)
	for _, p := range proofs { // nothing is cut out of one: what a provider calls its secret may be a part of it, and no more
		b.Evidence = append(b.Evidence, audit.Evidence{Reason: audit.EquivocationKind, At: time.UnixMilli(p.At).UTC(), Document: p.Document})
	}
	return err
}

// HasAccount reports whether a channel is an account with an x402 server.
func (s Store) HasAccount(ctx context.Context, id common.Hash) (bool, error) {
	accounts, err := s.accounts(ctx, `WHERE channel = ?`, id.Hex())
	return len(accounts) > 0, err
}
