package nodelink

import (
	"fmt"
	"strings"
	"testing"

	"github.com/gpupay/gpupay/metering"
)

// TestListsThatNoNodeGives: a node is refused that lists too many GPUs, one twice or without a name, or one whose name is none.
func TestListsThatNoNodeGives(t *testing.T) {
	good := metering.Device{UUID: "GPU-1", Name: "H200", MemoryBytes: 1 << 37}
	with := func(change func(*metering.Device)) []metering.Device {
		bad := good
		bad.UUID = "GPU-2"
		change(&bad)
		return []metering.Device{good, bad}
	}
	if err := listable(with(func(*metering.Device) {})); err != nil {
		t.Error(err)
	}
	var many []metering.Device
	for i := range maxListed + 1 {
		many = append(many, metering.Device{UUID: fmt.Sprint(i)})
	}
	for name, list := range map[string][]metering.Device{
		"too many": many, "twice": {good, good}, "without a UUID": with(func(d *metering.Device) { d.UUID = "" }),
		"a long UUID": with(func(d *metering.Device) { d.UUID = strings.Repeat("x", MaxDeviceText+1) }),
		"a long name": with(func(d *metering.Device) { d.Name = strings.Repeat("x", MaxDeviceText+1) }),
		"a new line":  with(func(d *metering.Device) { d.Name = "H200\nlevel=ERROR" }),
		"no text":     with(func(d *metering.Device) { d.Parent = "\xff" }),
	} {
		if listable(list) == nil {
			t.Errorf("%s is no reason to refuse a node", name)
		}
	}
}
