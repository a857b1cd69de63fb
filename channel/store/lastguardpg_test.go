package store

import (
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/pgtest"
)

// The statement by which a server keeps changes of channels writes no row whose accepted or spent would fall, should all
// else have gone wrong before it.
func TestLastGuardOfAServer(t *testing.T) {
	db, err := Open(t.Context(), pgtest.URL(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	terms := channel.Terms{ChainID: 1, Payer: [20]byte{1}, Payee: [20]byte{2}, Token: [20]byte{3}, Escrow: [20]byte{4}}
	s := channel.State{ID: terms.ID(), Terms: terms, Status: channel.Open, Accepted: *uint256.NewInt(50), Spent: *uint256.NewInt(60)}
	if _, err := db.Payee().Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	write := func(accepted, spent uint64) int64 {
		words := make([]byte, 0, 4*16)
		one := func(n uint64) [][]byte { return [][]byte{appendAmount(&words, *uint256.NewInt(n))} }
		done, err := db.writer.ExecContext(t.Context(), payeeUpdateRows, [][]byte{s.ID[:]}, one(0), one(0), one(accepted), one(spent), [][]byte{{}},
			[]int32{int32(channel.Open)}, []int64{0}, []int64{time.Now().UnixNano()})
		if err != nil {
			t.Fatal(err)
		}
		n, err := done.RowsAffected()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for _, c := range []struct {
		accepted, spent uint64
		want            int64
	}{{49, 60, 0}, {50, 59, 0}, {50, 60, 1}, {51, 61, 1}, {50, 61, 0}} {
		if n := write(c.accepted, c.spent); n != c.want {
			t.Errorf("accepted %d, spent %d: %d rows, want %d", c.accepted, c.spent, n, c.want)
		}
	}
}
