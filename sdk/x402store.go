package sdk

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/internal/database"
)

//go:embed migrations/x402/*.sql migrations/x402/postgres/*.sql
var x402Migrations embed.FS

// x402Store is what must not be forgotten of x402 beside channels and leases.
type x402Store struct{ db *store.DB }

func openX402Store(ctx context.Context, db *store.DB) (x402Store, error) {
	files, err := fs.Sub(x402Migrations, "migrations/x402")
	if err == nil {
		err = db.Migrate(ctx, "x402", files)
	}
	return x402Store{db}, err
}

// x402Channel is what is kept of a channel beside what every payee keeps.
type x402Channel struct {
	Prepaid     uint256.Int // told as charged, cumulative; what of it is not used is credit
	Reserved    uint256.Int // what may be charged at most until the next request, cumulative
	RefundNonce uint256.Int
	Asserted    uint256.Int // signed for by the payer as charged and not known here: see x402Desk.behind
}

// channel returns what is kept of a channel: zero if there is nothing.
func (s x402Store) channel(ctx context.Context, id common.Hash) (c x402Channel, err error) {
	var row struct {
		Prepaid     string `db:"prepaid"`
		Reserved    string `db:"reserved"`
		RefundNonce string `db:"refund_nonce"`
		Asserted    string `db:"asserted"`
	}
	db := s.db.View()
	err = db.GetContext(ctx, &row, db.Rebind(`SELECT prepaid, reserved, refund_nonce, asserted FROM x402_channels WHERE channel = ?`), id.Hex())
	if errors.Is(err, sql.ErrNoRows) {
		return c, nil
	}
	for _, field := range []struct {
		text string
		into *uint256.Int
	}{{row.Prepaid, &c.Prepaid}, {row.Reserved, &c.Reserved}, {row.RefundNonce, &c.RefundNonce}, {row.Asserted, &c.Asserted}} {
		if err == nil {
			err = field.into.SetFromDecimal(field.text)
		}
	}
	if err != nil {
		return c, fmt.Errorf("x402's notes of channel %s: %w", id, err)
	}
	return c, nil
}

// set changes one column of a channel's notes.
func (s x402Store) set(tx *sqlx.Tx, id common.Hash, column string, value uint256.Int) error {
	_, err := tx.Exec(tx.Rebind(`INSERT INTO x402_channels (channel, `+column+`) VALUES (?, ?)
		ON CONFLICT (channel) DO UPDATE SET `+column+` = excluded.`+column), id.Hex(), value.Dec())
	return err
}

func (s x402Store) setNonce(ctx context.Context, id common.Hash, nonce uint256.Int) error {
	return s.db.Update(ctx, func(tx *sqlx.Tx) error { return s.set(tx, id, "refund_nonce", nonce) })
}

// carried is what a channel used and was not charged for, in metering.Fractions,
// and what it may be charged up to.
func (s x402Store) carried(tx *sqlx.Tx, id common.Hash) (parts uint64, reserved uint256.Int, err error) {
	var row struct {
		Carried  uint64 `db:"carried"`
		Reserved string `db:"reserved"`
	}
	err = tx.Get(&row, tx.Rebind(`SELECT carried, reserved FROM x402_channels WHERE channel = ?`), id.Hex())
	if errors.Is(err, sql.ErrNoRows) {
		return 0, reserved, nil
	}
	if err == nil {
		err = reserved.SetFromDecimal(row.Reserved)
	}
	if err != nil {
		return 0, reserved, fmt.Errorf("x402's notes of channel %s: %w", id, err)
	}
	return row.Carried, reserved, nil
}

func (s x402Store) setCarried(tx *sqlx.Tx, id common.Hash, parts uint64) error {
	_, err := tx.Exec(tx.Rebind(`INSERT INTO x402_channels (channel, carried) VALUES (?, ?)
		ON CONFLICT (channel) DO UPDATE SET carried = excluded.carried`), id.Hex(), int64(parts))
	return err
}

// x402Note is a request as it stands on disk: what it was admitted with and, if
// it was answered, what it got.
type x402Note struct {
	Channel      string `db:"channel"`
	MaxClaimable string `db:"max_claimable"`
	Hash         string `db:"hash"`
	Kind         string `db:"kind"`
	Base         string `db:"base"`
	Charged      string `db:"charged"`
	Lease        string `db:"lease"`
	Sequence     int64  `db:"sequence"`
	Tx           string `db:"tx"`
	Moved        string `db:"moved"`
	Status       int    `db:"status"`
	Header       string `db:"header"`
	Body         []byte `db:"body"`
	AnsweredAt   int64  `db:"answered_at"`
	Broken       int64  `db:"broken"`
	CreatedAt    int64  `db:"created_at"`
}

var x402NoteColumns = database.Columns[x402Note]()

// What is kept of a channel's requests, and how long.
const (
	keptRequests = 4
	keptFor      = 24 * time.Hour
)

// admit writes down what a request may use before anything is used, and forgets
// the oldest.
func (s x402Store) admit(ctx context.Context, n x402Note, reserved uint256.Int) error {
	n.CreatedAt = time.Now().UnixMilli()
	id := common.HexToHash(n.Channel)
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		err := s.set(tx, id, "reserved", reserved)
		if err == nil && n.Charged != "" { // the client is told at once
			_, err = tx.Exec(tx.Rebind(`UPDATE x402_channels SET prepaid = ? WHERE channel = ?`), n.Charged, n.Channel)
		}
		if err != nil {
			return err
		}
		return s.put(tx, n)
	})
}

// put writes a note, as its channel's newest. Notes are ordered by a counter: by a
// clock that was set back a new one would be the oldest, and be forgotten at once.
func (s x402Store) put(tx *sqlx.Tx, n x402Note) error {
	_, err := tx.NamedExec(`INSERT INTO x402_requests (channel, max_claimable, hash, kind, base, charged, lease, sequence, tx, moved,
			status, header, body, answered_at, broken, created_at, number)
		VALUES (:channel, :max_claimable, :hash, :kind, :base, :charged, :lease, :sequence, :tx, :moved,
			:status, :header, :body, :answered_at, :broken, :created_at,
			(SELECT COALESCE(MAX(number), 0) + 1 FROM x402_requests WHERE channel = :channel))
		ON CONFLICT (channel, max_claimable, hash) DO UPDATE SET kind = excluded.kind, base = excluded.base, charged = excluded.charged,
			lease = excluded.lease, sequence = excluded.sequence, tx = excluded.tx, moved = excluded.moved, status = excluded.status,
			header = excluded.header, body = excluded.body, answered_at = excluded.answered_at, broken = excluded.broken,
			created_at = excluded.created_at, number = excluded.number`, n)
	if err != nil {
		return err
	}
	_, err = tx.Exec(tx.Rebind(`DELETE FROM x402_requests WHERE channel = ? AND number <
		(SELECT MIN(number) FROM (SELECT number FROM x402_requests WHERE channel = ? ORDER BY number DESC LIMIT ?) newest)`),
		n.Channel, n.Channel, keptRequests)
	if err == nil { // of all channels: who does not come back leaves nothing
		_, err = tx.Exec(tx.Rebind(`DELETE FROM x402_requests WHERE created_at < ?`), time.Now().Add(-keptFor).UnixMilli())
	}
	return err
}

// noted finds a request that was admitted before; ok is false if it was not.
func (s x402Store) noted(ctx context.Context, id common.Hash, most uint256.Int, hash string) (n x402Note, ok bool, err error) {
	db := s.db.View()
	err = db.GetContext(ctx, &n, db.Rebind(`SELECT `+x402NoteColumns+` FROM x402_requests WHERE channel = ? AND max_claimable = ? AND hash = ?`), id.Hex(), most.Dec(), hash)
	if errors.Is(err, sql.ErrNoRows) {
		return n, false, nil
	}
	return n, err == nil, err
}

// answered remembers that a request got its answer, or that nobody was there to
// take it.
func (s x402Store) answered(ctx context.Context, n x402Note, broken bool) error {
	lost := 0
	if broken {
		lost = 1
	}
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.Exec(tx.Rebind(`UPDATE x402_requests SET answered_at = ?, broken = ? WHERE channel = ? AND max_claimable = ? AND hash = ?`),
			time.Now().UnixMilli(), lost, n.Channel, n.MaxClaimable, n.Hash)
		return err
	})
}

// prepay raises what a channel was told as charged.
func (s x402Store) prepay(ctx context.Context, id common.Hash, prepaid uint256.Int) error {
	return s.db.Update(ctx, func(tx *sqlx.Tx) error { return s.set(tx, id, "prepaid", prepaid) })
}

// assert remembers what a payer's voucher says was charged.
func (s x402Store) assert(ctx context.Context, id common.Hash, base uint256.Int) error {
	return s.db.Update(ctx, func(tx *sqlx.Tx) error { return s.set(tx, id, "asserted", base) })
}

// x402Tab is a channel of x402 as a request finds it.
type x402Tab struct {
	channel.State
	note    x402Channel
	charged uint256.Int // x402's chargedCumulativeAmount
	known   bool
}
