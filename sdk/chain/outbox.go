package chain

import (
	"context"
	"crypto/rand"
	"database/sql"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/internal/refusal"
)

//go:embed migrations/*.sql migrations/postgres/*.sql
var migrations embed.FS

// A Store keeps on disk what must not be forgotten about the chain: transactions (the outbox), blocks acted on, and since
// when channels have waited for settlement.
type Store struct {
	db *store.DB
}

// OpenStore brings the tables of this package up to date in a database.
func OpenStore(ctx context.Context, db *store.DB) (*Store, error) {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	if err := db.Migrate(ctx, "chain", files); err != nil {
		return nil, err
	}
	return &Store{db: db}, nil
}

// TxID names a transaction for as long as it is on disk, whatever hash it is mined under.
type TxID string

func newTxID() TxID {
	var b [16]byte
	rand.Read(b[:]) // never fails
	return TxID(hex.EncodeToString(b[:]))
}

// TxState is how far a transaction got.
type TxState string

// A pending transaction is on disk and wants to be mined; a mined one may still be undone; a final one is left alone.
const (
	Pending TxState = "pending"
	Mined   TxState = "mined"
	Final   TxState = "final"
)

// A Tx is one row of the outbox.
type Tx struct {
	ID        TxID
	Chain     uint64
	Sender    common.Address
	Nonce     uint64
	Call      Call
	Gas       uint64
	State     TxState
	Hash      common.Hash // of the version that was mined
	Block     uint64
	BlockHash common.Hash
	Succeeded bool
	RanOut    bool     // the version that was mined reverted and had used up its gas
	Cost      *big.Int // wei, of the version that was mined
	Most      *big.Int // wei, the most that it may cost; nil: what MaxFee allows. See Call.Budget
	DataFee   *big.Int // wei, what a rollup was expected to charge for its data when it was submitted; in Cost once it is mined
	CreatedAt time.Time
	Attempts  []Attempt // oldest first; those under an earlier nonce included
}

// newest is the version that is to be mined: the last one under the transaction's nonce. Versions under an earlier nonce,
// which seemed to be lost, are only looked for.
func (tx Tx) newest() Attempt {
	for _, a := range slices.Backward(tx.Attempts) {
		if a.Signed.Nonce() == tx.Nonce {
			return a
		}
	}
	return tx.Attempts[len(tx.Attempts)-1]
}

// An Attempt is one signed version of a transaction.
type Attempt struct {
	Signed    *types.Transaction
	CreatedAt time.Time
	SentAt    time.Time // zero: perhaps never broadcast
	Answer    refusal.Answer
}

type txRow struct {
	ID        string `db:"id"`
	Chain     int64  `db:"chain"`
	Sender    string `db:"sender"`
	Nonce     int64  `db:"nonce"`
	Kind      string `db:"kind"`
	Recipient string `db:"recipient"`
	Data      string `db:"data"`
	Gas       int64  `db:"gas"`
	State     string `db:"state"`
	Hash      string `db:"hash"`
	Block     int64  `db:"block"`
	BlockHash string `db:"block_hash"`
	Succeeded int64  `db:"succeeded"`
	RanOut    int64  `db:"ran_out"`
	Cost      string `db:"cost"`
	DataFee   string `db:"data_fee"`
	Most      string `db:"most"`
	CreatedAt int64  `db:"created_at"`
}

// txColumns are named, so that a table which a newer program has widened is still read.
const txColumns = `chain_tx.id, chain_tx.chain, chain_tx.sender, chain_tx.nonce, chain_tx.kind, chain_tx.recipient, chain_tx.data, chain_tx.gas,
	chain_tx.state, chain_tx.hash, chain_tx.block, chain_tx.block_hash, chain_tx.succeeded, chain_tx.ran_out, chain_tx.cost, chain_tx.data_fee, chain_tx.most, chain_tx.created_at`

type attemptRow struct {
	Hash      string `db:"hash"`
	Tx        string `db:"tx"`
	Number    int64  `db:"number"`
	Raw       string `db:"raw"`
	CreatedAt int64  `db:"created_at"`
	SentAt    int64  `db:"sent_at"`
	Answer    string `db:"answer"`
}

// insert puts a new transaction with its first version on disk.
func (s *Store) insert(ctx context.Context, tx Tx) error {
	return s.db.Update(ctx, func(db *sqlx.Tx) error {
		if err := tx.Call.allowed(db); err != nil {
			return err
		}
		return insertTx(ctx, db, tx)
	})
}

// allowed asks the call's guard.
func (c Call) allowed(db *sqlx.Tx) error {
	if c.Guard == nil {
		return nil
	}
	if err := c.Guard(db); err != nil {
		return fmt.Errorf("chain: %s is not sent: %w", c, err)
	}
	return nil
}

func insertTx(ctx context.Context, db *sqlx.Tx, tx Tx) error {
	_, err := db.NamedExecContext(ctx, `INSERT INTO chain_tx (id, chain, sender, nonce, kind, recipient, data, gas, state,
			hash, block, block_hash, succeeded, ran_out, cost, data_fee, most, created_at) VALUES (:id, :chain, :sender, :nonce, :kind, :recipient, :data,
			:gas, :state, :hash, :block, :block_hash, :succeeded, :ran_out, :cost, :data_fee, :most, :created_at)`, toRow(tx))
	if err != nil {
		return fmt.Errorf("chain: writing %s with nonce %d to the outbox: %w", tx.Call, tx.Nonce, err)
	}
	for _, id := range tx.Call.Channels {
		_, err := db.ExecContext(ctx, db.Rebind(`INSERT INTO chain_tx_channel (channel, tx) VALUES (?, ?) ON CONFLICT DO NOTHING`), text(id), tx.ID)
		if err != nil {
			return fmt.Errorf("chain: writing %s to the outbox: %w", tx.Call, err)
		}
	}
	return insertAttempt(ctx, db, tx.ID, 0, tx.Attempts[0])
}

// attempt puts another version of a transaction on disk.
func (s *Store) attempt(ctx context.Context, tx Tx, a Attempt) error {
	return s.db.Update(ctx, func(db *sqlx.Tx) error {
		return insertAttempt(ctx, db, tx.ID, len(tx.Attempts), a)
	})
}

// renumber gives a transaction whose nonce was used by somebody else a new one. Its old versions are kept: a receipt of one
// that comes late says that nothing is to be sent.
func (s *Store) renumber(ctx context.Context, tx Tx, nonce uint64, a Attempt) error {
	return s.db.Update(ctx, func(db *sqlx.Tx) error {
		if _, err := db.ExecContext(ctx, db.Rebind(`UPDATE chain_tx SET nonce = ? WHERE id = ?`), nonce, tx.ID); err != nil {
			return err
		}
		return insertAttempt(ctx, db, tx.ID, len(tx.Attempts), a)
	})
}

// restore gives a renumbered transaction its earlier nonce back, under which it was mined after all, and puts what uses up
// the later one in its place.
func (s *Store) restore(ctx context.Context, tx Tx, nonce uint64, cancel Tx) error {
	return s.db.Update(ctx, func(db *sqlx.Tx) error {
		if _, err := db.ExecContext(ctx, db.Rebind(`UPDATE chain_tx SET nonce = ? WHERE id = ?`), nonce, tx.ID); err != nil {
			return err
		}
		return insertTx(ctx, db, cancel)
	})
}

func insertAttempt(ctx context.Context, db *sqlx.Tx, id TxID, number int, a Attempt) error {
	raw, err := a.Signed.MarshalBinary()
	if err != nil {
		return fmt.Errorf("chain: encoding a transaction: %w", err)
	}
	_, err = db.NamedExecContext(ctx, `INSERT INTO chain_attempt (hash, tx, number, raw, created_at, sent_at)
		VALUES (:hash, :tx, :number, :raw, :created_at, :sent_at)`, attemptRow{
		Hash: text(a.Signed.Hash()), Tx: string(id), Number: int64(number), Raw: hexutil.Encode(raw), CreatedAt: millis(a.CreatedAt), SentAt: millis(a.SentAt),
	})
	if err != nil {
		return fmt.Errorf("chain: writing a transaction's version to the outbox: %w", err)
	}
	return nil
}

// sent remembers when a version was last broadcast, and what the endpoints answered. What one has taken is taken for ever.
func (s *Store) sent(ctx context.Context, hash common.Hash, at time.Time, answer refusal.Answer) error {
	return s.db.Update(ctx, func(db *sqlx.Tx) error {
		_, err := db.ExecContext(ctx, db.Rebind(`UPDATE chain_attempt SET sent_at = ?, answer = CASE WHEN answer = ? THEN answer ELSE ? END
			WHERE hash = ?`), millis(at), string(refusal.Taken), string(answer), text(hash))
		return err
	})
}

// record writes what became of a transaction; when it becomes final, its cost joins the total, once.
func (s *Store) record(ctx context.Context, tx Tx) error {
	return s.db.Update(ctx, func(db *sqlx.Tx) error {
		result, err := db.NamedExecContext(ctx, `UPDATE chain_tx SET state = :state, hash = :hash, block = :block,
			block_hash = :block_hash, succeeded = :succeeded, ran_out = :ran_out, cost = :cost WHERE id = :id AND state <> 'final'`, toRow(tx))
		if err != nil {
			return fmt.Errorf("chain: recording %s: %w", tx.Call, err)
		}
		changed, err := result.RowsAffected()
		if err != nil || changed == 0 || tx.State != Final {
			return err
		}
		return addGas(ctx, db, tx.Chain, tx.Sender, tx.Cost)
	})
}

func addGas(ctx context.Context, db *sqlx.Tx, chain uint64, sender common.Address, cost *big.Int) error {
	total, err := gasTotal(ctx, db, chain, sender)
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, db.Rebind(`INSERT INTO chain_gas (chain, sender, wei) VALUES (?, ?, ?)
		ON CONFLICT (chain, sender) DO UPDATE SET wei = excluded.wei`), chain, text(sender), total.Add(total, cost).String())
	return err
}

// reopen turns a final transaction that the chain has forgotten (a re-org deeper than Finality) into a pending one, and
// takes its cost out of the total again. It reports false if there is no such transaction.
func (s *Store) reopen(ctx context.Context, chain uint64, sender common.Address, nonce uint64) (bool, error) {
	var found bool
	err := s.db.Update(ctx, func(db *sqlx.Tx) error {
		var row txRow
		err := db.GetContext(ctx, &row, db.Rebind(`SELECT `+txColumns+` FROM chain_tx WHERE chain = ? AND sender = ? AND nonce = ? AND state = 'final'`), chain, text(sender), nonce)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		if row.Hash == "" { // it was given up, and who asked for it was told so: only its nonce is needed
			_, err := db.ExecContext(ctx, db.Rebind(`UPDATE chain_tx SET nonce = -1 - nonce WHERE id = ?`), row.ID)
			return err
		}
		found = true
		if _, err := db.ExecContext(ctx, db.Rebind(`UPDATE chain_tx SET state = 'pending', hash = '', block_hash = '', cost = '0' WHERE id = ?`), row.ID); err != nil {
			return err
		}
		if _, err := db.ExecContext(ctx, db.Rebind(`UPDATE chain_attempt SET sent_at = 0 WHERE tx = ?`), row.ID); err != nil {
			return err
		}
		return addGas(ctx, db, chain, sender, new(big.Int).Neg(wei(row.Cost)))
	})
	return found, err
}

// nextNonce is one above the highest nonce ever used here, 0 if none was.
func (s *Store) nextNonce(ctx context.Context, chain uint64, sender common.Address) (uint64, error) {
	return s.above(ctx, chain, sender, "")
}

// nextFinal is one above the highest nonce of a transaction that was mined and is final, 0 if there is none.
func (s *Store) nextFinal(ctx context.Context, chain uint64, sender common.Address) (uint64, error) {
	return s.above(ctx, chain, sender, ` AND state = 'final' AND hash <> ''`)
}

// above is one above the highest nonce of some transactions, 0 if there is none.
func (s *Store) above(ctx context.Context, chain uint64, sender common.Address, which string) (next uint64, err error) {
	db := s.db.View()
	err = db.GetContext(ctx, &next, db.Rebind(`SELECT coalesce(max(nonce) + 1, 0) FROM chain_tx WHERE chain = ? AND sender = ? AND nonce >= 0`+which), chain, text(sender))
	return next, err
}

// countKnown counts the nonces from one on and below another that transactions here have, but those of one kind.
func (s *Store) countKnown(ctx context.Context, chain uint64, sender common.Address, from, below uint64, but Kind) (n uint64, err error) {
	db := s.db.View()
	err = db.GetContext(ctx, &n, db.Rebind(`SELECT count(DISTINCT nonce) FROM chain_tx WHERE chain = ? AND sender = ? AND nonce >= ? AND nonce < ? AND kind <> ?`),
		chain, text(sender), from, below, string(but))
	return n, err
}

// open lists what is not final, lowest nonce first.
func (s *Store) open(ctx context.Context, chain uint64, sender common.Address) ([]Tx, error) {
	return s.list(ctx, `WHERE chain = ? AND sender = ? AND state <> 'final' ORDER BY nonce`, chain, text(sender))
}

// about lists the transactions about one channel, oldest first.
func (s *Store) about(ctx context.Context, channel common.Hash, kinds []Kind) ([]Tx, error) {
	const where, order = `WHERE id IN (SELECT tx FROM chain_tx_channel WHERE channel = ?)`, ` ORDER BY created_at, nonce`
	if len(kinds) == 0 {
		return s.list(ctx, where+order, text(channel))
	}
	query, args, err := sqlx.In(where+` AND kind IN (?)`+order, text(channel), kinds)
	if err != nil {
		return nil, fmt.Errorf("chain: reading the outbox: %w", err)
	}
	return s.list(ctx, query, args...)
}

// StandsIn reports, in a transaction of the caller's, whether the outbox has a transaction of a kind about a channel that did what it
// is for, or that a sender of this key is about to have mined.
func (s *Sender) StandsIn(ctx context.Context, db *sqlx.Tx, channel common.Hash, kind Kind) (bool, error) {
	var n int
	err := db.GetContext(ctx, &n, db.Rebind(`SELECT count(*) FROM chain_tx WHERE id IN (SELECT tx FROM chain_tx_channel WHERE channel = ?)
		AND kind = ? AND (succeeded = 1 OR state = 'pending' AND sender = ?)`), text(channel), string(kind), text(s.Address()))
	if err != nil {
		return false, fmt.Errorf("chain: reading the outbox: %w", err)
	}
	return n > 0, nil
}

// errNoTx is an id that is not in the outbox.
var errNoTx = errors.New("no such transaction in the outbox")

// Get reads a transaction.
func (s *Store) Get(ctx context.Context, id TxID) (Tx, error) {
	list, err := s.list(ctx, `WHERE id = ?`, id)
	if err != nil {
		return Tx{}, err
	}
	if len(list) == 0 {
		return Tx{}, fmt.Errorf("chain: %w: %s", errNoTx, id)
	}
	return list[0], nil
}

func (s *Store) list(ctx context.Context, where string, args ...any) ([]Tx, error) {
	db := s.db.View()
	var rows []txRow
	if err := db.SelectContext(ctx, &rows, db.Rebind(`SELECT `+txColumns+` FROM chain_tx `+where), args...); err != nil {
		return nil, fmt.Errorf("chain: reading the outbox: %w", err)
	}
	list := make([]Tx, 0, len(rows))
	for _, row := range rows {
		tx, err := fromRow(row)
		if err != nil {
			return nil, err
		}
		if err := s.complete(ctx, &tx); err != nil {
			return nil, err
		}
		list = append(list, tx)
	}
	return list, nil
}

// complete adds a transaction's versions and channels.
func (s *Store) complete(ctx context.Context, tx *Tx) error {
	db := s.db.View()
	var attempts []attemptRow
	if err := db.SelectContext(ctx, &attempts, db.Rebind(`SELECT hash, tx, number, raw, created_at, sent_at, answer FROM chain_attempt WHERE tx = ? ORDER BY number`), tx.ID); err != nil {
		return fmt.Errorf("chain: reading the outbox: %w", err)
	}
	for _, row := range attempts {
		signed := new(types.Transaction)
		raw, err := hexutil.Decode(row.Raw)
		if err != nil || signed.UnmarshalBinary(raw) != nil {
			return fmt.Errorf("chain: the outbox holds a damaged transaction %s; restore the database from its backup", row.Hash)
		}
		tx.Attempts = append(tx.Attempts, Attempt{Signed: signed, CreatedAt: moment(row.CreatedAt), SentAt: moment(row.SentAt), Answer: refusal.Answer(row.Answer)})
	}
	var channels []string
	if err := db.SelectContext(ctx, &channels, db.Rebind(`SELECT channel FROM chain_tx_channel WHERE tx = ? ORDER BY channel`), tx.ID); err != nil {
		return fmt.Errorf("chain: reading the outbox: %w", err)
	}
	for _, id := range channels {
		tx.Call.Channels = append(tx.Call.Channels, common.HexToHash(id))
	}
	return nil
}

// gas is all that a sender paid for transactions, in wei, the ones that may still be undone included.
func (s *Store) gas(ctx context.Context, chain uint64, sender common.Address) (*big.Int, error) {
	db := s.db.View()
	total, err := gasTotal(ctx, db, chain, sender)
	if err != nil {
		return nil, err
	}
	var recent []string
	err = db.SelectContext(ctx, &recent, db.Rebind(`SELECT cost FROM chain_tx WHERE chain = ? AND sender = ? AND state = 'mined'`), chain, text(sender))
	if err != nil {
		return nil, fmt.Errorf("chain: reading gas costs: %w", err)
	}
	for _, cost := range recent {
		total.Add(total, wei(cost))
	}
	return total, nil
}

func gasTotal(ctx context.Context, db sqlx.ExtContext, chain uint64, sender common.Address) (*big.Int, error) {
	var total string
	err := sqlx.GetContext(ctx, db, &total, db.Rebind(`SELECT wei FROM chain_gas WHERE chain = ? AND sender = ?`), chain, text(sender))
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("chain: reading gas costs: %w", err)
	}
	return wei(total), nil
}

func toRow(tx Tx) txRow {
	row := txRow{
		ID: string(tx.ID), Chain: int64(tx.Chain), Sender: text(tx.Sender), Nonce: int64(tx.Nonce),
		Kind: string(tx.Call.Kind), Recipient: text(tx.Call.To), Data: hexutil.Encode(tx.Call.Data), Gas: int64(tx.Gas),
		State: string(tx.State), Block: int64(tx.Block), Cost: "0", DataFee: "0", CreatedAt: millis(tx.CreatedAt),
	}
	if tx.State != Pending && tx.Hash != (common.Hash{}) {
		row.Hash, row.BlockHash = text(tx.Hash), text(tx.BlockHash)
	}
	if tx.Cost != nil {
		row.Cost = tx.Cost.String()
	}
	if tx.DataFee != nil {
		row.DataFee = tx.DataFee.String()
	}
	if tx.Most != nil {
		row.Most = tx.Most.String()
	}
	if tx.Succeeded {
		row.Succeeded = 1
	}
	if tx.RanOut {
		row.RanOut = 1
	}
	return row
}

func fromRow(row txRow) (Tx, error) {
	data, err := hexutil.Decode(row.Data)
	if err != nil {
		return Tx{}, fmt.Errorf("chain: the outbox holds damaged calldata for %s; restore the database from its backup", row.ID)
	}
	tx := Tx{
		ID: TxID(row.ID), Chain: uint64(row.Chain), Sender: common.HexToAddress(row.Sender), Nonce: uint64(row.Nonce),
		Call: Call{Kind: Kind(row.Kind), To: common.HexToAddress(row.Recipient), Data: data},
		Gas:  uint64(row.Gas), State: TxState(row.State), Hash: common.HexToHash(row.Hash), Block: uint64(row.Block),
		BlockHash: common.HexToHash(row.BlockHash), Succeeded: row.Succeeded == 1, RanOut: row.RanOut == 1, Cost: wei(row.Cost), DataFee: wei(row.DataFee), CreatedAt: moment(row.CreatedAt),
	}
	if row.Most != "" {
		tx.Most = wei(row.Most)
	}
	return tx, nil
}

func text(v interface{ Hex() string }) string { return strings.ToLower(v.Hex()) }

func wei(decimal string) *big.Int {
	n, ok := new(big.Int).SetString(decimal, 10)
	if !ok {
		return new(big.Int)
	}
	return n
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func moment(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}
