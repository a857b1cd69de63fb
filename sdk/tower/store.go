package tower

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/wire"
)

// leaveStore keeps the payers who want out.
type leaveStore struct{ db *store.DB }

// put keeps a request, in place of another one of the same channel where it is newer, or the next that the contract takes. An older one
// is public, and anybody's to send: the newer one stays, which a re-org may want sent again.
func (s leaveStore) put(ctx context.Context, q wire.LeaveRequest, next bool) error {
	raw, err := json.Marshal(q)
	if err != nil {
		return err
	}
	id := q.Channel().ID().Hex()
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		var kept string
		var newest wire.LeaveRequest
		err := tx.GetContext(ctx, &kept, tx.Rebind(`SELECT request FROM tower_leaves WHERE channel = ?`), id)
		if err == nil {
			err = json.Unmarshal([]byte(kept), &newest)
		}
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if older := cmp.Or(cmp.Compare(q.CloseRequests, newest.CloseRequests), cmp.Compare(q.Deadline, newest.Deadline)) < 0; older && !next {
			raw = []byte(kept)
		}
		_, err = tx.ExecContext(ctx, tx.Rebind(`INSERT INTO tower_leaves (channel, request, asked_at, done) VALUES (?, ?, ?, 0)
			ON CONFLICT (channel) DO UPDATE SET request = excluded.request, done = 0`), id, string(raw), time.Now().UnixMilli())
		return err
	})
}

// finish ends a request, but no newer one of the channel.
func (s leaveStore) finish(ctx context.Context, q wire.LeaveRequest) error {
	raw, err := json.Marshal(q)
	if err != nil {
		return err
	}
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`UPDATE tower_leaves SET done = 1 WHERE channel = ? AND request = ?`), q.Channel().ID().Hex(), string(raw))
		return err
	})
}

// open lists the requests that are not seen through, oldest first.
func (s leaveStore) open(ctx context.Context) ([]wire.LeaveRequest, error) {
	var rows []string
	if err := s.db.View().SelectContext(ctx, &rows, `SELECT request FROM tower_leaves WHERE done = 0 ORDER BY asked_at, channel`); err != nil {
		return nil, fmt.Errorf("reading who wants to leave: %w", err)
	}
	all := make([]wire.LeaveRequest, len(rows))
	for i, row := range rows {
		if err := json.Unmarshal([]byte(row), &all[i]); err != nil {
			return nil, fmt.Errorf("a request to leave on disk does not parse; restore the database from its backup: %w", err)
		}
	}
	return all, nil
}
