package model

import (
	"math/big"
	"testing"

	"github.com/ethereum/go-ethereum/params"
	"pgregory.net/rapid"
)

// spiking is actions, and fees that rise beyond what the node lets a transaction pay.
type spiking struct{ actions }

// Spike lasts for some minutes. What the node refuses in it is on disk, and stays refused as it is.
func (x *spiking) Spike(t *rapid.T) {
	w := x.w
	calm := w.chain.BaseFee
	w.chain.BaseFee = big.NewInt(rapid.Int64Range(150, 400).Draw(t, "gwei") * params.GWei)
	w.chain.Bound = big.NewInt(rapid.Int64Range(40_000_000, 120_000_000).Draw(t, "gwei of a transaction") * params.GWei)
	w.spiking = true
	for range rapid.IntRange(1, 4).Draw(t, "minutes") {
		_, err := w.chain.Mine()
		w.must(err)
		w.pass(interval)
		w.till.work()
	}
	w.seen["refused in a spike"] += w.chain.Unpaid
	w.chain.BaseFee, w.chain.Unpaid, w.spiking = calm, 0, false
	_, err := w.chain.Mine()
	w.must(err)
	w.pass(0)
	w.noteLate()
}

// TestSpikes: money is fetched, once, also where a node refused for its price what was to fetch it.
func TestSpikes(t *testing.T) {
	set(t, "rapid.checks", "12")
	set(t, "rapid.steps", "40")
	set(t, "rapid.nofailfile", "true")
	set(t, "rapid.shrinktime", "1ms")
	seen := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(rt, seen)
		x := &spiking{actions{w}}
		rt.Repeat(map[string]func(*rapid.T){
			"Open": x.Open, "Open again": x.Open, "Pay": x.Pay, "Pay more": x.Pay, "Pay again": x.Pay, "Work": x.Work, "TakeBack": x.TakeBack,
			"Spike": x.Spike, "": x.Check,
		})
		w.T = rt
		w.finale()
	})
	t.Log(seen)
	if seen["refused in a spike"] == 0 {
		t.Error("nothing was refused")
	}
}
