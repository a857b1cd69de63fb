package nodelink

import (
	"testing"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestNodesKeepRoomForDeposits: a lease is on one host, and so is what is kept for
// one that is to come.
func TestNodesKeepRoomForDeposits(t *testing.T) {
	n := &Pool{status: map[string]Status{"a": {Free: 4}, "b": {Free: 2}, "c": {Free: 4}},
		enlisted: map[string][]wire.OfferDevices{"a": nil, "b": nil, "c": nil}}
	for _, c := range []struct {
		kept []int
		free int
	}{{nil, 4}, {[]int{4}, 4}, {[]int{4, 4}, 2}, {[]int{4, 4, 2}, 0}, {[]int{2, 2}, 2}, {[]int{8}, 4}, {[]int{1, 4}, 3}} {
		if got := n.FreeBeside(c.kept); got != c.free {
			t.Errorf("beside %v: %d are free, not %d", c.kept, got, c.free)
		}
	}
}

// TestSlicesOfAnothersGPU: a record of slices that are said to be cut from another node's GPU is refused.
func TestSlicesOfAnothersGPU(t *testing.T) {
	n := &Pool{known: map[string][]metering.Device{"north": {{UUID: "GPU-n"}}, "south": {{UUID: "MIG-s", Parent: "GPU-s"}}}}
	for parent, refused := range map[string]bool{"": false, "GPU-s": false, "GPU-n": true} {
		bill := []metering.DeviceEvidence{{Device: metering.Device{UUID: "MIG-s", Parent: parent}}}
		if err := n.CheckSlices("south", bill); (err != nil) != refused {
			t.Errorf("slices of %q: %v", parent, err)
		}
	}
}
