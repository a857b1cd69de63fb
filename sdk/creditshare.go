package sdk

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/nodelink"
	"github.com/gpupay/gpupay/sdk/internal/payercredit"
	"github.com/gpupay/gpupay/sdk/internal/placement"
	"github.com/gpupay/gpupay/sdk/units"
	"github.com/gpupay/gpupay/sdk/wire"
)

// creditShares divide a payer's one credit among its leases that nodes meter. A
// node knows nothing of the others, and serves up to what it was told last, however
// long nobody reaches it; so what it was told counts as used until it has heard of
// less, or the lease is over there.
//
// Each figure that a node is told has a version, from the row that all gateways share, and a node takes none that is older
// than one that it took: what a gateway says late, also one that is deposed by then, raises no share again.
type creditShares struct {
	store leasestore.Store
	row   uint256.Int // base units of a channel that a settlement fetches at least
	owing func(context.Context, ...common.Address) ([]channel.State, error)
}

// shareRow is a lease's share as it stands on disk.
type shareRow struct {
	Lease   string `db:"lease"`
	Channel string `db:"channel"`
	Amount  string `db:"amount"`
	Told    string `db:"told"`    // the newest figure that was, or is being, told; '': amount
	Version int64  `db:"version"` // of it
	State   string `db:"state"`   // of the lease
	Held    int64  `db:"held"`    // 1: what its node metered last is not taken over yet
}

// claimant is a lease that wants its share.
type claimant struct {
	lease, channel common.Hash
	payer          common.Address
	credit         uint256.Int // base units, of the payer, on all of its channels
}

// portion is a lease's part of the credit, base units.
type portion struct {
	held uint256.Int // what its node may believe that it has
	fair uint256.Int // what it is to have when the others keep to theirs
	tell uint256.Int // what its node is to hear now
	told uint256.Int // what it was to hear before

	version int64 // of tell, once ask returned: the fencing token
}

// said reports whether the figure has a version, and is not more than what counts.
func (p portion) said() bool { return p.tell == p.told && !p.tell.Gt(&p.held) }

// ask says what a lease's node is to hear. Its version, and more than the lease had,
// are on disk when ask returns; less is for heard.
func (c *creditShares) ask(ctx context.Context, q claimant) (portion, error) {
	owing, err := c.owing(ctx, q.payer)
	if err != nil {
		return portion{}, err
	}
	p, err := q.portion(ctx, c.store.DB.View(), "", owing, c.row)
	if err != nil || p.said() {
		return p, err
	}
	lock := ""
	if c.store.DB.Shared() {
		lock = " FOR UPDATE OF s" // nobody else raises a share of this payer meanwhile
	}
	err = c.store.DB.Update(ctx, func(tx *sqlx.Tx) (err error) {
		if p, err = q.portion(ctx, tx, lock, owing, c.row); err != nil || p.said() {
			return err
		}
		p.version++
		held := u256.Max(p.held, p.tell)
		_, err = tx.ExecContext(ctx, tx.Rebind(`UPDATE credit_shares SET amount = ?, told = ?, version = ? WHERE lease = ?`),
			held.Dec(), p.tell.Dec(), p.version, q.lease.Hex())
		return err
	})
	return p, err
}

// heard lowers a share when its node has heard of less, and of nothing newer.
func (c *creditShares) heard(ctx context.Context, lease common.Hash, p portion) error {
	if !p.tell.Lt(&p.held) {
		return nil
	}
	return c.store.DB.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`UPDATE credit_shares SET amount = ? WHERE lease = ? AND version = ?`), p.tell.Dec(), lease.Hex(), p.version)
		return err
	})
}

// behind takes up what a node has heard of, where that is newer than what this
// database knows: it is a copy from before, and what it says next has to be newer.
func (c *creditShares) behind(ctx context.Context, lease common.Hash, heard uint256.Int, version int64) error {
	return c.store.DB.Update(ctx, func(tx *sqlx.Tx) error {
		var row shareRow
		err := tx.GetContext(ctx, &row, tx.Rebind(`SELECT amount, version FROM credit_shares WHERE lease = ?`), lease.Hex())
		if err != nil || row.Version >= version {
			return err
		}
		amount, err := channel.ParseAmount(row.Amount)
		if err != nil {
			return err
		}
		held := u256.Max(amount, heard)
		_, err = tx.ExecContext(ctx, tx.Rebind(`UPDATE credit_shares SET amount = ?, told = ?, version = ? WHERE lease = ? AND version < ?`),
			held.Dec(), heard.Dec(), version, lease.Hex(), version)
		return err
	})
}

// begin keeps a share for a lease that had none: nothing of one that begins, all of
// one whose node was never told of shares.
func (c *creditShares) begin(ctx context.Context, q claimant, amount uint256.Int) error {
	return c.store.DB.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO credit_shares (lease, channel, payer, amount) VALUES (?, ?, ?, ?) ON CONFLICT (lease) DO NOTHING`),
			q.lease.Hex(), q.channel.Hex(), q.payer.Hex(), amount.Dec())
		return err
	})
}

// end gives a share back when the lease is over at its node.
func (c *creditShares) end(ctx context.Context, lease common.Hash) error {
	return c.store.DB.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`DELETE FROM credit_shares WHERE lease = ?`), lease.Hex())
		return err
	})
}

// portion divides the credit: each lease is to have the same, and none more than the
// others leave.
func (q claimant) portion(ctx context.Context, db sqlx.ExtContext, lock string, owing []channel.State, row uint256.Int) (p portion, err error) {
	var rows []shareRow
	err = sqlx.SelectContext(ctx, db, &rows, db.Rebind(`SELECT s.lease, s.channel, s.amount, s.told, s.version, l.state, l.held
		FROM credit_shares s JOIN leases l ON l.id = s.lease WHERE s.payer = ? ORDER BY s.lease`+lock), q.payer.Hex())
	if err != nil {
		return p, err
	}
	debts := make(map[common.Hash]uint256.Int, len(owing))
	var idle uint256.Int // owed where no lease has a share, or vouchered and not collectible
	for _, s := range owing {
		debts[s.ID] = s.Owed()
		if more := u256.SaturatingSub(payercredit.DebtOf(s, row), s.Owed()); s.ID != q.channel {
			idle.Add(&idle, &more)
		}
	}
	others, count := uint256.Int{}, uint64(1)
	for _, row := range rows {
		amount, err := channel.ParseAmount(row.Amount)
		if err != nil {
			return p, err
		}
		if row.Lease == q.lease.Hex() {
			if p.held, p.told, p.version = amount, amount, row.Version; row.Told != "" {
				p.told, err = channel.ParseAmount(row.Told)
			}
			if err != nil {
				return p, err
			}
			continue
		}
		over := row.State == wire.StateEnded
		if over && row.Held == 0 {
			continue // what it left unpaid is in the books, or given up: no gateway's clock says when
		}
		id := common.HexToHash(row.Channel)
		if debt := debts[id]; debt.Gt(&amount) {
			amount = debt
		}
		delete(debts, id)
		others.Add(&others, &amount)
		if !over {
			count++
		}
	}
	delete(debts, q.channel)
	for _, debt := range debts {
		idle.Add(&idle, &debt)
	}
	p.fair = u256.SaturatingSub(q.credit, idle)
	p.fair.Div(&p.fair, uint256.NewInt(count))
	others.Add(&others, &idle)
	free := u256.SaturatingSub(q.credit, others)
	if p.tell = p.fair; !p.fair.Lt(&p.held) {
		if p.tell = u256.Min(p.fair, free); p.tell.Lt(&p.held) {
			p.tell = p.held // the others have to let go first
		}
	}
	return p, nil
}

// claimant is the lease as one that shares its payer's credit.
func (r *remoteLease) claimant() claimant {
	return claimantOf(r.lease.ID, r.lease.Terms, r.lease.MaxDebt)
}

func claimantOf(id common.Hash, t channel.Terms, credit uint256.Int) claimant {
	return claimant{lease: id, channel: t.ID(), payer: t.Payer, credit: credit}
}

// portion asks for the share that the lease's node is to hear of.
func (r *remoteLease) portion(ctx context.Context) (portion, error) {
	if r.lease.Share.Load() == nil { // its node may never have been told of one
		if err := r.shares.begin(ctx, r.claimant(), r.lease.MaxDebt); err != nil {
			return portion{}, err
		}
	}
	return r.shares.ask(ctx, r.claimant())
}

// told keeps what the lease's node has heard: ours, unless it knows of something newer. That is so where our database is from
// before, a copy or a server that was behind: then its first answer to this process says so, or it names a version that this
// process gave. Any other that is newer no gateway gave, and with it a node would have what its payer's other leases are to have.
func (r *remoteLease) told(ctx context.Context, p portion, there nodelink.Lease) error {
	known := !r.heard || there.CreditVersion <= r.gave
	r.heard, r.gave = true, max(r.gave, p.version)
	if known && there.CreditVersion > p.version && there.Credit != nil {
		heard := u256.Min(there.Credit.Int, r.lease.MaxDebt) // it serves no more, whatever it was told
		return r.shares.behind(ctx, r.lease.ID, heard, min(there.CreditVersion, math.MaxInt64>>1))
	}
	r.lease.Share.Store(&p.tell)
	return r.shares.heard(ctx, r.lease.ID, p)
}

// shareWait is how long a lease that begins waits for its payer's others to let go
// of their parts of the credit: each hears of it once a second.
const shareWait = 3 * time.Second

// makeRoom finds the share of a lease that begins. It refuses where neither that
// nor what is paid in advance lets it run at all.
func (n *nodes) makeRoom(ctx context.Context, req placement.Request) (portion, error) {
	price, err := req.Offer.Price()
	if err != nil {
		return portion{}, err
	}
	credit, err := price.Charge(req.Offer.Credit * uint64(time.Second))
	if err != nil {
		return portion{}, err
	}
	need, err := price.Charge(uint64(req.GPUs) * uint64(4*n.config.tick))
	if err != nil {
		return portion{}, err
	}
	if err := n.booked(ctx, req.Channel); err != nil {
		return portion{}, err
	}
	shares, q := n.config.shares, claimantOf(req.LeaseID, req.Channel.Terms, credit)
	if err := shares.begin(ctx, q, uint256.Int{}); err != nil {
		return portion{}, err
	}
	for deadline := time.Now().Add(shareWait); ; {
		p, err := shares.ask(ctx, q)
		if err != nil {
			return p, err
		}
		late := time.Now().After(deadline)
		if !late && p.tell.Lt(&p.fair) {
			n.config.accounts.Wake(q.payer)
			if err := chain.Pause(ctx, n.config.tick/2); err == nil {
				continue
			}
		}
		room, left := u256.SaturatingSub(payercredit.Collectible(req.Channel, shares.row), req.Channel.Spent), uint256.Int{}
		if !p.tell.IsZero() {
			room, left = req.Channel.Available(), u256.SaturatingSub(p.tell, req.Channel.Owed()) // which uses of the share what it is
		}
		if room.Add(&room, &left); !room.Lt(&need) {
			return p, nil
		}
		return p, errors.Join(shares.end(ctx, q.lease),
			wire.InsufficientBalance.With("payer %s has used its credit, on this channel or by other leases: pay those, or pay for this one in advance, by a voucher that is at least %s over what channel %s has spent and settled",
				q.payer, units.Format(u256.Max(need, shares.row), n.config.decimals), q.channel))
	}
}
