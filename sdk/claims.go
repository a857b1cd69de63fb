package sdk

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/sdk/chain"
)

// claimTime is how long a claim outlives the gateway that died with it.
const claimTime = 30 * time.Second

// errClaimLost is what a write gets whose claim ran out while its gateway was stopped, and that another gateway may have taken since.
var errClaimLost = errors.New("this gateway was stopped for so long that another gateway took this request's place: nothing was written or sent, send the same request again")

// A gatewayClaim makes who holds it the only gateway to do what it names, for as long as it renews it. Its owner is drawn anew each time
// that it is taken and serves as a fencing token: whoever was stopped for longer than claimTime still believes that it holds its
// claim, so what it does under it is written in one transaction with check. nil is the claim of a lone provider, which nobody takes.
type gatewayClaim struct {
	store       leaseStore
	name, owner string
	log         *slog.Logger
	life        context.Context // ends with its gateway
	stop        context.CancelFunc
}

// takeClaim waits for a claim and renews it until it is released, or life ends.
func (s leaseStore) takeClaim(ctx, life context.Context, name string, poll time.Duration, log *slog.Logger) (*gatewayClaim, error) {
	c := &gatewayClaim{store: s, name: name, owner: newGatewayID(), log: log, life: life}
	for {
		ok, err := s.claim(ctx, name, c.owner, claimTime)
		if err != nil {
			return nil, err
		}
		if ok {
			break
		}
		if err := chain.Pause(ctx, poll); err != nil {
			return nil, err
		}
	}
	renewing, stop := context.WithCancel(life)
	c.stop = stop
	go c.renew(renewing)
	return c, nil
}

// renew keeps the claim while it is held.
func (c *gatewayClaim) renew(ctx context.Context) {
	for chain.Pause(ctx, claimTime/4) == nil {
		if err := c.store.renew(ctx, c.name, c.owner, claimTime); err != nil && ctx.Err() == nil {
			c.log.Warn("a claim was not renewed", "claim", c.name, "error", err)
		}
	}
}

// check fails with errClaimLost where the claim is not held any more. It keeps others from taking it until tx ends.
func (c *gatewayClaim) check(tx *sqlx.Tx) error {
	if c == nil {
		return nil
	}
	var one int
	err := tx.Get(&one, tx.Rebind(`SELECT 1 FROM claims WHERE name = ? AND owner = ? FOR SHARE`), c.name, c.owner)
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("%s: %w", c.name, errClaimLost)
	}
	return err
}

// guard is check, nil where there is nothing to check.
func (c *gatewayClaim) guard() func(*sqlx.Tx) error {
	if c == nil {
		return nil
	}
	return c.check
}

// held is check for what is not written to the database.
func (c *gatewayClaim) held(ctx context.Context) error {
	if c == nil {
		return nil
	}
	return c.store.db.Update(ctx, c.check)
}

// release lets others take the claim.
func (c *gatewayClaim) release(ctx context.Context) {
	if c == nil {
		return
	}
	c.stop()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := c.store.unclaim(ctx, c.name, c.owner); err != nil && c.life.Err() == nil {
		c.log.Warn("a claim was not given back: it ends by itself", "claim", c.name, "error", err)
	}
}

// guards is a condition that holds where all of some do; nil ones always do.
func guards(all ...func(*sqlx.Tx) error) func(*sqlx.Tx) error {
	all = slices.DeleteFunc(all, func(g func(*sqlx.Tx) error) bool { return g == nil })
	if len(all) == 0 {
		return nil
	}
	return func(tx *sqlx.Tx) error {
		for _, holds := range all {
			if err := holds(tx); err != nil {
				return err
			}
		}
		return nil
	}
}
