package highwater

import (
	"maps"
	"path/filepath"
	"testing"

	"github.com/ethereum/go-ethereum/common"
)

// TestOwn: what was handed out is a database's wherever it is put, and so is what was handed out from the address of the one that it
// replaces, whether it is new or comes back, also where an older program wrote that address otherwise or forgot whose it was. Two that run
// beside each other have each its own.
func TestOwn(t *testing.T) {
	m, err := Open(t.Context(), filepath.Join(t.TempDir(), "signed"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	hand := func(database string, lease byte) {
		if err := m.Hand(t.Context(), database, common.Hash{lease}, []string{"GPU"}, true); err != nil {
			t.Fatal(err)
		}
	}
	before := map[string]string{"server, schema one": "server, schemas one and two"}
	own := func(database, address string, leases ...byte) {
		t.Helper()
		if err := m.Own(t.Context(), database, address, before[address]); err != nil {
			t.Fatal(err)
		}
		has, err := m.InHands(t.Context(), database)
		if err != nil {
			t.Fatal(err)
		}
		want := make(map[common.Hash]InHand)
		for _, lease := range leases {
			want[common.Hash{lease}] = has[common.Hash{lease}]
		}
		if !maps.EqualFunc(has, want, func(a, b InHand) bool { return len(a.Devices) == len(b.Devices) }) {
			t.Errorf("%s at %s has %v, not %v", database, address, has, leases)
		}
	}
	hand("here", 1) // by a program that knew the address alone
	own("one", "here", 1)
	hand("one", 2)
	own("other", "there")
	hand("other", 3)
	own("one", "moved", 1, 2)
	own("other", "moved", 1, 2, 3) // for all that is known the one was lost
	own("one", "there")
	hand("one", 4)
	own("fresh", "there", 4) // the one was lost
	hand("fresh", 7)
	own("one", "there", 4, 7) // it was found again
	own("other", "here", 1, 2, 3)
	hand("one", 8)
	own("one", "here", 1, 2, 3, 4, 7, 8) // it comes back to where the other was, and was lost
	own("other", "there")
	if err := m.Hand(t.Context(), "0a9f", common.Hash{9}, []string{"GPU"}, true); err != nil { // an older program forgot where that was
		t.Fatal(err)
	}
	own("other", "there", 9)
	hand(before["server, schema one"], 5) // by a program that knew the address alone
	own("older", before["server, schema one"], 5)
	hand("older", 6)
	own("older", "server, schema one", 5, 6)
	own("older", before["server, schema one"], 5, 6) // with the older program once more
	own("newer", "server, schema one", 5, 6)         // the older one was lost
	own("older", "server, schema one", 5, 6)         // it was found again
	own("newer", "server, schema two")
}

// TestPlaced: of two leases it is known which one got its devices later, unless it is not.
func TestPlaced(t *testing.T) {
	m, err := Open(t.Context(), filepath.Join(t.TempDir(), "signed"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for i, placed := range []bool{true, true, false, true, false} {
		for range 2 { // the second time it is known
			if err := m.Hand(t.Context(), "one", common.Hash{byte(i)}, []string{"GPU"}, placed); err != nil {
				t.Fatal(err)
			}
		}
	}
	has, err := m.InHands(t.Context(), "one")
	for i, want := range []int64{1, 2, 0, 3, 0} {
		if got := has[common.Hash{byte(i)}].Placed; got != want || err != nil {
			t.Errorf("lease %d: %d, not %d: %v", i, got, want, err)
		}
	}
}
