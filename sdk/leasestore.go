package sdk

import (
	"context"
	"crypto/rand"
	"database/sql"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/wire"
)

//go:embed migrations/provider/*.sql migrations/provider/postgres/*.sql
var providerMigrations embed.FS

// leaseState is where a lease is in its life.
type leaseState string

const (
	leaseAllocating leaseState = wire.StateAllocating
	leaseActive     leaseState = wire.StateActive
	leaseSuspended  leaseState = wire.StateSuspended
	leaseEnding     leaseState = wire.StateEnding
	leaseEnded      leaseState = wire.StateEnded
)

// errNotOurs is what a gateway gets that writes to a lease which another one has
// taken over.
var errNotOurs = errors.New("another gateway runs it now; nothing was written")

// errChallengeUsed says that a challenge was used before.
var errChallengeUsed = errors.New("challenge was used before")

// errRolledBack is a database that has forgotten records which were signed from
// it: no other ones of their numbers may be signed.
var errRolledBack = errors.New("the provider's database is older than what was signed from it, as after a restore from a backup: the lease ends")

// pendingRecord is the next record of a lease, before it is signed, and where the
// meter is after it.
type pendingRecord struct {
	metering.Draft
	Meter metering.State `json:"meter"`
}

// leaseRow is a lease as it stands on disk.
type leaseRow struct {
	ID         string `db:"id"`
	Channel    string `db:"channel"`
	Offer      string `db:"offer"`
	SecretHash string `db:"secret_hash"`
	GPUs       int    `db:"gpus"`
	Allocation string `db:"allocation"`
	OwedBefore string `db:"owed_before"`
	State      string `db:"state"`
	Reason     string `db:"reason"`
	Meter      string `db:"meter"`
	StartedAt  int64  `db:"started_at"`
	EndedAt    int64  `db:"ended_at"`     // unix seconds
	Owner      string `db:"owner"`        // the gateway that runs it, where several share the database
	Term       int64  `db:"term"`         // grows with each change of owner
	Sequence   int64  `db:"sequence"`     // of the newest record
	Stream     int64  `db:"stream"`       // the newest stream
	Command    string `db:"command"`      // why another gateway wants it ended
	Held       int64  `db:"held"`         // 1: ended, and its devices not taken back yet, nor what its node metered last taken over
	Pending    string `db:"pending"`      // JSON of the record that is about to be signed; empty: none
	Suspended  int64  `db:"suspended_at"` // unix nanoseconds; 0 where it is not
	Carried    int64  `db:"carried"`      // what the leases before it were not charged, in metering.Fractions, less than one base unit
	MeterKey   string `db:"meter_key"`    // address of the key that signs its records; empty: the one that its offer names
	Binding    string `db:"binding"`      // JSON of the wire.MeterBinding that says so, at a gateway
}

var leaseColumns = columns[leaseRow]()

// columns names what is read of a row, for SELECT: a newer program's migration may
// have added other columns, which an older one that still runs must not stumble
// over.
func columns[T any]() string {
	var names []string
	for row := reflect.TypeFor[T](); len(names) < row.NumField(); {
		names = append(names, row.Field(len(names)).Tag.Get("db"))
	}
	return strings.Join(names, ", ")
}

// leaseStore keeps what a provider must not forget beside its channels: leases,
// usage records, offers and used challenges.
type leaseStore struct {
	db        *store.DB
	uncharged bool        // a node's: its gateway charges the channel
	late      bool        // of records that a node delivers: what they say may have been charged before
	offers    *offerCache // those that were read; nil: none is remembered
}

// offerCache remembers offers, which never change: to read one means to check
// its signature, and every request names one. Leases share what is in it.
type offerCache struct {
	mu     sync.Mutex
	byHash map[common.Hash]*wire.SignedOffer
}

// maxOffers is how many are remembered. A provider has one at a time.
const maxOffers = 64

// one is the offer that all share.
func (c *offerCache) one(o wire.SignedOffer) *wire.SignedOffer {
	if c == nil {
		return &o
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if known := c.byHash[o.Hash]; known != nil {
		return known
	}
	if c.byHash == nil || len(c.byHash) >= maxOffers {
		c.byHash = make(map[common.Hash]*wire.SignedOffer)
	}
	c.byHash[o.Hash] = &o
	return &o
}

func (c *offerCache) get(hash common.Hash) *wire.SignedOffer {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.byHash[hash]
}

// guarded is the same store with a condition on what it writes; nil: none.
func (s leaseStore) guarded(may func(*sqlx.Tx) error) leaseStore {
	if may != nil {
		s.db = s.db.Guard(may)
	}
	return s
}

func (s leaseStore) insert(ctx context.Context, row leaseRow) error {
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		if err := s.open(ctx, tx, common.HexToHash(row.Channel)); err != nil {
			return err
		}
		// The newest lease of a channel is found by this figure, also where the clock was
		// set back since the last one: whose secret opens it must be certain.
		var before int64
		err := tx.GetContext(ctx, &before, tx.Rebind(`SELECT COALESCE(MAX(started_at), 0) FROM leases WHERE channel = ?`), row.Channel)
		if err != nil {
			return err
		}
		row.StartedAt = max(row.StartedAt, before+1)
		_, err = tx.NamedExecContext(ctx, `
			INSERT INTO leases (id, channel, offer, secret_hash, gpus, allocation, owed_before, state, started_at, owner, term, carried)
			VALUES (:id, :channel, :offer, :secret_hash, :gpus, :allocation, :owed_before, :state, :started_at, :owner, :term, :carried)`, row)
		return err
	})
}

// open refuses a lease on a channel that closes, by whichever gateway. A node has no
// channels: its gateways have.
func (s leaseStore) open(ctx context.Context, tx *sqlx.Tx, id common.Hash) error {
	query := `SELECT status FROM payee_channels WHERE id = ?`
	if s.db.Shared() {
		query += ` FOR SHARE` // a close that begins now waits, and then finds the lease
	}
	var statuses []channel.Status
	if err := tx.SelectContext(ctx, &statuses, tx.Rebind(query), id[:]); err != nil {
		return err
	}
	if len(statuses) == 1 && statuses[0] != channel.Open {
		return fmt.Errorf("channel %s: %w", id, channel.ErrClosing)
	}
	return nil
}

// activate records what was allocated, and whose key signs the records: from here on the lease is metered.
func (s leaseStore) activate(ctx context.Context, row leaseRow) error {
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		return own(common.HexToHash(row.ID))(tx.ExecContext(ctx, tx.Rebind(`UPDATE leases SET allocation = ?, meter_key = ?, binding = ?, state = ?
			WHERE id = ? AND term = ? AND state = ?`),
			row.Allocation, row.MeterKey, row.Binding, leaseActive, row.ID, row.Term, leaseAllocating))
	})
}

// setState has a lease in a state, for a reason. What is suspended for the same
// reason as before has been since then.
func (s leaseStore) setState(ctx context.Context, id common.Hash, term int64, state leaseState, reason string, endedAt int64) error {
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		return own(id)(tx.ExecContext(ctx, tx.Rebind(`UPDATE leases SET suspended_at = CASE WHEN ? <> 'suspended' THEN 0
			WHEN state = 'suspended' AND reason = ? AND suspended_at > 0 THEN suspended_at ELSE ? END,
			state = ?, reason = ?, ended_at = ? WHERE id = ? AND term = ?`),
			state, reason, time.Now().UnixNano(), state, reason, endedAt, id.Hex(), term))
	})
}

// setEnded ends a lease, at the time at which it was asked to, where that is on disk. Where its devices are held they are
// still to be taken back, and what its node metered last is still to be taken over: by whichever gateway can.
func (s leaseStore) setEnded(ctx context.Context, id common.Hash, term int64, reason string, held bool) error {
	flag := 0
	if held {
		flag = 1
	}
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		err := own(id)(tx.ExecContext(ctx, tx.Rebind(`UPDATE leases SET state = 'ended', reason = ?, held = ?, owner = CASE WHEN ? = 1 THEN '' ELSE owner END,
			ended_at = CASE WHEN state IN ('ending', 'ended') AND ended_at > 0 THEN ended_at ELSE ? END WHERE id = ? AND term = ?`),
			reason, flag, flag, time.Now().Unix(), id.Hex(), term))
		if err != nil {
			return err
		}
		return forgetAccess(ctx, tx, id)
	})
}

// term is the newest term of a lease's ownership.
func (s leaseStore) term(ctx context.Context, id common.Hash) (term int64, err error) {
	db := s.db.View()
	err = db.GetContext(ctx, &term, db.Rebind(`SELECT term FROM leases WHERE id = ?`), id.Hex())
	return term, err
}

// forgetAccess cuts the access document, often a password, out of a lease that has
// ended: a running lease needs it, also in the next process.
func forgetAccess(ctx context.Context, tx *sqlx.Tx, id common.Hash) error {
	var text string
	if err := tx.GetContext(ctx, &text, tx.Rebind(`SELECT allocation FROM leases WHERE id = ?`), id.Hex()); err != nil {
		return err
	}
	var a gpu.Allocation
	if err := json.Unmarshal([]byte(text), &a); err != nil || len(a.Access) == 0 {
		return nil // nothing that could be read was allocated
	}
	a.Access = nil
	rest, err := json.Marshal(a)
	if err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, tx.Rebind(`UPDATE leases SET allocation = ? WHERE id = ?`), string(rest), id.Hex())
	return err
}

// own turns a write that found no lease of its term into errNotOurs.
func own(id common.Hash) func(sql.Result, error) error {
	return func(done sql.Result, err error) error {
		if err != nil {
			return err
		}
		if n, err := done.RowsAffected(); err != nil || n == 0 {
			return errors.Join(fmt.Errorf("lease %s: %w", id, errNotOurs), err)
		}
		return nil
	}
}

// reserve makes a record durable that is about to be signed. It refuses where the
// lease is another gateway's, and where the newest record on disk is not the one
// before: then the database was exchanged for an older one while it was in use.
func (s leaseStore) reserve(ctx context.Context, term int64, p pendingRecord) error {
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	update := s.db.UpdateSoon // the record is of time that has passed
	if p.Record.Final {
		update = s.db.Update
	}
	id := p.Record.LeaseID
	return update(ctx, func(tx *sqlx.Tx) error {
		if !s.db.Shared() {
			ctx = context.WithoutCancel(ctx) // as in append
		}
		done, err := tx.ExecContext(ctx, tx.Rebind(`UPDATE leases SET pending = ? WHERE id = ? AND term = ? AND sequence = ?`),
			string(text), id.Hex(), term, int64(p.Record.Sequence)-1)
		if err == nil {
			var n int64
			if n, err = done.RowsAffected(); n == 1 {
				return err
			}
		}
		if err != nil {
			return err
		}
		return s.refused(ctx, tx, id, term)
	})
}

// refused says why a record was not reserved.
func (s leaseStore) refused(ctx context.Context, tx *sqlx.Tx, id common.Hash, term int64) error {
	var now []int64
	err := tx.SelectContext(ctx, &now, tx.Rebind(`SELECT term FROM leases WHERE id = ?`), id.Hex())
	switch {
	case err != nil:
		return err
	case len(now) == 0 || now[0] == term:
		return fmt.Errorf("lease %s: %w", id, errRolledBack)
	}
	return fmt.Errorf("lease %s: %w", id, errNotOurs)
}

// append makes a usage record and the charge it states durable in one step: a
// record that a renter sees is a charge that a restart remembers, and the
// other way round. What closing writes is there with a final record.
func (s leaseStore) append(ctx context.Context, term int64, rec metering.SignedRecord, meter metering.State, closing *func(*sqlx.Tx, metering.SignedRecord) error) error {
	record, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	totals, err := json.Marshal(meter)
	if err != nil {
		return err
	}
	update := s.db.UpdateSoon // the record is of time that has passed
	if rec.Final {
		update = s.db.Update
	}
	return update(ctx, func(tx *sqlx.Tx) error {
		if !s.db.Shared() {
			ctx = context.WithoutCancel(ctx) // the driver starts a goroutine for each statement that could be cut off
		}
		// First, so that whoever takes the lease over waits until the record stands.
		query := `UPDATE leases SET meter = ?, sequence = ?, pending = '' WHERE id = ? AND term = ?`
		if rec.Final { // in one step: nobody meters the lease on
			query = `UPDATE leases SET meter = ?, sequence = ?, pending = '', state = CASE WHEN state = 'ended' THEN state ELSE 'ending' END WHERE id = ? AND term = ?`
		}
		// Nor a hole, where the database was exchanged for an older one since the record was reserved.
		done, err := tx.ExecContext(ctx, tx.Rebind(query+` AND sequence BETWEEN ? AND ?`), string(totals), int64(rec.Sequence),
			rec.LeaseID.Hex(), term, int64(rec.Sequence)-1, int64(rec.Sequence))
		if err != nil {
			return err
		}
		if n, err := done.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, s.refused(ctx, tx, rec.LeaseID, term))
		}
		added, err := addRecord(ctx, tx, rec, string(record))
		if err != nil {
			return fmt.Errorf("record %d of lease %s: %w", rec.Sequence, rec.LeaseID, err)
		}
		if !added || s.uncharged {
			return nil
		}
		err = s.db.Charge(ctx, tx, rec.ChannelID, rec.Owed)
		if s.late && errors.Is(err, channel.ErrLower) {
			err = nil // the chain had paid for it: the charge stands
		}
		if err != nil || !rec.Final || closing == nil {
			return err
		}
		return (*closing)(tx, rec)
	})
}

// addRecord takes the very record that is there already for success, and adds
// nothing: a server may have committed it, with all that goes to disk beside it,
// and been cut off before it could say so.
func addRecord(ctx context.Context, tx *sqlx.Tx, rec metering.SignedRecord, text string) (added bool, err error) {
	done, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO records (lease, sequence, record) VALUES (?, ?, ?) ON CONFLICT (lease, sequence) DO NOTHING`),
		rec.LeaseID.Hex(), int64(rec.Sequence), text)
	if err != nil {
		return false, err
	}
	if n, err := done.RowsAffected(); err != nil || n == 1 {
		return n == 1, err
	}
	var stored string
	err = tx.GetContext(ctx, &stored, tx.Rebind(`SELECT record FROM records WHERE lease = ? AND sequence = ?`), rec.LeaseID.Hex(), int64(rec.Sequence))
	if err == nil && stored != text {
		err = errors.New("there is another one of this number: two would be a fork that the payee signed")
	}
	return false, err
}

// records returns the usage records of a lease after a sequence number.
func (s leaseStore) records(ctx context.Context, lease common.Hash, after uint64, limit int) ([]metering.SignedRecord, error) {
	var rows []string
	db := s.db.View()
	err := db.SelectContext(ctx, &rows, db.Rebind(
		`SELECT record FROM records WHERE lease = ? AND sequence > ? ORDER BY sequence LIMIT ?`), lease.Hex(), int64(after), limit)
	if err != nil {
		return nil, fmt.Errorf("records of lease %s: %w", lease, err)
	}
	records := make([]metering.SignedRecord, len(rows))
	for i, row := range rows {
		if err := json.Unmarshal([]byte(row), &records[i]); err != nil {
			return nil, fmt.Errorf("stored record of lease %s: %w", lease, err)
		}
	}
	return records, nil
}

// last returns the newest record of a lease, nil if it has none yet.
func (s leaseStore) last(ctx context.Context, lease common.Hash) (*metering.SignedRecord, error) {
	var row string
	db := s.db.View()
	err := db.GetContext(ctx, &row, db.Rebind(
		`SELECT record FROM records WHERE lease = ? ORDER BY sequence DESC LIMIT 1`), lease.Hex())
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("newest record of lease %s: %w", lease, err)
	}
	var rec metering.SignedRecord
	if err := json.Unmarshal([]byte(row), &rec); err != nil {
		return nil, fmt.Errorf("stored record of lease %s: %w", lease, err)
	}
	return &rec, nil
}

// unfinished returns the leases that were running when the process stopped, and those that still hold devices.
func (s leaseStore) unfinished(ctx context.Context) ([]leaseRow, error) {
	var rows []leaseRow
	db := s.db.View()
	err := db.SelectContext(ctx, &rows, db.Rebind(`SELECT `+leaseColumns+` FROM leases WHERE state <> ? OR held = 1 ORDER BY started_at`), leaseEnded)
	return rows, err
}

// served lists the channels that have a lease, at whatever gateway.
func (s leaseStore) served(ctx context.Context) ([]common.Hash, error) {
	var channels []string
	if err := s.db.View().SelectContext(ctx, &channels, `SELECT DISTINCT channel FROM leases WHERE state <> 'ended'`); err != nil {
		return nil, fmt.Errorf("channels that have a lease: %w", err)
	}
	ids := make([]common.Hash, len(channels))
	for i, text := range channels {
		ids[i] = common.HexToHash(text)
	}
	return ids, nil
}

// newest returns the newest lease of a channel; ok is false if it never had one.
func (s leaseStore) newest(ctx context.Context, channelID common.Hash) (row leaseRow, ok bool, err error) {
	db := s.db.View()
	err = db.GetContext(ctx, &row, db.Rebind(
		`SELECT `+leaseColumns+` FROM leases WHERE channel = ? ORDER BY started_at DESC, id LIMIT 1`), channelID.Hex())
	if errors.Is(err, sql.ErrNoRows) {
		return row, false, nil
	}
	return row, err == nil, err
}

func (s leaseStore) putOffer(ctx context.Context, o wire.SignedOffer) error {
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO offers (hash, document) VALUES (?, ?) ON CONFLICT (hash) DO NOTHING`),
			o.Hash.Hex(), string(o.Document))
		return err
	})
}

func (s leaseStore) offer(ctx context.Context, hash common.Hash) (wire.SignedOffer, error) {
	if known := s.offers.get(hash); known != nil {
		return *known, nil
	}
	var document string
	db := s.db.View()
	if err := db.GetContext(ctx, &document, db.Rebind(`SELECT document FROM offers WHERE hash = ?`), hash.Hex()); err != nil {
		return wire.SignedOffer{}, fmt.Errorf("offer %s: %w", hash, err)
	}
	o, err := wire.ParseOffer([]byte(document))
	if err != nil {
		return o, err
	}
	return *s.offers.one(o), nil
}

// clocksDiffer is more than the clocks of gateways differ, or one clock is set by.
const clocksDiffer = 24 * time.Hour

// useChallenge marks a challenge as used, once. It forgets those that have expired by
// any clock: they are refused by their date.
func (s leaseStore) useChallenge(ctx context.Context, c wire.Challenge, now time.Time) error {
	expires, err := time.Parse(time.RFC3339, c.Expires)
	if err != nil {
		return err
	}
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, tx.Rebind(`DELETE FROM used_challenges WHERE expires < ?`), now.Add(-clocksDiffer).Unix()); err != nil {
			return err
		}
		res, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO used_challenges (id, expires) VALUES (?, ?) ON CONFLICT (id) DO NOTHING`),
			c.ID, expires.Unix())
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return errors.Join(errChallengeUsed, err)
		}
		return nil
	})
}

// secret returns the named random secret, made at the first call. Replicas on
// one database share it, and so accept each other's challenges.
func (s leaseStore) secret(ctx context.Context, name string) ([]byte, error) {
	fresh := make([]byte, 32)
	if _, err := rand.Read(fresh); err != nil {
		return nil, err
	}
	var value string
	err := s.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO provider_secrets (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING`),
			name, hex.EncodeToString(fresh))
		if err != nil {
			return err
		}
		return tx.GetContext(ctx, &value, tx.Rebind(`SELECT value FROM provider_secrets WHERE name = ?`), name)
	})
	if err != nil {
		return nil, err
	}
	return hex.DecodeString(value)
}

func (s leaseStore) setSecret(ctx context.Context, id common.Hash, secretHash string) error {
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`UPDATE leases SET secret_hash = ? WHERE id = ?`), secretHash, id.Hex())
		return err
	})
}
