package tower

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/wire"
)

// leaveStore keeps the payers who want out.
type leaveStore struct{ db *store.DB }

// put keeps a request; a newer one of the same channel takes its place.
func (s leaveStore) put(ctx context.Context, q wire.LeaveRequest) error {
	raw, err := json.Marshal(q)
	if err != nil {
		return err
	}
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO tower_leaves (channel, request, asked_at, done) VALUES (?, ?, ?, 0)
			ON CONFLICT (channel) DO UPDATE SET request = excluded.request, done = 0`), q.Channel().ID().Hex(), string(raw), time.Now().UnixMilli())
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
