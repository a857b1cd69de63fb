package sdk

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
var nodeMigrations embed.FS

// spool is a node's own disk: the leases and records of a provider's database,
// and beside them what its gateways said and took.
type spool struct {
	leasestore.Store
}

// spoolRow is what a node knows of a lease's channel.
type spoolRow struct {
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

var spoolColumns = database.Columns[spoolRow]()

func openSpool(ctx context.Context, path string) (spool, error) {
	db, err := database.Open(ctx, path, "node", nodeMigrations, "migrations/node")
	if err != nil {
		return spool{}, err
	}
	if db.Shared() {
		return spool{}, errors.Join(errors.New("a spool is a file on the node's own disk, and no server's"), db.Close())
	}
	files, err := fs.Sub(leasestore.Migrations, "migrations/provider")
	if err == nil {
		err = db.Migrate(ctx, "provider", files)
	}
	if err != nil {
		return spool{}, errors.Join(fmt.Errorf("spool %s: %w", path, err), db.Close())
	}
	return spool{leasestore.NewSpooled(db)}, nil
}

// put keeps what the channel of a lease holds when the lease begins.
func (s spool) put(ctx context.Context, q nodelink.Start) error {
	c := q.ChannelState()
	terms, err := json.Marshal(c.Terms)
	if err != nil {
		return err
	}
	return s.DB.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.NamedExecContext(ctx, `INSERT INTO spool (lease, terms, accepted, deposit, credit, credit_version, written_at)
			VALUES (:lease, :terms, :accepted, :deposit, :credit, :credit_version, :written_at) ON CONFLICT (lease) DO NOTHING`,
			spoolRow{Lease: q.LeaseID.Hex(), Terms: string(terms), Accepted: c.Accepted.Dec(), Deposit: c.Deposit.Dec(),
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

// share is what a gateway said last of how much a lease may owe beyond what is
// vouchered.
func (s spool) share(ctx context.Context, lease common.Hash) (*uint256.Int, error) {
	row, err := s.get(ctx, s.DB.View(), lease)
	if err != nil {
		return nil, err
	}
	return row.share()
}

func (r spoolRow) share() (*uint256.Int, error) {
	if r.Credit == "" {
		return nil, nil
	}
	amount, err := channel.ParseAmount(r.Credit)
	return &amount, err
}

func (s spool) get(ctx context.Context, q sqlx.QueryerContext, lease common.Hash) (spoolRow, error) {
	var row spoolRow
	err := sqlx.GetContext(ctx, q, &row, `SELECT `+spoolColumns+` FROM spool WHERE lease = ?`, lease.Hex())
	return row, err
}

// channel is the channel of a lease, as a gateway described it last.
func (s spool) channel(ctx context.Context, row leasestore.Row) (channel.State, error) {
	known, err := s.get(ctx, s.DB.View(), common.HexToHash(row.ID))
	if err != nil {
		return channel.State{}, fmt.Errorf("channel of lease %s: %w", row.ID, err)
	}
	return known.state()
}

func (r spoolRow) state() (channel.State, error) {
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

// hear keeps what a gateway says of a lease's money and of the records it has,
// and returns what counts: what was vouchered never falls, whichever gateway is
// behind, and a share that is older than the one that was heard does not count.
// One hear of a lease runs at a time.
func (s spool) hear(ctx context.Context, row leasestore.Row, q nodelink.Sync) (spoolRow, channel.State, error) {
	known, err := s.get(ctx, s.DB.View(), common.HexToHash(row.ID))
	if err != nil {
		return known, channel.State{}, err
	}
	was, err := known.state()
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

// close marks a lease of which no gateway asks for more.
func (s spool) close(ctx context.Context, lease common.Hash) error {
	return s.DB.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE spool SET closed = 1 WHERE lease = ?`, lease.Hex())
		return err
	})
}

// maxOpen is the most leases that are listed: what was never closed, because its
// gateway is no more, does not crowd out the rest.
const maxOpen = 10_000

// open returns the leases that are not closed, those that run first.
func (s spool) open(ctx context.Context) (rows []leasestore.Row, err error) {
	err = s.DB.View().SelectContext(ctx, &rows, `SELECT `+leasestore.Columns+` FROM leases JOIN spool ON spool.lease = leases.id
		WHERE spool.closed = 0 ORDER BY state = 'ended', started_at DESC LIMIT ?`, maxOpen)
	return rows, err
}

// waiting is how many records no gateway has yet.
func (s spool) waiting(ctx context.Context) (n int64, err error) {
	err = s.DB.View().GetContext(ctx, &n, `SELECT COALESCE(SUM(sequence - delivered), 0) FROM leases JOIN spool ON spool.lease = leases.id
		WHERE spool.closed = 0 AND sequence > delivered`)
	return n, err
}

// spoolKeep is how long a lease is kept after its end, when its gateway has all of
// it: somebody may want to look.
const spoolKeep = 30 * 24 * time.Hour

// forget makes room: the gateways keep the records for good.
func (s spool) forget(ctx context.Context, before time.Time) error {
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
