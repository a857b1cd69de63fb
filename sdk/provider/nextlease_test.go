package provider

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/gateways"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/settle"
)

// TestChannelOfTheNextLeaseIsNotUrgent: a channel on which a lease ended is settled when its renter has had its time to close, and
// not while the next lease runs on it, however often that is paid: then the policy says when, and at its end.
func TestChannelOfTheNextLeaseIsNotUrgent(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"sqlite", onPostgres} {
		t.Run(name, func(t *testing.T) {
			settled := make(chan settle.Settlement, 16)
			r := newRig(t, generousCredit, func(c *Config) {
				c.Settlement.Interval = 50 * time.Millisecond
				c.OnSettled = func(s settle.Settlement) { settled <- s }
			})
			ended := func(lease *tab) { // the renter's minute is over
				if r.provider.gateway == nil {
					r.provider.settlement.soon(0, lease.terms)
					return
				}
				r.sql(`UPDATE leases SET ended_at = ended_at - ? WHERE ended_at > 0`, int64(2*gateways.CloseGrace/time.Second))
				eventually(t, "it leads", func() bool { return r.provider.settlement.atWork.Load() != nil })
				if err := r.provider.gateway.Settlement.SettleEnded(t.Context(), r.provider.settlement.atWork.Load(), r.provider.store); err != nil {
					t.Fatal(err)
				}
			}
			lease := r.open(1, 500_000, "")
			lease.record()
			lease.release()
			next := lease.begins(lease.spent())
			if next.StatusCode != 200 {
				t.Fatal(next.Status)
			}
			lease.attach(next)
			lease.pay(30_000)
			for range 3 {
				ended(lease)
				select {
				case s := <-settled:
					t.Fatalf("%+v while the next lease runs", s)
				case <-time.After(300 * time.Millisecond):
				}
			}
			lease.release()
			ended(lease)
			select {
			case s := <-settled:
				if s.Paid.Uint64() != 30_000 {
					t.Errorf("settled %+v", s)
				}
			case <-time.After(time.Minute):
				t.Fatal("it is not settled after the next lease's end")
			}
		})
	}
}

// endedLease has a lease of a channel in the table that ended some time ago; one that ended at 0 s is still being ended.
func endedLease(t *testing.T, s leasestore.Store, at common.Hash, ago time.Duration) {
	t.Helper()
	row := leasestore.Row{ID: randomHash().Hex(), Channel: at.Hex(), Allocation: "{}", OwedBefore: "0", State: "ended", StartedAt: 1}
	if ago == 0 {
		row.State = "ending"
	}
	if err := s.Leases.Insert(t.Context(), row); err != nil {
		t.Fatal(err)
	}
	err := s.DB.Update(t.Context(), func(tx *sqlx.Tx) error {
		_, err := tx.Exec(tx.Rebind(`UPDATE leases SET ended_at = ? WHERE id = ?`), time.Now().Add(-ago).Unix(), row.ID)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestIdleChannels: a channel is idle since its last lease ended, and not while another one runs.
func TestIdleChannels(t *testing.T) {
	for _, name := range []string{"file", onPostgres} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "provider.db")
			if name == onPostgres {
				path = pgtest.URL(t)
			}
			db, err := database.Open(t.Context(), path, "provider", leasestore.Migrations, "migrations/provider")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			s, now := leasestore.New(db), time.Now()
			want := make(map[common.Hash]bool)
			for i, c := range []struct {
				ended []time.Duration
				idle  bool
			}{
				{[]time.Duration{30 * time.Minute}, true},
				{[]time.Duration{50 * time.Minute, 30 * time.Minute}, true},
				{[]time.Duration{3 * time.Hour, 30 * time.Minute}, true},
				{[]time.Duration{3 * time.Hour}, false},
				{[]time.Duration{time.Minute}, false},
				{[]time.Duration{30 * time.Minute, time.Minute}, false},
				{[]time.Duration{30 * time.Minute, 0}, false},
			} {
				at := common.Hash{byte(i + 1)}
				for _, ago := range c.ended {
					endedLease(t, s, at, ago)
				}
				if c.idle {
					want[at] = true
				}
			}
			got, err := s.Leases.IdleSince(t.Context(), now.Add(-time.Hour).Unix(), now.Add(-15*time.Minute).Unix())
			if err != nil || len(got) != len(want) {
				t.Errorf("%d are idle: %v (%v), want %d", len(got), got, err, len(want))
			}
			for _, id := range got {
				if !want[id] {
					t.Errorf("%s is idle", id)
				}
			}
		})
	}
}
