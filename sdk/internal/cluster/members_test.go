package cluster

import (
	"errors"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/rig"
)

// TestKeyIsChangedAfterTheServersClockWasSetBack: a gateway that was killed counts until Takeover is over, and no longer.
func TestKeyIsChangedAfterTheServersClockWasSetBack(t *testing.T) {
	db, set := clockedStore(t)
	s := Members{db}
	past := func(string) bool { return true }
	if err := errors.Join(s.Identify(t.Context(), Identity{Chain: 1, Payee: "old"}, past), s.Heartbeat(t.Context(), "dead", time.Second, nil)); err != nil {
		t.Fatal(err)
	}
	set(-time.Hour)
	renamed := Identity{Chain: 1, Payee: "new"}
	if err := s.Identify(t.Context(), renamed, past); err == nil {
		t.Error("the key was changed while a gateway may live")
	}
	rig.Eventually(t, "the next key", func() bool { return s.Identify(t.Context(), renamed, past) == nil })
}

// TestRowsOfAnEarlierVersion: a program of before does not say for how long it writes a row, and is not robbed of it.
func TestRowsOfAnEarlierVersion(t *testing.T) {
	db, set := clockedStore(t)
	s := Members{db}
	lives := func() bool {
		t.Helper()
		if _, err := Restamp(t.Context(), db); err != nil {
			t.Fatal(err)
		}
		lives, err := s.Lives(t.Context(), "old")
		if err != nil {
			t.Fatal(err)
		}
		return lives
	}
	err := s.DB.Update(t.Context(), func(tx *sqlx.Tx) error {
		_, err := tx.Exec(`INSERT INTO gateways (id, expires) VALUES ('old', ` + database.ServerNow + ` + 10000)`)
		return err
	})
	if err != nil || !lives() {
		t.Errorf("a gateway of before is dead: %v", err)
	}
	set(-30 * 24 * time.Hour)
	if !lives() {
		t.Error("a gateway of before is dead when the clock was set back")
	}
	set(-29*24*time.Hour + time.Minute)
	if lives() {
		t.Error("a gateway of before lives for longer than a day")
	}
}
