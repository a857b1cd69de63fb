package highwater

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"
)

// TestTerms: two gateways of one host share the terms of leases: a command of an older term is refused, one of a newer term waits for a
// late one of an older term, each lease by itself.
func TestTerms(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db.signed")
	var both [2]*Marks
	for i := range both {
		m, err := Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		both[i] = m
	}
	a, b := both[0], both[1]
	lease, other := common.Hash{1}, common.Hash{2}
	soon := func() time.Time { return time.Now().Add(time.Hour) }
	for i, step := range []struct {
		m     *Marks
		lease common.Hash
		term  int64
		late  time.Time
		want  error
	}{
		{a, lease, 1, time.Time{}, nil},
		{a, lease, 1, time.Time{}, nil},
		{a, lease, 1, soon(), nil},
		{b, lease, 2, time.Time{}, ErrLate},
		{b, other, 2, time.Time{}, nil},
		{a, other, 1, soon(), ErrNewerTerm},
		{a, lease, 1, time.Now().Add(-time.Second), nil}, // its time is over
		{b, lease, 2, time.Time{}, nil},
		{a, lease, 1, time.Time{}, ErrNewerTerm},
		{a, lease, 1, soon(), ErrNewerTerm},
		{b, lease, 2, soon(), nil},
	} {
		if err := step.m.Enter(t.Context(), step.lease, step.term, step.late); !errors.Is(err, step.want) || (err == nil) != (step.want == nil) {
			t.Errorf("step %d: %v, want %v", i, err, step.want)
		}
	}
	if err := a.Leave(t.Context(), lease, 1); err != nil { // another gateway's stands
		t.Error(err)
	}
	if err := a.Enter(t.Context(), lease, 3, time.Time{}); !errors.Is(err, ErrLate) {
		t.Error(err)
	}
	if err := b.Leave(t.Context(), lease, 2); err != nil {
		t.Error(err)
	}
	if err := a.Enter(t.Context(), lease, 3, time.Time{}); err != nil {
		t.Error(err)
	}
	if err := b.SetTerm(t.Context(), lease, 2); err != nil { // the database was restored
		t.Error(err)
	}
	if err := b.Enter(t.Context(), lease, 2, time.Time{}); err != nil {
		t.Error(err)
	}
}

// TestLateMarkFromTheFuture: a gateway was killed in a late command and the host's clock was set back by hours since, or while others wait:
// they wait for as long as the command was given, each process from when it saw the mark, and not for hours.
func TestLateMarkFromTheFuture(t *testing.T) {
	m, err := Open(t.Context(), filepath.Join(t.TempDir(), "db.signed"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	const given, back = 30 * time.Second, 5 * time.Hour
	setBack := func() {
		err := m.db.Update(t.Context(), func(tx *sqlx.Tx) error {
			_, err := tx.Exec(`UPDATE terms SET late = late + ?, at = at + ?`, int64(back), int64(back/time.Second))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for i, set := range []bool{true, false} {
		lease := common.Hash{byte(i + 1)}
		if err := m.Enter(t.Context(), lease, 1, time.Now().Add(given)); err != nil {
			t.Fatal(err)
		}
		setBack()
		passes := func(took time.Duration, want error) {
			t.Helper()
			if mark, ok := m.late[lease]; ok {
				mark.seen = mark.seen.Add(-took)
				m.late[lease] = mark
			}
			if err := m.Enter(t.Context(), lease, 2, time.Time{}); !errors.Is(err, want) || (err == nil) != (want == nil) {
				t.Errorf("set back before it was seen: %t; %s later: %v, want %v", set, took, err, want)
			}
		}
		passes(0, ErrLate)
		passes(given/2, ErrLate)
		passes(given/2+time.Second, nil)
		if len(m.late) != 0 {
			t.Error("the mark is remembered for ever")
		}
	}
}

// TestCheck: a file that cannot be written is found out soon, and that it can be again; whoever asks often costs no writes.
func TestCheck(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db.signed")
	m, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	written := func() (at int64) {
		if err := m.db.View().Get(&at, `SELECT at FROM probe`); err != nil {
			t.Fatal(err)
		}
		return at
	}
	if err := m.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := written()
	if err := m.Check(t.Context()); err != nil || written() != first {
		t.Errorf("%v, written again: %t", err, written() != first)
	}
	db, err := sqlx.Open("sqlite3", "file:"+path+"?_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	lock := db.MustBegin()
	m.checked = m.checked.Add(-goodFor)
	began := time.Now()
	if err := m.Check(t.Context()); err == nil || !strings.Contains(err.Error(), path) || time.Since(began) > 2*checkTimeout {
		t.Errorf("%v, after %s", err, time.Since(began))
	}
	if err := lock.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := m.Check(t.Context()); err == nil {
		t.Error("it is asked again at once")
	}
	m.checked = m.checked.Add(-badFor)
	if err := m.Check(t.Context()); err != nil {
		t.Error(err)
	}
}
