package provider

import (
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestDevicesAreTakenBackOnce: of two gateways of a host that find an ended lease with its devices, one runs the command
// that takes them back: that of the other would run in the next renter's time.
func TestDevicesAreTakenBackOnce(t *testing.T) {
	command, calls := script(t, `[ $1 != release ] || sleep 1`)
	host := func(c *Config) {
		allocator := hostGPUs(t, 2)
		allocator.ReleaseCommand = append(command, "release")
		c.Allocator, c.Takeover, c.Log = allocator, 20*time.Second, slog.New(slog.DiscardHandler)
	}
	a, b := fleet(t, host)
	lease := a.open(1, 500_000, "")
	lease.record()
	lease.release()
	row := lease.row()
	before := strings.Count(calls(), "release")
	err := a.provider.db.Update(t.Context(), func(tx *sqlx.Tx) error { // as where its gateway died while it took them back
		_, err := tx.Exec(`UPDATE leases SET held = 1, owner = '' WHERE id = $1`, row.ID)
		if err != nil {
			return err
		}
		_, err = tx.Exec(`INSERT INTO lease_devices (device, lease) VALUES ($1, $2)`, lease.lease.Devices[0], row.ID)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var sweeps sync.WaitGroup
	for _, r := range []*rig{a, b} {
		sweeps.Go(func() {
			if err := r.provider.gateway.Sweep(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	sweeps.Wait()
	waitFor(t, func() bool { return lease.row().Held == 0 })
	if n := strings.Count(calls(), "release") - before; n != 1 {
		t.Errorf("they were taken back %d times", n)
	}
	if held, err := b.provider.gateway.Devices().Held(t.Context()); err != nil || len(held) != 0 {
		t.Errorf("devices held: %v, %v", held, err)
	}
}

// TestUsedChallengeIsNotForgottenByAFastClock: a gateway whose clock is hours ahead forgets no challenge that another one,
// or itself when its clock is set right, would take once more.
func TestUsedChallengeIsNotForgottenByAFastClock(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"file", onPostgres} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			now, store := time.Now(), r.provider.store
			one := wire.Challenge{ID: "one", Expires: now.Add(5 * time.Minute).UTC().Format(time.RFC3339)}
			two := wire.Challenge{ID: "two", Expires: now.Add(12 * time.Hour).UTC().Format(time.RFC3339)}
			if err := errors.Join(store.Secrets.UseChallenge(t.Context(), one, now), store.Secrets.UseChallenge(t.Context(), two, now.Add(11*time.Hour))); err != nil {
				t.Fatal(err)
			}
			if err := store.Secrets.UseChallenge(t.Context(), one, now); !errors.Is(err, leasestore.ErrChallengeUsed) {
				t.Errorf("the proof was taken twice: %v", err)
			}
			three := wire.Challenge{ID: "three", Expires: now.Add(72 * time.Hour).UTC().Format(time.RFC3339)}
			if err := store.Secrets.UseChallenge(t.Context(), three, now.Add(71*time.Hour)); err != nil {
				t.Fatal(err)
			}
			var kept int
			if err := store.DB.View().Get(&kept, `SELECT count(*) FROM used_challenges`); err != nil || kept != 1 {
				t.Errorf("%d challenges are kept for ever: %v", kept, err)
			}
		})
	}
}
