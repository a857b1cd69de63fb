package settle_test

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/settle"
)

var noon = time.Unix(1_800_000_000, 0)

// row is a channel that has waited for so long.
func row(id byte, unsettled uint64, waited time.Duration, urgent bool) settle.Waiting {
	return settle.Waiting{ID: common.Hash{id}, Unsettled: *uint256.NewInt(unsettled), Since: noon.Add(-waited), Urgent: urgent}
}

func ids(due []settle.Waiting) string {
	var all []byte
	for _, w := range due {
		all = append(all, w.ID[0])
	}
	return string(all)
}

func worth(due []settle.Waiting) (total uint64) {
	for _, w := range due {
		total += w.Unsettled.Uint64()
	}
	return total
}

func TestDue(t *testing.T) {
	cost := settle.Cost{Batch: *uint256.NewInt(100), Channel: *uint256.NewInt(10)}
	spike := settle.Cost{Batch: *uint256.NewInt(1e18), Channel: *uint256.NewInt(1e17)}
	plain := settle.Policy{MinValue: *uint256.NewInt(100_000)}
	crumbs := plain
	crumbs.LeastRow = *uint256.NewInt(10)
	dusty := plain
	dusty.Dust = *uint256.NewInt(1_000)
	closing := row('c', 1, 0, true)
	closing.Closing = true
	share := plain
	share.MaxFeeShare = 100 // one percent: a row pays for itself from 1,000 on, a batch of two from 12,000
	dustyShare := share
	dustyShare.Dust = dusty.Dust
	for _, c := range []struct {
		name    string
		policy  settle.Policy
		cost    settle.Cost
		waiting []settle.Waiting
		want    string
	}{
		{"nothing", share, cost, nil, ""},
		{"crumbs stay", crumbs, cost, []settle.Waiting{row('a', 9, 9*time.Hour, true), row('b', 10, time.Hour, false), row('c', 9, 9*time.Hour, false)}, "b"},
		{"crumbs do not come together", crumbs, cost, []settle.Waiting{row('a', 9, 0, false), row('b', 99_995, 0, false)}, ""},
		{"fees play no part", plain, cost, []settle.Waiting{row('a', 99_999, 59*time.Minute, false)}, ""},
		{"old takes all", plain, cost, []settle.Waiting{row('a', 1, time.Hour, false), row('b', 1, 0, false)}, "ab"},
		{"urgent goes alone", plain, cost, []settle.Waiting{row('a', 1, 0, true), row('b', 50_000, 0, false)}, "a"},
		{"a lease's end is not worth a transaction", dusty, cost, []settle.Waiting{row('a', 999, 0, true), row('b', 50_000, 59*time.Minute, false)}, ""},
		{"several ends are", dusty, cost, []settle.Waiting{row('a', 500, 0, true), row('b', 50_000, 0, false), row('c', 500, 0, true)}, "ac"},
		{"an end goes along with what is old", dusty, cost, []settle.Waiting{row('a', 999, 0, true), row('b', 50_000, time.Hour, false)}, "ab"},
		{"an end goes along with what is closing", dusty, cost, []settle.Waiting{row('a', 999, 0, true), row('b', 50_000, 0, false), closing}, "ac"},
		{"come together", plain, spike, []settle.Waiting{row('a', 99_999, 0, false), row('b', 1, 0, false)}, "ab"},
		{"cheap", share, cost, []settle.Waiting{row('a', 6_000, time.Hour, false), row('b', 6_000, 0, false)}, "ab"},
		{"cheap, but only dust is old", share, cost, []settle.Waiting{row('a', 11_000, 59*time.Minute, false), row('b', 999, 2*time.Hour, false)}, ""},
		{"cheap, but young", share, cost, []settle.Waiting{row('a', 6_000, 59*time.Minute, false), row('b', 6_000, 0, false)}, ""},
		{"cheap leaves dust", share, cost, []settle.Waiting{row('a', 11_000, time.Hour, false), row('b', 999, time.Hour, false)}, "a"},
		{"nearly cheap", share, cost, []settle.Waiting{row('a', 6_000, time.Hour, false), row('b', 5_999, time.Hour, false)}, ""},
		{"a spike waits", share, spike, []settle.Waiting{row('a', 99_999, 23*time.Hour, false)}, ""},
		{"a spike does not hold up age", share, spike, []settle.Waiting{row('a', 5, 24*time.Hour, false), row('b', 5, 11*time.Hour, false), row('c', 5, 12*time.Hour, false)}, "ac"},
		{"a spike does not hold up value", share, spike, []settle.Waiting{row('a', 60_000, 0, false), row('b', 40_000, 0, false)}, "ab"},
		{"a spike does not hold up what is closing", share, spike, []settle.Waiting{row('a', 5, 0, true), row('b', 50_000, 0, false)}, "a"},
		{"what pays goes along", share, cost, []settle.Waiting{row('a', 5, 0, true), row('b', 1_000, 0, false), row('c', 999, 0, false)}, "ab"},
		{"an end that is dust forces nothing", dustyShare, cost, []settle.Waiting{row('a', 999, 0, true), row('b', 11_000, 0, false)}, ""},
		{"an end that is dust goes along with what is old", dustyShare, spike, []settle.Waiting{row('a', 999, 0, true), row('b', 5_000, 24*time.Hour, false)}, "ab"},
		{"unknown fee waits", share, settle.Cost{}, []settle.Waiting{row('a', 99_999, 2*time.Hour, false)}, ""},
		{"unknown fee, closing", share, settle.Cost{}, []settle.Waiting{row('a', 1, 0, true), row('b', 9_999, 0, false)}, "a"},
		{"unknown fee, value", share, settle.Cost{}, []settle.Waiting{row('a', 100_000, 0, false)}, "a"},
		{"the clock went back", share, spike, []settle.Waiting{row('a', 1, -time.Hour, false)}, ""},
	} {
		if got := ids(c.policy.Due(c.waiting, noon, c.cost)); got != c.want {
			t.Errorf("%s: %q is due, want %q", c.name, got, c.want)
		}
	}
}

// Whatever the fee: what cannot wait does not, nothing stays beyond MinValue, and what is fetched early keeps to the share.
func TestDueKeepsItsBounds(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		p := settle.Policy{MinValue: *uint256.NewInt(random.Uint64N(3) * 5_000), MaxFeeShare: uint32(random.Uint64N(3) * 100), MaxAge: 10 * time.Hour}
		cost := settle.Cost{Batch: *uint256.NewInt(random.Uint64N(3) * 40), Channel: *uint256.NewInt(random.Uint64N(30))}
		waiting := make([]settle.Waiting, random.IntN(8))
		forced, total := false, uint64(0)
		for i := range waiting {
			waiting[i] = row(byte(i), 1+random.Uint64N(4_000), time.Duration(random.Int64N(int64(11*time.Hour))), random.IntN(10) == 0)
			total += waiting[i].Unsettled.Uint64()
		}
		due := make(map[common.Hash]bool)
		brings := uint64(0)
		for _, w := range p.Due(waiting, noon, cost) {
			due[w.ID] = true
			brings += w.Unsettled.Uint64()
		}
		for _, w := range waiting {
			must := w.Urgent || noon.Sub(w.Since) >= 10*time.Hour
			forced = forced || must
			if must && !due[w.ID] {
				t.Fatalf("%+v leaves out %+v", p, w)
			}
		}
		least := p.MinValue.Uint64()
		if least > 0 && total >= least && len(due) != len(waiting) {
			t.Fatalf("%+v leaves %d of %d channels, though %d have come together", p, len(waiting)-len(due), len(waiting), total)
		}
		spent := cost.Batch.Uint64() + cost.Channel.Uint64()*uint64(len(due))
		if !forced && (least == 0 || total < least) && len(due) > 0 && spent*10_000 > brings*uint64(p.MaxFeeShare) {
			t.Fatalf("%+v pays %d to fetch %d early", p, spent, brings)
		}
	}
}

func TestCosts(t *testing.T) {
	p := settle.Policy{MaxFeeShare: 50, CoinPrice: *uint256.NewInt(3_000_000_000)} // 3,000 dollars in millionths
	c := p.Costs(38_200, 11_800, big.NewInt(1e9))
	if c.Batch.Uint64() != 114_601 || c.Channel.Uint64() != 35_401 { // rounded up
		t.Errorf("at 1 gwei: %s and %s", c.Batch.Dec(), c.Channel.Dec())
	}
	if c := p.Costs(1, 1, big.NewInt(1)); c.Batch.IsZero() {
		t.Error("what costs next to nothing is unknown")
	}
	huge := new(big.Int).Lsh(big.NewInt(1), 255)
	for name, c := range map[string]settle.Cost{
		"no fee": p.Costs(1, 1, nil), "a fee of zero": p.Costs(1, 1, new(big.Int)), "a negative fee": p.Costs(1, 1, big.NewInt(-1)),
		"a huge fee": p.Costs(math.MaxUint64, 1, huge), "more than a word": p.Costs(1, 1, new(big.Int).Lsh(huge, 8)),
		"no price": settle.Policy{MaxFeeShare: 50}.Costs(1, 1, big.NewInt(1e9)),
	} {
		if c != (settle.Cost{}) {
			t.Errorf("%s: %+v, want unknown", name, c)
		}
	}
}

func TestPolicyCheck(t *testing.T) {
	price := *uint256.NewInt(1)
	for _, c := range []struct {
		policy settle.Policy
		good   bool
	}{
		{settle.Policy{}, true},
		{settle.Policy{MaxFeeShare: 50, CoinPrice: price}, true},
		{settle.Policy{MaxFeeShare: 50}, false},
		{settle.Policy{MaxFeeShare: 10_001, CoinPrice: price}, false},
		{settle.Policy{MaxAge: -1}, false},
		{settle.Policy{MaxBatch: 1000}, true},
		{settle.Policy{MaxBatch: 1001}, false}, // more than fit into what nodes take
	} {
		if err := c.policy.Check(); (err == nil) != c.good {
			t.Errorf("%+v: %v", c.policy, err)
		}
	}
}

// Of dust only what is closing is fetched. Of anything more, dust as a setting changes nothing, but that what ended is fetched
// alone only where it is none.
func TestDueLeavesDust(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 20_000 {
		with := settle.Policy{MinValue: *uint256.NewInt(random.Uint64N(3) * 500), MaxAge: time.Hour}
		without := with
		with.Dust = *uint256.NewInt(1 + random.Uint64N(1000))
		waiting := make([]settle.Waiting, random.IntN(6))
		total, closing := uint64(0), ""
		for i := range waiting {
			waiting[i] = row(byte('a'+i), 1+random.Uint64N(400), time.Duration(random.Int64N(int64(2*time.Hour))), random.IntN(4) == 0)
			total += waiting[i].Unsettled.Uint64()
			if random.IntN(4) == 0 {
				waiting[i].Closing, waiting[i].Urgent = true, true
				closing += string(rune('a' + i))
			}
		}
		got, want := ids(with.Due(waiting, noon, settle.Cost{})), closing
		if total >= with.Dust.Uint64() {
			due := without.Due(waiting, noon, settle.Cost{})
			want = ids(due)
			if len(due) < len(waiting) && closing == "" && worth(due) < with.Dust.Uint64() {
				want = ""
			}
		}
		if got != want {
			t.Fatalf("%+v of %+v: %q is due, want %q", with, waiting, got, want)
		}
	}
}
