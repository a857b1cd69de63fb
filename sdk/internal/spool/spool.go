// Package spool is a node's own disk: what it metered and signed, and what its gateways said of the money, until a gateway has it all.
package spool

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/nodelink"
	"github.com/gpupay/gpupay/sdk/wire"
)

//go:embed migrations/node/*.sql
var migrations embed.FS

// Spool is a node's own disk: the tables of leases and records that a provider has, and beside them what the node's gateways said and
// took.
type Spool struct {
	leasestore.Store
}

// Row is what a node knows of a lease's channel.
type Row struct {
	Lease     string `db:"lease"`
	Terms     string `db:"terms"`
	Accepted  string `db:"accepted"`
	Deposit   string `db:"deposit"`
	Credit    string `db:"credit"`
	Delivered int64  `db:"delivered"`
	Closed    int64  `db:"closed"`
	Version   int64  `db:"credit_version"` // of Credit
	Term      int64  `db:"owner_term"`     // of the newest gateway that was heard of: see fence
	WrittenAt int64  `db:"written_at"`     // when the gateways wrote the lease down; it grows from lease to lease of a channel
}

var columns = database.Columns[Row]()

// Open opens the file at a path, and brings its tables up to date.
func Open(ctx context.Context, path string) (Spool, error) {
	db, err := database.Open(ctx, path, "node", migrations, "migrations/node")
	if err != nil {
		return Spool{}, err
	}
	if db.Shared() {
		return Spool{}, errors.Join(errors.New("a spool is a file on the node's own disk, and no server's"), db.Close())
	}
	files, err := fs.Sub(leasestore.Migrations, "migrations/provider")
	if err == nil {
		err = db.Migrate(ctx, "provider", files)
	}
	if err != nil {
		return Spool{}, errors.Join(fmt.Errorf("spool %s: %w", path, err), db.Close())
	}
	return Spool{leasestore.NewSpooled(db)}, nil
}

// Put keeps what the channel of a lease holds when the lease begins.
func (s Spool) Put(ctx context.Context, q nodelink.Start) error {
	c := q.ChannelState()
	terms, err := json.Marshal(c.Terms)
	if err != nil {
		return err
	}
	return s.DB.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.NamedExecContext(ctx, `INSERT INTO spool (lease, terms, accepted, deposit, credit, credit_version, written_at)
			VALUES (:lease, :terms, :accepted, :deposit, :credit, :credit_version, :written_at) ON CONFLICT (lease) DO NOTHING`,
			Row{Lease: q.LeaseID.Hex(), Terms: string(terms), Accepted: c.Accepted.Dec(), Deposit: c.Deposit.Dec(),
				Credit: creditText(q.Credit), Version: q.Version(), WrittenAt: q.WrittenAt})
		return err
	})
}

func creditText(credit *wire.Amount) string {
	if credit == nil {
		return ""
	}
	return credit.Dec()
}

// Share is what a gateway said last of how much a lease may owe beyond what is vouchered; nil where none said it.
func (s Spool) Share(ctx context.Context, lease common.Hash) (*uint256.Int, error) {
	row, err := s.Get(ctx, s.DB.View(), lease)
	if err != nil {
		return nil, err
	}
	return row.Share()
}

// Share is the row's Credit, base units; nil where no gateway said one.
func (r Row) Share() (*uint256.Int, error) {
	if r.Credit == "" {
		return nil, nil
	}
	amount, err := channel.ParseAmount(r.Credit)
	return &amount, err
}

// Get reads what is known of a lease's channel.
func (s Spool) Get(ctx context.Context, q sqlx.QueryerContext, lease common.Hash) (Row, error) {
	var row Row
	err := sqlx.GetContext(ctx, q, &row, `SELECT `+columns+` FROM spool WHERE lease = ?`, lease.Hex())
	return row, err
}

// Channel is the channel of a lease, as a gateway described it last.
func (s Spool) Channel(ctx context.Context, row leasestore.Row) (channel.State, error) {
	known, err := s.Get(ctx, s.DB.View(), common.HexToHash(row.ID))
	if err != nil {
		return channel.State{}, fmt.Errorf("channel of lease %s: %w", row.ID, err)
	}
	return known.State()
}

// State is the channel that the row describes.
func (r Row) State() (channel.State, error) {
	s := channel.State{Status: channel.Open}
	if err := json.Unmarshal([]byte(r.Terms), &s.Terms); err != nil {
		return s, fmt.Errorf("stored terms of lease %s: %w", r.Lease, err)
	}
	s.ID = s.Terms.ID()
	var bad error
	amount := func(text string) uint256.Int {
		v, err := channel.ParseAmount(text)
		bad = errors.Join(bad, err)
		return v
	}
	s.Accepted, s.Deposit = amount(r.Accepted), amount(r.Deposit)
	return s, bad
}

// Sync keeps what a gateway says of a lease's money and of the records that it has, and returns what counts: what was vouchered never
// falls, whichever gateway is behind, and a share that is older than the one that was heard does not count. One hear of a lease runs
// at a time.
func (s Spool) Sync(ctx context.Context, row leasestore.Row, q nodelink.Sync) (Row, channel.State, error) {
	known, err := s.Get(ctx, s.DB.View(), common.HexToHash(row.ID))
	if err != nil {
		return known, channel.State{}, err
	}
	was, err := known.State()
	if err != nil {
		return known, was, err
	}
	now, next := was, known
	now.Deposit = q.Deposit.Int
	if q.Accepted.Gt(&now.Accepted) {
		now.Accepted = q.Accepted.Int
	}
	if q.Credit != nil && (q.CreditVersion == nil || *q.CreditVersion >= known.Version) {
		next.Credit, next.Version = q.Credit.Dec(), max(known.Version, q.Version())
	}
	next.Accepted, next.Deposit, next.Delivered = now.Accepted.Dec(), now.Deposit.Dec(), max(known.Delivered, int64(q.After))
	if next == known {
		return known, now, nil
	}
	err = s.DB.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.NamedExecContext(ctx, `UPDATE spool SET accepted = :accepted, deposit = :deposit, credit = :credit, credit_version = :credit_version,
			delivered = :delivered WHERE lease = :lease`, next)
		return err
	})
	return next, now, err
}

// SetClosed marks a lease of which no gateway asks for more.
func (s Spool) SetClosed(ctx context.Context, lease common.Hash) error {
	return s.DB.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE spool SET closed = 1 WHERE lease = ?`, lease.Hex())
		return err
	})
}

// maxOpen is the most leases that are listed: what was never closed, because its gateway is no more, does not crowd out the rest.
const maxOpen = 10_000

// Unclosed returns the leases that are not closed, those that run first.
func (s Spool) Unclosed(ctx context.Context) (rows []leasestore.Row, err error) {
	err = s.DB.View().SelectContext(ctx, &rows, `SELECT `+leasestore.Columns+` FROM leases JOIN spool ON spool.lease = leases.id
		WHERE spool.closed = 0 ORDER BY state = 'ended', started_at DESC LIMIT ?`, maxOpen)
	return rows, err
}

// Waiting is how many records no gateway has yet.
func (s Spool) Waiting(ctx context.Context) (n int64, err error) {
	err = s.DB.View().GetContext(ctx, &n, `SELECT COALESCE(SUM(sequence - delivered), 0) FROM leases JOIN spool ON spool.lease = leases.id
		WHERE spool.closed = 0 AND sequence > delivered`)
	return n, err
}

// Kept is how long a lease is kept after its end, when its gateway has all of it: somebody may want to look.
const Kept = 30 * 24 * time.Hour

// Forget deletes closed leases that ended before a time, with their records: the gateways keep these for good.
func (s Spool) Forget(ctx context.Context, before time.Time) error {
	const old = `ended_at < ? AND state = 'ended' AND id IN (SELECT lease FROM spool WHERE closed = 1)`
	return s.DB.Update(ctx, func(tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM records WHERE lease IN (SELECT id FROM leases WHERE `+old+`)`, before.Unix()); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM leases WHERE `+old, before.Unix()); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM spool WHERE closed = 1 AND lease NOT IN (SELECT id FROM leases)`); err != nil {
			return err
		}
		return leasestore.ForgetOffers(ctx, tx, before, nil)
	})
}

// Fence has it on disk that a gateway of such a term was heard, and refuses one of an older term than any that was: what it says
// would raise vouchers, end a lease or begin one that another gateway runs by now. A gateway that was stopped for longer than Takeover,
// and goes on, believes for a moment that it still runs its leases. In the database it finds no row of its term; a node has no part in
// that database.
func (s Spool) Fence(ctx context.Context, lease common.Hash, said nodelink.Fence) error {
	if said.Term == nil {
		return nil
	}
	known, err := s.Get(ctx, s.DB.View(), lease)
	if err != nil || known.Term == *said.Term {
		return err
	}
	err = s.DB.Update(ctx, func(tx *sqlx.Tx) error {
		if known, err = s.Get(ctx, tx, lease); err != nil || known.Term >= *said.Term {
			return err
		}
		_, err := tx.ExecContext(ctx, `UPDATE spool SET owner_term = ? WHERE lease = ?`, *said.Term, lease.Hex())
		return err
	})
	if err != nil || known.Term <= *said.Term {
		return err
	}
	refusal := nodelink.Deposed.With("lease %s is another gateway's since term %d, and this is said in term %d", lease, known.Term, *said.Term)
	refusal.Term = &known.Term
	return refusal
}

// Precedes refuses the beginning of a lease that the gateways wrote down before the one that runs on its channel: who asks for it
// was stopped since, and the renter has begun another one by now.
func (s Spool) Precedes(ctx context.Context, running common.Hash, q nodelink.Start) error {
	known, err := s.Get(ctx, s.DB.View(), running)
	if err != nil || q.WrittenAt == 0 || known.WrittenAt < q.WrittenAt {
		return err
	}
	return nodelink.Deposed.With("lease %s runs on its channel, and was written down after lease %s", running, q.LeaseID)
}
