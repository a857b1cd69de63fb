package sdk

import (
	"context"
	"fmt"
	"slices"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
)

// identity is what all gateways over one database have in common: another key signs
// what the others' channels do not pay, and on another chain or escrow none of their
// channels is found.
type identity struct {
	Chain  uint64 `db:"chain"`
	Escrow string `db:"escrow"`
	Token  string `db:"token"`
	Payee  string `db:"payee"`
}

// identify makes the database this provider's, or fails if it is another one's. The
// token may change, and the key to one that has the old one in PastKeys, while no
// gateway lives.
func (p *Provider) identify(ctx context.Context) error {
	if !p.db.Shared() {
		return nil
	}
	c := p.config
	mine := identity{p.escrow.ChainID(), c.Escrow.Hex(), c.Token.Hex(), c.Key.Address().Hex()}
	past := func(payee string) bool {
		return slices.ContainsFunc(c.PastKeys, func(k channel.Signer) bool { return k.Address() == common.HexToAddress(payee) })
	}
	if err := p.store.identify(ctx, mine, past); err != nil {
		return fmt.Errorf("provider: %w", err)
	}
	return nil
}

func (s leaseStore) identify(ctx context.Context, mine identity, past func(payee string) bool) error {
	if _, err := s.restamp(ctx); err != nil { // or a clock that was set back would have gateways living that are dead
		return err
	}
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.NamedExecContext(ctx, `INSERT INTO identity (one, chain, escrow, token, payee)
			VALUES (1, :chain, :escrow, :token, :payee) ON CONFLICT (one) DO NOTHING`, mine)
		if err != nil {
			return err
		}
		var its identity
		if err := tx.GetContext(ctx, &its, `SELECT chain, escrow, token, payee FROM identity FOR UPDATE`); err != nil || its == mine {
			return err
		}
		var living int
		if err := tx.GetContext(ctx, &living, `SELECT count(*) FROM gateways WHERE expires > `+serverNow); err != nil {
			return err
		}
		if err := its.becomes(mine, past(its.Payee), living); err != nil {
			return err
		}
		_, err = tx.NamedExecContext(ctx, `UPDATE identity SET token = :token, payee = :payee`, mine)
		return err
	})
}

// becomes says why a database may not change hands. succeeds is a key that has the
// old one in PastKeys.
func (its identity) becomes(mine identity, succeeds bool, living int) error {
	const own = "give this gateway a database of its own, or the others'"
	switch {
	case its.Chain != mine.Chain:
		return fmt.Errorf("the database is of gateways on chain %d, and this one is on chain %d: %s RPC", its.Chain, mine.Chain, own)
	case its.Escrow != mine.Escrow:
		return fmt.Errorf("the database is of gateways with the escrow %s, and this one has %s: %s Escrow", its.Escrow, mine.Escrow, own)
	case its.Payee != mine.Payee && !succeeds:
		return fmt.Errorf("the database is of gateways with the key %s, and this one has %s: %s Key; after a rotation name the old key in PastKeys", its.Payee, mine.Payee, own)
	case its.Payee != mine.Payee && living > 0:
		return fmt.Errorf("the database is of gateways with the key %s, %d of which run, and this one has %s: stop all of them, and start them with the new key (one that was killed counts until Takeover is over)", its.Payee, living, mine.Payee)
	case living > 0:
		return fmt.Errorf("the database is of gateways with the token %s, %d of which run, and this one has %s: stop all of them, and start them with the new Token (one that was killed counts until Takeover is over)", its.Token, living, mine.Token)
	}
	return nil
}
