package onchain

import (
	"errors"
	"os"
	"testing"

	"github.com/gpupay/gpupay/bench"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/sdk/chain"
)

// The least work gives a whole page, and what policies reckon with is what receipts say.
func TestSection(t *testing.T) {
	if os.Getenv(chaintest.NoAnvil) == "1" {
		t.Skip(chaintest.NoAnvil + "=1")
	}
	report, err := Section{}.Measure(t.Context(), bench.Settings{Most: 10})
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range report.Tables {
		for _, row := range table.Rows {
			if len(row) != len(table.Head) {
				t.Errorf("%d cells: %v", len(row), row)
			}
			if len(row) == 3 && row[1] == "+0" {
				t.Errorf("%q changes nothing", row[0])
			}
			t.Log(row)
		}
	}
	for _, a := range report.Aims {
		t.Log(a)
	}
	for _, line := range report.Plots[0].Lines {
		batch, row := (*chain.Escrow)(nil).SettlementGas()
		if line.Name != "gpupay" {
			batch, row = (*chain.BatchSettlement)(nil).SettlementGas()
		}
		last := line.Points[len(line.Points)-1]
		got, want := last.Y.Median*last.X, float64(batch)+float64(row)*last.X
		t.Logf("%s: a batch of %g takes %g gas, policies reckon with %g", line.Name, last.X, got, want)
		if line.Name == "gpupay" && (got > want*1.02 || got < want*0.98) {
			t.Error("that is more than 2 % off")
		}
	}
}

// A variant of a contract that has changed since is an error, and not a measurement of the contract as it is.
func TestPatchThatFitsNoMore(t *testing.T) {
	patches := []patch{{"a.sol", "x = 1;", "x = 2;"}, {"b.sol", "nothing", "something"}}
	got, err := apply("x = 1; y = 1;", "a.sol", patches)
	if err != nil || got != "x = 2; y = 1;" {
		t.Errorf("%q, %v", got, err)
	}
	for _, text := range []string{"x = 3;", "x = 1; x = 1;", ""} {
		if got, err := apply(text, "a.sol", patches); err == nil {
			t.Errorf("%q became %q", text, got)
		}
	}
}

// What is fatal on a stage is an error, and what was begun is ended.
func TestStage(t *testing.T) {
	ended := 0
	err := perform(t.Context(), func(s *stage) {
		s.Cleanup(func() { ended++ })
		s.Fatalf("no: %w", os.ErrNotExist)
	})
	if !errors.Is(err, os.ErrNotExist) || ended != 1 {
		t.Errorf("%v, ended %d times", err, ended)
	}
}
