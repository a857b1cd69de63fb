package cluster

import (
	"context"
	"fmt"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/sdk/internal/database"
)

// Identity is what all gateways over one database have in common: another key signs what the others' channels do not pay, on another
// chain or escrow none of their channels is found, and with another metering key none goes on with a lease of the others.
type Identity struct {
	Chain  uint64 `db:"chain"`
	Escrow string `db:"escrow"`
	Token  string `db:"token"`
	Payee  string `db:"payee"`
	Meter  string `db:"meter"` // of the gateways; each node has its own
}

// Identify makes the database that of one provider, or fails where it is another's. past reports whether a payee is one of its keys of
// before.
func (m Members) Identify(ctx context.Context, mine Identity, past func(payee string) bool) error {
	if _, err := Restamp(ctx, m.DB); err != nil { // or a clock that was set back would have gateways living that are dead
		return err
	}
	return m.DB.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.NamedExecContext(ctx, `INSERT INTO identity (one, chain, escrow, token, payee, meter)
			VALUES (1, :chain, :escrow, :token, :payee, :meter) ON CONFLICT (one) DO NOTHING`, mine)
		if err != nil {
			return err
		}
		var its Identity
		if err := tx.GetContext(ctx, &its, `SELECT chain, escrow, token, payee, meter FROM identity FOR UPDATE`); err != nil || its == mine {
			return err
		}
		var living int
		if err := tx.GetContext(ctx, &living, `SELECT count(*) FROM gateways WHERE expires > `+database.ServerNow); err != nil {
			return err
		}
		if err := its.mayBecome(mine, past(its.Payee), living); err != nil {
			return err
		}
		_, err = tx.NamedExecContext(ctx, `UPDATE identity SET token = :token, payee = :payee, meter = :meter`, mine)
		return err
	})
}

// mayBecome says why a database may not change hands. succeeds is a key that has the old one in PastKeys.
func (its Identity) mayBecome(mine Identity, succeeds bool, living int) error {
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
	case living > 0 && its.Token != mine.Token:
		return fmt.Errorf("the database is of gateways with the token %s, %d of which run, and this one has %s: stop all of them, and start them with the new Token (one that was killed counts until Takeover is over)", its.Token, living, mine.Token)
	case living > 0 && its.Meter != "" && its.Meter != mine.Meter:
		return fmt.Errorf("the database is of gateways with the metering key %s, %d of which run, and this one has %s: give it their MeterKey, or stop all of them, and start them with the new one", its.Meter, living, mine.Meter)
	}
	return nil
}
