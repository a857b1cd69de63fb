package chain

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/gpupay/gpupay/channel/store"
)

// What a call is given: the larger of two estimates unless it is out of proportion, no less than it takes, and more than what failed.
func TestGasOfACall(t *testing.T) {
	call := Call{Kind: Settle, Channels: make([]common.Hash, 1)}
	least, dear := boundsOf(call)
	for _, c := range []struct {
		estimates []uint64
		failed    uint64
		from, to  uint64
	}{
		{[]uint64{80_000}, 0, 130_000, 130_000},
		{[]uint64{80_000, 90_000}, 0, 142_500, 142_500},
		{[]uint64{1}, 0, least, least},
		{[]uint64{1, 80_000}, 0, 130_000, 130_000},
		{[]uint64{80_000, 1 << 40}, 0, dear, 2 * dear},
		{[]uint64{1 << 40, 80_000}, 0, dear, 2 * dear},
		{[]uint64{2_000_000}, 0, 2_530_000, 2_530_000},            // an account that is a contract
		{[]uint64{2_000_000, 2_100_000}, 0, 2_530_000, 2_700_000}, // by both
		{[]uint64{1}, 130_000, 260_000, 260_000},                  // it ran out of gas
		{[]uint64{1, 2_000_000}, dear, 2_530_000, 2_530_000},      // the one who says much was right
		{[]uint64{80_000}, 100 * dear, dear, dear},                // no further than it can take
		{[]uint64{80_000, 80_000}, 10_000, 130_000, 130_000},
	} {
		if gas := gasFor(call, c.estimates, c.failed); gas < c.from || gas > c.to {
			t.Errorf("estimates %d, failed with %d: %d", c.estimates, c.failed, gas)
		}
	}
}

// Kinds are the kinds of calls that are submitted: all that this package declares but Fill, which is never estimated.
func Kinds(t *testing.T) (all []Kind) {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			if of, ok := spec.Type.(*ast.Ident); ok && of.Name == "Kind" && len(spec.Values) == 1 {
				kind, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, Kind(kind))
			}
			return true
		})
	}
	return slices.DeleteFunc(all, func(k Kind) bool { return k == Fill })
}

// LeastGas is the least that a call is given.
func LeastGas(call Call) uint64 {
	least, _ := boundsOf(call)
	return least
}

// Every kind of call that is sent has a least gas: an endpoint's estimate of next to nothing would have it run out.
func TestEveryKindHasALeastGas(t *testing.T) {
	kinds := Kinds(t)
	if len(kinds) < 16 {
		t.Fatalf("the kinds are %q", kinds)
	}
	for _, kind := range kinds {
		if gas := gasFor(Call{Kind: kind}, []uint64{1}, 0); gas == 1+gasMargin {
			t.Errorf("a %s is given the %d gas of a false estimate", kind, gas)
		}
	}
}

// A call is held to what it may take by what both of two endpoints say, and by what ran out.
func TestGasWithinMax(t *testing.T) {
	for _, c := range []struct {
		estimates []uint64
		failed    uint64
		gas       uint64 // 0: refused
	}{
		{[]uint64{100_000}, 0, 155_000},
		{[]uint64{320_000}, 0, 0},
		{[]uint64{320_000, 330_000}, 0, 0},
		{[]uint64{320_000, 100_000}, 0, 400_000},
		{[]uint64{100_000, 320_000}, 0, 400_000},
		{[]uint64{100_000, 1 << 40}, 0, 400_000},
		{[]uint64{100_000}, 155_000, 310_000},
		{[]uint64{100_000}, 310_000, 400_000},
		{[]uint64{100_000}, 400_000, 0},
		{[]uint64{1, 1}, 0, LeastGas(Call{Kind: Open})},
	} {
		gas, enough, err := withinMax(Call{Kind: Open, MaxGas: 400_000}, c.estimates, c.failed)
		var dear *TooDear
		if gas != c.gas || enough > gas || errors.As(err, &dear) != (c.gas == 0) || dear != nil && dear.Gas <= 400_000 {
			t.Errorf("estimates %d, %d ran out: %d, %d, %v", c.estimates, c.failed, gas, enough, err)
		}
	}
}

// What ran out of gas is told from what reverted for another reason.
func TestRanOut(t *testing.T) {
	for used, want := range map[uint64]bool{200_000: true, 197_000: true, 190_000: true, 160_000: false, 21_000: false} {
		version := types.NewTx(&types.DynamicFeeTx{Gas: 200_000})
		if ranOut(version, &types.Receipt{GasUsed: used}) != want || ranOut(version, &types.Receipt{Status: 1, GasUsed: used}) {
			t.Errorf("%d of 200000 gas", used)
		}
	}
}

// What ran out of gas is found by its channel and kind, for a while; what failed otherwise is not.
func TestFailedWith(t *testing.T) {
	db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s, err := OpenStore(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for n, gas := range []uint64{70_000, 90_000, 300_000, 200_000} {
		tx := Tx{ID: newTxID(), Nonce: uint64(n), Call: Call{Kind: Settle, Channels: []common.Hash{{1}}}, Gas: gas, State: Final, Hash: common.Hash{byte(n + 1)}, CreatedAt: now,
			Succeeded: gas == 300_000, RanOut: gas < 100_000, Attempts: []Attempt{{Signed: types.NewTx(&types.DynamicFeeTx{Nonce: uint64(n)})}}}
		if err := s.insert(t.Context(), tx); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		kind    Kind
		channel byte
		since   time.Time
		want    uint64
	}{{Settle, 1, now.Add(-time.Hour), 90_000}, {Settle, 2, now.Add(-time.Hour), 0}, {Close, 1, now.Add(-time.Hour), 0}, {Settle, 1, now.Add(time.Hour), 0}} {
		call := Call{Kind: c.kind, Channels: []common.Hash{{9}, {c.channel}}}
		if gas, err := s.failedWith(t.Context(), call, c.since); err != nil || gas != c.want {
			t.Errorf("%s of channel %d: %d, %v, want %d", c.kind, c.channel, gas, err, c.want)
		}
	}
}
