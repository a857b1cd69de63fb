package remote

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

// Shares divide a payer's one credit among its leases that nodes meter. A
// node knows nothing of the others, and serves up to what it was told last, however
// long nobody reaches it; so what it was told counts as used until it has heard of
// less, or the lease is over there.
//
// Each figure that a node is told has a version, from the row that all gateways share, and a node takes none that is older
// than one that it took: what a gateway says late, also one that is deposed by then, raises no share again.
type Shares struct {
	Store leasestore.Store
	Row   uint256.Int                                                       // base units of a channel that a settlement fetches at least
	Owing func(context.Context, ...common.Address) ([]channel.State, error) // the channels on which a payer owes
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

// Claimant is a lease that wants its share.
type Claimant struct {
	Lease, Channel common.Hash
	Payer          common.Address
	Credit         uint256.Int // base units, of the payer, on all of its channels
}

// Portion is a lease's part of the credit, base units.
type Portion struct {
	Held uint256.Int // what its node may believe that it has
	Fair uint256.Int // what it is to have when the others keep to theirs
	Tell uint256.Int // what its node is to hear now
	Told uint256.Int // what it was to hear before

	Version int64 // of Tell, once Ask returned: the fencing token
}

// said reports whether the figure has a version, and is not more than what counts.
func (p Portion) said() bool { return p.Tell == p.Told && !p.Tell.Gt(&p.Held) }

// Ask says what a lease's node is to hear. Its version, and more than the lease had,
// are on disk when Ask returns; less is for Heard.
func (s *Shares) Ask(ctx context.Context, q Claimant) (Portion, error) {
	owing, err := s.Owing(ctx, q.Payer)
	if err != nil {
		return Portion{}, err
	}
	p, err := q.portion(ctx, s.Store.DB.View(), "", owing, s.Row)
	if err != nil || p.said() {
		return p, err
	}
	lock := ""
	if s.Store.DB.Shared() {
		lock = " FOR UPDATE OF s" // nobody else raises a share of this payer meanwhile
	}
	err = s.Store.DB.Update(ctx, func(tx *sqlx.Tx) (err error) {
		if p, err = q.portion(ctx, tx, lock, owing, s.Row); err != nil || p.said() {
			return err
		}
		p.Version++
		held := u256.Max(p.Held, p.Tell)
		_, err = tx.ExecContext(ctx, tx.Rebind(`UPDATE credit_shares SET amount = ?, told = ?, version = ? WHERE lease = ?`),
			held.Dec(), p.Tell.Dec(), p.Version, q.Lease.Hex())
		return err
	})
	return p, err
}

// Heard lowers a share when its node has heard of less, and of nothing newer.
func (s *Shares) Heard(ctx context.Context, lease common.Hash, p Portion) error {
	if !p.Tell.Lt(&p.Held) {
		return nil
	}
	return s.Store.DB.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`UPDATE credit_shares SET amount = ? WHERE lease = ? AND version = ?`), p.Tell.Dec(), lease.Hex(), p.Version)
		return err
	})
}

// behind takes up what a node has heard of, where that is newer than what this
// database knows: it is a copy from before, and what it says next has to be newer.
func (s *Shares) behind(ctx context.Context, lease common.Hash, heard uint256.Int, version int64) error {
	return s.Store.DB.Update(ctx, func(tx *sqlx.Tx) error {
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
func (s *Shares) begin(ctx context.Context, q Claimant, amount uint256.Int) error {
	return s.Store.DB.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO credit_shares (lease, channel, payer, amount) VALUES (?, ?, ?, ?) ON CONFLICT (lease) DO NOTHING`),
			q.Lease.Hex(), q.Channel.Hex(), q.Payer.Hex(), amount.Dec())
		return err
	})
}

// end gives a share back when the lease is over at its node.
func (s *Shares) end(ctx context.Context, lease common.Hash) error {
	return s.Store.DB.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`DELETE FROM credit_shares WHERE lease = ?`), lease.Hex())
		return err
	})
}

// portion divides the credit: each lease is to have the same, and none more than the
// others leave.
func (q Claimant) portion(ctx context.Context, db sqlx.ExtContext, lock string, owing []channel.State, row uint256.Int) (p Portion, err error) {
	var rows []shareRow
	err = sqlx.SelectContext(ctx, db, &rows, db.Rebind(`SELECT s.lease, s.channel, s.amount, s.told, s.version, l.state, l.held
		FROM credit_shares s JOIN leases l ON l.id = s.lease WHERE s.payer = ? ORDER BY s.lease`+lock), q.Payer.Hex())
	if err != nil {
		return p, err
	}
	debts := make(map[common.Hash]uint256.Int, len(owing))
	var idle uint256.Int // owed where no lease has a share, or vouchered and not collectible
	for _, s := range owing {
		debts[s.ID] = s.Owed()
		if more := u256.SaturatingSub(payercredit.DebtOf(s, row), s.Owed()); s.ID != q.Channel {
			idle.Add(&idle, &more)
		}
	}
	others, count := uint256.Int{}, uint64(1)
	for _, row := range rows {
		amount, err := channel.ParseAmount(row.Amount)
		if err != nil {
			return p, err
		}
		if row.Lease == q.Lease.Hex() {
			if p.Held, p.Told, p.Version = amount, amount, row.Version; row.Told != "" {
				p.Told, err = channel.ParseAmount(row.Told)
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
	delete(debts, q.Channel)
	for _, debt := range debts {
		idle.Add(&idle, &debt)
	}
	p.Fair = u256.SaturatingSub(q.Credit, idle)
	p.Fair.Div(&p.Fair, uint256.NewInt(count))
	others.Add(&others, &idle)
	free := u256.SaturatingSub(q.Credit, others)
	if p.Tell = p.Fair; !p.Fair.Lt(&p.Held) {
		if p.Tell = u256.Min(p.Fair, free); p.Tell.Lt(&p.Held) {
			p.Tell = p.Held // the others have to let go first
		}
	}
	return p, nil
}

// claimant is the lease as one that shares its payer's credit.
func (r *Lease) claimant() Claimant {
	return claimantOf(r.lease.ID, r.lease.Terms, r.lease.MaxDebt)
}

func claimantOf(id common.Hash, t channel.Terms, credit uint256.Int) Claimant {
	return Claimant{Lease: id, Channel: t.ID(), Payer: t.Payer, Credit: credit}
}

// portion asks for the share that the lease's node is to hear of.
func (r *Lease) portion(ctx context.Context) (Portion, error) {
	if r.lease.Balance.Share.Load() == nil { // its node may never have been told of one
		if err := r.shares.begin(ctx, r.claimant(), r.lease.MaxDebt); err != nil {
			return Portion{}, err
		}
	}
	return r.shares.Ask(ctx, r.claimant())
}

// told keeps what the lease's node has heard: ours, unless it knows of something newer. That is so where our database is from
// before, a copy or a server that was behind: then its first answer to this process says so, or it names a version that this
// process gave. Any other that is newer no gateway gave, and with it a node would have what its payer's other leases are to have.
func (r *Lease) told(ctx context.Context, p Portion, there nodelink.Lease) error {
	known := !r.heard || there.CreditVersion <= r.gave
	r.heard, r.gave = true, max(r.gave, p.Version)
	if known && there.CreditVersion > p.Version && there.Credit != nil {
		heard := u256.Min(there.Credit.Int, r.lease.MaxDebt) // it serves no more, whatever it was told
		return r.shares.behind(ctx, r.lease.ID, heard, min(there.CreditVersion, math.MaxInt64>>1))
	}
	r.lease.Balance.Share.Store(&p.Tell)
	return r.shares.Heard(ctx, r.lease.ID, p)
}

// shareWait is how long a lease that begins waits for its payer's others to let go
// of their parts of the credit: each hears of it once a second.
const shareWait = 3 * time.Second

// MakeRoom finds the share of a lease that begins. It refuses where neither that
// nor what is paid in advance lets it run at all.
func (n *Nodes) MakeRoom(ctx context.Context, req placement.Request) (Portion, error) {
	price, err := req.Offer.Price()
	if err != nil {
		return Portion{}, err
	}
	credit, err := price.Charge(req.Offer.Credit * uint64(time.Second))
	if err != nil {
		return Portion{}, err
	}
	need, err := price.Charge(uint64(req.GPUs) * uint64(4*n.Config.Tick))
	if err != nil {
		return Portion{}, err
	}
	if err := n.booked(ctx, req.Channel); err != nil {
		return Portion{}, err
	}
	shares, q := n.Config.Shares, claimantOf(req.LeaseID, req.Channel.Terms, credit)
	if err := shares.begin(ctx, q, uint256.Int{}); err != nil {
		return Portion{}, err
	}
	for deadline := time.Now().Add(shareWait); ; {
		p, err := shares.Ask(ctx, q)
		if err != nil {
			return p, err
		}
		late := time.Now().After(deadline)
		if !late && p.Tell.Lt(&p.Fair) {
			n.Config.Accounts.Wake(q.Payer)
			if err := chain.Pause(ctx, n.Config.Tick/2); err == nil {
				continue
			}
		}
		room, left := u256.SaturatingSub(payercredit.Collectible(req.Channel, shares.Row), req.Channel.Spent), uint256.Int{}
		if !p.Tell.IsZero() {
			room, left = req.Channel.Available(), u256.SaturatingSub(p.Tell, req.Channel.Owed()) // which uses of the share what it is
		}
		if room.Add(&room, &left); !room.Lt(&need) {
			return p, nil
		}
		return p, errors.Join(shares.end(ctx, q.Lease),
			wire.InsufficientBalance.With("payer %s has used its credit, on this channel or by other leases: pay those, or pay for this one in advance, by a voucher that is at least %s over what channel %s has spent and settled",
				q.Payer, units.Format(u256.Max(need, shares.Row), n.Config.Decimals), q.Channel))
	}
}
