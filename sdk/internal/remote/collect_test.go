package remote

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestGivenUpOnce: a lease that two passes give up, each with what it read before the other, is counted once, and one whose database
// does not take it not at all: the next pass gives it up.
func TestGivenUpOnce(t *testing.T) {
	db := providerDB(t)
	s := leasestore.New(db)
	n := New(nil)
	n.Config = Config{Store: s, Shares: &Shares{Store: s}, Log: slog.New(slog.DiscardHandler), Forgone: prometheus.NewCounter(prometheus.CounterOpts{Name: "forgone"})}
	registry := prometheus.NewRegistry()
	registry.MustRegister(n.Config.Forgone)
	counted := func() float64 {
		t.Helper()
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		return families[0].Metric[0].Counter.GetValue()
	}
	row := leasestore.Row{ID: common.Hash{1}.Hex(), Channel: common.Hash{2}.Hex(), Allocation: "{}", OwedBefore: "0", State: wire.StateAllocating}
	if err := errors.Join(s.Leases.Insert(t.Context(), row), s.Leases.SetEnded(t.Context(), common.Hash{1}, 0, "", true)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		late := s.Leases.SetEnded(t.Context(), common.Hash{1}, 0, "", true) // by a pass that still waited for the node
		if err := errors.Join(n.giveUp(t.Context(), row, errors.New("out of reach")), late); err != nil {
			t.Fatal(err)
		}
	}
	if got := counted(); got != 1 {
		t.Errorf("%v leases are given up of one", got)
	}
	row.ID = common.Hash{3}.Hex()
	if err := errors.Join(s.Leases.Insert(t.Context(), row), s.Leases.SetEnded(t.Context(), common.Hash{3}, 0, "", true), db.Close()); err != nil {
		t.Fatal(err)
	}
	if err := n.giveUp(t.Context(), row, errors.New("out of reach")); err == nil {
		t.Error("it is given up without a database")
	}
	if got := counted(); got != 1 {
		t.Errorf("%v leases are given up of one, after one that is not on disk", got)
	}
}
