package x402client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/billed"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/x402"
)

// account is what a channel with an x402 server must not forget, beside what was
// signed. Amounts are base units.
type account struct {
	ID    common.Hash    `json:"channel"`
	URL   string         `json:"url"`
	Payee common.Address `json:"payee"`
	// Site is the only one that is paid from it, Salt the client's that its own is made of. In older databases there is none: then
	// it is the site of URL, which was paid first, and the channel's own salt. Sites were paid from it, under whatever name.
	Site  string      `json:"site,omitempty"`
	Salt  common.Hash `json:"salt,omitzero"`
	Sites []string    `json:"sites,omitempty"`
	// Charged is what the server is known to have charged, in all: the next
	// voucher is for so much and the next price.
	Charged uint256.Int `json:"charged"`
	// Deposit is one that was signed and is not known to have arrived. It is sent
	// again as it is, until it has arrived or has expired: the money moves once.
	Deposit *x402.Deposit `json:"deposit,omitempty"`
	// Found: something was claimed, or our own voucher was shown, that this
	// database does not know of. It ends with the first record that is accepted.
	Found   bool `json:"found,omitempty"`
	Leaving bool `json:"leaving,omitempty"` // being got back without the server
	// Withdrawal is the one of all that was free by which the channel is being left; nil before it was asked for. What was
	// deposited since is left there.
	Withdrawal *withdrawal `json:"withdrawal,omitempty"`
	Dispute    string      `json:"dispute,omitempty"` // what the server was caught at: nothing more is paid
	// Accused are the sites that were caught at what no signature of the payee proves, and at what: whoever runs one may have named
	// another's payee in its 402. They are not paid; the payee is, elsewhere.
	Accused map[string]string `json:"accused,omitempty"`
	Tick    *pendingTick      `json:"tick,omitempty"` // asked for, and its record was not yet seen
	Lost    uint256.Int       `json:"lost"`           // the voucher of a tick that was charged and not answered; zero once a record came
	// Ticked: ticks were paid from the channel, and what may be charged there that no
	// record states is told apart: up to Ceiling, which the newest record's tick was
	// signed for, as time passes; up to Plain, the most that was signed since for what
	// is no tick, at once.
	Ticked  bool        `json:"ticked,omitempty"`
	Ceiling uint256.Int `json:"ceiling"`
	Plain   uint256.Int `json:"plain"`
	// Open is a tick that was given up with no answer, for one of another number of GPUs or by a refund: what may be charged
	// for it is what it can have run for since it was asked for.
	Open    *pendingTick  `json:"open,omitempty"`
	Ticking *tickLease    `json:"ticking,omitempty"` // the lease that is paid tick by tick
	Other   uint256.Int   `json:"other"`             // charged since that lease began for what was no tick
	Spans   []billed.Span `json:"spans,omitempty"`   // billed of each device, in all leases of the channel

	version int64 // of the row that was read; zero: there was none
}

// errStale says that somebody else wrote an account since it was read.
var errStale = errors.New("another program pays from the channel: one database belongs to one renter")

// accounts keeps accounts.
type accounts struct{ wallet.Store }

// load returns a channel's account, or nil.
func (s accounts) load(ctx context.Context, id common.Hash) (*account, error) {
	all, err := s.query(ctx, `WHERE channel = ?`, id.Hex())
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return &all[0], nil
}

// list returns all, in order of their channels.
func (s accounts) list(ctx context.Context) ([]account, error) { return s.query(ctx, ``) }

// related returns the accounts of a payee, and those that were paid from at a site.
func (s accounts) related(ctx context.Context, payee common.Address, site string) ([]account, error) {
	return s.query(ctx, `WHERE payee = ? OR channel IN (SELECT channel FROM x402_sites WHERE site = ?)`, strings.ToLower(payee.Hex()), site)
}

func (s accounts) query(ctx context.Context, where string, args ...any) ([]account, error) {
	var rows []struct {
		Document string `db:"document"`
		Payee    string `db:"payee"`
		Version  int64  `db:"version"`
	}
	view := s.DB.View()
	if err := view.SelectContext(ctx, &rows, view.Rebind(`SELECT document, payee, version FROM x402_slates `+where+` ORDER BY channel`), args...); err != nil {
		return nil, fmt.Errorf("reading x402 accounts: %w", err)
	}
	all := make([]account, len(rows))
	for i, row := range rows {
		if err := json.Unmarshal([]byte(row.Document), &all[i]); err != nil {
			return nil, fmt.Errorf("an x402 account on disk does not parse; restore the database from its backup: %w", err)
		}
		all[i].version, all[i].Payee = row.Version, common.HexToAddress(row.Payee)
	}
	return all, nil
}

// save keeps an account, unless another program did since it was read. Memory and
// disk must not differ because somebody lost patience, so it does not end with ctx.
func (s accounts) save(ctx context.Context, t *account) error {
	return s.accept(ctx, t, nil)
}

// accept keeps an account and the usage record that was checked for it in one step.
func (s accounts) accept(ctx context.Context, t *account, rec *metering.SignedRecord) error {
	document, err := json.Marshal(t) // by reference: uint256.Int only then writes a decimal
	if err != nil {
		return err
	}
	err = s.DB.Update(context.WithoutCancel(ctx), func(tx *sqlx.Tx) error {
		if err := t.write(tx, string(document)); err != nil || rec == nil {
			return err
		}
		text, err := json.Marshal(rec)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(tx.Rebind(`INSERT INTO x402_offers (hash, document) VALUES (?, ?) ON CONFLICT DO NOTHING`), rec.OfferHash.Hex(), string(t.Ticking.Offer)); err != nil {
			return err
		}
		_, err = tx.Exec(tx.Rebind(`INSERT INTO x402_records (channel, lease, sequence, record) VALUES (?, ?, ?, ?)`),
			t.ID.Hex(), rec.LeaseID.Hex(), int64(rec.Sequence), string(text))
		return err
	})
	if err != nil {
		return fmt.Errorf("channel %s: keeping its account: %w", t.ID, err)
	}
	t.version++
	return nil
}

// write writes an account over the one that was read.
func (t *account) write(tx *sqlx.Tx, document string) error {
	done, err := tx.Exec(tx.Rebind(`INSERT INTO x402_slates (channel, url, payee, document, updated_at, version) VALUES (?, ?, ?, ?, ?, 1)
		ON CONFLICT (channel) DO UPDATE SET payee = excluded.payee, document = excluded.document, updated_at = excluded.updated_at,
		version = x402_slates.version + 1 WHERE x402_slates.version = ?`),
		t.ID.Hex(), t.URL, strings.ToLower(t.Payee.Hex()), document, time.Now().UnixMilli(), t.version)
	if err != nil {
		return err
	}
	if n, err := done.RowsAffected(); err != nil || n != 1 {
		return errors.Join(errStale, err)
	}
	for _, site := range append([]string{t.site()}, t.Sites...) {
		if _, err := tx.Exec(tx.Rebind(`INSERT INTO x402_sites (site, channel) VALUES (?, ?) ON CONFLICT DO NOTHING`), site, t.ID.Hex()); err != nil {
			return err
		}
	}
	return nil
}

// records returns the checked usage records of a channel, in order.
func (s accounts) records(ctx context.Context, id common.Hash) ([]metering.SignedRecord, error) {
	return s.Records(ctx, "x402_records", id)
}

// offer is one that records were kept under: null where they are from before offers were.
func (s accounts) offer(ctx context.Context, hash common.Hash) (json.RawMessage, error) {
	var all []string
	db := s.DB.View()
	err := db.SelectContext(ctx, &all, db.Rebind(`SELECT document FROM x402_offers WHERE hash = ?`), hash.Hex())
	if err != nil || len(all) == 0 {
		return json.RawMessage("null"), err
	}
	return json.RawMessage(all[0]), nil
}

// isQuietAccount selects the accounts that were written last before a time, in unix
// milliseconds, of whose channels there are records and no evidence.
const isQuietAccount = `WHERE updated_at < ? AND channel IN (SELECT channel FROM x402_records)
	AND channel NOT IN (SELECT channel FROM rental_evidence) AND channel NOT IN (SELECT channel FROM rental_proofs)`

// quiet returns the accounts of which nothing is under way, written last before a time.
func (s accounts) quiet(ctx context.Context, before time.Time) ([]account, error) {
	all, err := s.query(ctx, isQuietAccount, before.UnixMilli())
	return slices.DeleteFunc(all, func(t account) bool {
		return t.Tick != nil || t.Deposit != nil || t.Leaving || t.Dispute != "" || len(t.Accused) > 0 || !t.Lost.IsZero()
	}), err
}

// prune deletes the records of a channel, unless it was paid from since its account was read.
func (s accounts) prune(ctx context.Context, t account, before time.Time) (deleted bool, err error) {
	err = s.DB.Update(ctx, func(tx *sqlx.Tx) error {
		done, err := tx.ExecContext(ctx, tx.Rebind(`DELETE FROM x402_records WHERE channel = ? AND channel IN (SELECT channel FROM x402_slates `+isQuietAccount+` AND version = ?)`),
			t.ID.Hex(), before.UnixMilli(), t.version)
		if err != nil {
			return err
		}
		n, err := done.RowsAffected()
		deleted = n > 0
		return err
	})
	return deleted, err
}
