package x402server

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
	"github.com/gpupay/gpupay/internal/u256"
)

// Migrations are those of the journal.
//
//go:embed migrations/x402/*.sql migrations/x402/postgres/*.sql
var Migrations embed.FS

// Journal is what must not be forgotten of x402 beside channels and leases: what each channel was told, and its newest requests.
type Journal struct{ DB *store.DB }

// OpenJournal opens the journal in a database.
func OpenJournal(ctx context.Context, db *store.DB) (Journal, error) {
	files, err := fs.Sub(Migrations, "migrations/x402")
	if err == nil {
		err = db.Migrate(ctx, "x402", files)
	}
	return Journal{db}, err
}

// Balance is what is kept of a channel beside what every payee keeps.
type Balance struct {
	Prepaid     uint256.Int // told as charged, cumulative; what of it is not used is credit
	Reserved    uint256.Int // what may be charged at most until the next request, cumulative
	RefundNonce uint256.Int
	Asserted    uint256.Int // signed for by the payer as charged and not known here: see Accounts.Behind
}

// Balance returns what is kept of a channel: zero if there is nothing.
func (j Journal) Balance(ctx context.Context, id common.Hash) (c Balance, err error) {
	var row struct {
		Prepaid     string `db:"prepaid"`
		Reserved    string `db:"reserved"`
		RefundNonce string `db:"refund_nonce"`
		Asserted    string `db:"asserted"`
	}
	db := j.DB.View()
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

// Set changes one column of a channel's notes.
func (j Journal) Set(tx *sqlx.Tx, id common.Hash, column string, value uint256.Int) error {
	_, err := tx.Exec(tx.Rebind(`INSERT INTO x402_channels (channel, `+column+`) VALUES (?, ?)
		ON CONFLICT (channel) DO UPDATE SET `+column+` = excluded.`+column), id.Hex(), value.Dec())
	return err
}

// setNonce remembers the nonce of a channel's next refund.
func (j Journal) setNonce(ctx context.Context, id common.Hash, nonce uint256.Int) error {
	return j.DB.Update(ctx, func(tx *sqlx.Tx) error { return j.Set(tx, id, "refund_nonce", nonce) })
}

// carried is what a channel used and was not charged for, in metering.Fractions, and what it may be charged up to.
func (j Journal) carried(tx *sqlx.Tx, id common.Hash) (parts uint64, reserved uint256.Int, err error) {
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

// setCarried is the inverse of carried.
func (j Journal) setCarried(tx *sqlx.Tx, id common.Hash, parts uint64) error {
	_, err := tx.Exec(tx.Rebind(`INSERT INTO x402_channels (channel, carried) VALUES (?, ?)
		ON CONFLICT (channel) DO UPDATE SET carried = excluded.carried`), id.Hex(), int64(parts))
	return err
}

// Entry is a request as it stands on disk: what it was admitted with and, if it was answered, what it got.
type Entry struct {
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

const entryColumns = `channel, max_claimable, hash, kind, base, charged, lease, sequence, tx, moved, status, header, body, answered_at, broken, created_at`

// Reserves is what a request may be charged up to, cumulative.
func (n Entry) Reserves() (uint256.Int, error) {
	most, err := channel.ParseAmount(n.MaxClaimable)
	if err == nil && most.IsZero() {
		err = errors.New("x402: a voucher over nothing reserves nothing")
	}
	most.SubUint64(&most, 1)
	return most, err
}

// Charge is the entry of a request that was served, when its channel had spent so
// much: no more than it reserved is told as charged.
func (n Entry) Charge(spent uint256.Int) (Entry, error) {
	n.CreatedAt = time.Now().UnixMilli()
	if n.Charged != "" { // told before it was served
		return n, nil
	}
	charged, err := channel.ParseAmount(n.Base)
	if err != nil {
		return n, err
	}
	most, err := n.Reserves()
	if spent.Gt(&charged) {
		charged = u256.Min(spent, most)
	}
	n.Charged = charged.Dec()
	return n, err
}

// What is kept of a channel's requests, and how long.
const (
	keptRequests = 4
	keptFor      = 24 * time.Hour
)

// Admit writes down what a request may use before anything is used, and forgets the oldest.
func (j Journal) Admit(ctx context.Context, n Entry, reserved uint256.Int) error {
	n.CreatedAt = time.Now().UnixMilli()
	id := common.HexToHash(n.Channel)
	return j.DB.Update(ctx, func(tx *sqlx.Tx) error {
		err := j.Set(tx, id, "reserved", reserved)
		if err == nil && n.Charged != "" { // the client is told at once
			_, err = tx.Exec(tx.Rebind(`UPDATE x402_channels SET prepaid = ? WHERE channel = ?`), n.Charged, n.Channel)
		}
		if err != nil {
			return err
		}
		return j.Put(tx, n)
	})
}

// Put writes an entry, as its channel's newest. Entries are ordered by a counter: by a
// clock that was set back a new one would be the oldest, and be forgotten at once.
func (j Journal) Put(tx *sqlx.Tx, n Entry) error {
	_, err := tx.NamedExec(`INSERT INTO x402_requests (`+entryColumns+`, number)
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

// Find finds a request that was admitted before; ok is false if it was not.
func (j Journal) Find(ctx context.Context, id common.Hash, most uint256.Int, hash string) (n Entry, ok bool, err error) {
	db := j.DB.View()
	err = db.GetContext(ctx, &n, db.Rebind(`SELECT `+entryColumns+` FROM x402_requests WHERE channel = ? AND max_claimable = ? AND hash = ?`), id.Hex(), most.Dec(), hash)
	if errors.Is(err, sql.ErrNoRows) {
		return n, false, nil
	}
	return n, err == nil, err
}

// Answered remembers that a request got its answer, or that nobody was there to take it.
func (j Journal) Answered(ctx context.Context, n Entry, broken bool) error {
	lost := 0
	if broken {
		lost = 1
	}
	return j.DB.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.Exec(tx.Rebind(`UPDATE x402_requests SET answered_at = ?, broken = ? WHERE channel = ? AND max_claimable = ? AND hash = ?`),
			time.Now().UnixMilli(), lost, n.Channel, n.MaxClaimable, n.Hash)
		return err
	})
}

// Prepay raises what a channel was told as charged.
func (j Journal) Prepay(ctx context.Context, id common.Hash, prepaid uint256.Int) error {
	return j.DB.Update(ctx, func(tx *sqlx.Tx) error { return j.Set(tx, id, "prepaid", prepaid) })
}

// assert remembers what a payer's voucher says was charged.
func (j Journal) assert(ctx context.Context, id common.Hash, base uint256.Int) error {
	return j.DB.Update(ctx, func(tx *sqlx.Tx) error { return j.Set(tx, id, "asserted", base) })
}
