package sdk

import (
	"context"

	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/metering"
)

// A lease is charged whole base units, and each metered request is a lease of its
// own. What rounding leaves of one is carried to the next, so that time costs the
// same in many requests as in one: a payer pays for no more than was metered, and
// pieces that are worth less than a base unit are not free.

// carries has a lease's final record carry what it leaves uncharged.
func (d *x402Desk) carries(l *lease) {
	closing := func(tx *sqlx.Tx, rec metering.SignedRecord) error {
		_, err := d.carry(tx, l.price, rec)
		return err
	}
	l.closing.Store(&closing)
}

// carry adds what a final record leaves uncharged to what its channel's leases
// before left, and charges what that makes in whole base units, as far as it is
// reserved: no client is charged more than it signed for. It returns what the
// channel is charged now, cumulative. It runs in the record's transaction, behind
// the charge that the record states.
func (d *x402Desk) carry(tx *sqlx.Tx, price metering.Price, rec metering.SignedRecord) (uint256.Int, error) {
	charged := rec.Owed
	parts, reserved, err := d.notes.carried(tx, rec.ChannelID)
	if err != nil {
		return charged, err
	}
	left, err := price.Fraction(rec.Nanos)
	if err != nil {
		return charged, err
	}
	for parts += left; parts >= metering.Fractions && charged.Lt(&reserved); parts -= metering.Fractions {
		charged.AddUint64(&charged, 1)
	}
	if err := d.notes.setCarried(tx, rec.ChannelID, parts); err != nil || charged == rec.Owed {
		return charged, err
	}
	return charged, d.db.Charge(context.Background(), tx, rec.ChannelID, charged)
}
