package audit

import (
	"errors"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/billed"
)

// hourOf is a bundle of one record, which bills a device for an hour on its boot's clock and from a time on the payee's.
func hourOf(channel byte, d metering.Device, wall time.Duration) *Bundle {
	const hour = int64(time.Hour)
	rec := metering.SignedRecord{Evidence: metering.Evidence{Devices: []metering.DeviceEvidence{{
		Device: d, From: metering.Instant{Mono: hour, Wall: 1e18 + int64(wall)}, To: metering.Instant{Mono: 2 * hour, Wall: 1e18 + int64(wall) + hour},
		Nanos: metering.Nanos{Allocated: hour}, Total: hour,
	}}}}
	return &Bundle{Channel: common.Hash{channel}, Leases: []Lease{{ID: common.Hash{channel}, Records: []metering.SignedRecord{rec}}}}
}

// TestSliceBesideItsGPUOverBoots: a MIG slice that is billed beside its whole GPU is found, whatever the boots of their host
// are called; two slices that are let at once are not taken for that.
func TestSliceBesideItsGPUOverBoots(t *testing.T) {
	slice := func(uuid, boot string) metering.Device {
		return metering.Device{UUID: uuid, Parent: "GPU-1", MIG: true, BootID: boot}
	}
	whole := metering.Device{UUID: "GPU-1", BootID: "a"}
	for _, c := range []struct {
		name     string
		one, two metering.Device
		after    time.Duration // on the payee's wall clock, the second begins
		twice    bool
	}{
		{"one boot", whole, slice("MIG-1", "a"), 0, true},
		{"two boots", whole, slice("MIG-1", "b"), 0, true},
		{"two boots, the slice first", slice("MIG-1", "b"), whole, 0, true},
		{"boots without a name", whole, slice("MIG-1", ""), 0, true},
		{"neither boot has a name", metering.Device{UUID: "GPU-1"}, slice("MIG-1", ""), 0, true},
		{"one boot after the other", whole, slice("MIG-1", "b"), time.Hour, false},
		{"two slices in one boot", slice("MIG-1", "a"), slice("MIG-2", "a"), 0, false},
		{"two slices, and no boot has a name", slice("MIG-1", ""), slice("MIG-2", ""), 0, false},
		{"two slices of one GPU in two boots", slice("MIG-1", "a"), slice("MIG-2", "b"), 0, true},
		{"another GPU's slice in another boot", metering.Device{UUID: "GPU-2", BootID: "a"}, slice("MIG-1", "b"), 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := Failures(VerifyTogether([]*Bundle{hourOf(1, c.one, 0), hourOf(2, c.two, c.after)}))
			if errors.Is(err, billed.ErrTwice) != c.twice {
				t.Errorf("%v, want it found: %v", err, c.twice)
			}
		})
	}
}

// TestSlotsAreBilledAtOnce: leases in slots are billed for the same GPUs at the same time, and no time of these is billed twice.
func TestSlotsAreBilledAtOnce(t *testing.T) {
	one, two := hourOf(1, metering.Device{UUID: "GPU-1", BootID: "a"}, 0), hourOf(2, metering.Device{UUID: "GPU-1", BootID: "a"}, 0)
	for _, b := range []*Bundle{one, two} {
		b.Leases[0].Records[0].Evidence.Kind = metering.KindSlots
	}
	if err := Failures(VerifyTogether([]*Bundle{one, two})); err != nil {
		t.Error(err)
	}
	if spans := billed.Add(nil, one.Leases[0].Records[0], billed.Hearing{Boot: "ours", Now: int64(time.Hour)}); len(spans) != 0 {
		t.Errorf("%+v", spans)
	}
}

// TestSliceInOneBoot: on one boot's clock a slice and its whole GPU are let one after the other, and not at once.
func TestSliceInOneBoot(t *testing.T) {
	let := func(uuid string, from, to int64) leaseSpan {
		s := leaseSpan{lease: common.BytesToHash([]byte(uuid))}
		s.UUID, s.BootID, s.From, s.To, s.Billed = uuid, "a", from, to, to-from
		if uuid != "GPU-1" && uuid != "GPU-2" {
			s.Parent = "GPU-1"
		}
		return s
	}
	for _, row := range []struct {
		name  string
		lets  []leaseSpan
		twice bool
	}{
		{"slices at once", []leaseSpan{let("MIG-1", 0, 10), let("MIG-2", 0, 10), let("MIG-1", 10, 20), let("MIG-2", 10, 20)}, false},
		{"cut", []leaseSpan{let("GPU-1", 0, 10), let("MIG-1", 10, 20), let("MIG-2", 10, 20)}, false},
		{"whole again", []leaseSpan{let("MIG-1", 0, 10), let("MIG-2", 0, 10), let("GPU-1", 10, 20), let("MIG-1", 20, 30)}, false},
		{"another GPU", []leaseSpan{let("GPU-2", 0, 10), let("MIG-1", 0, 10)}, false},
		{"whole beside a slice", []leaseSpan{let("MIG-1", 0, 10), let("MIG-2", 0, 10), let("GPU-1", 5, 15)}, true},
		{"slice beside the whole", []leaseSpan{let("GPU-1", 0, 20), let("MIG-1", 4, 8)}, true},
	} {
		if err := billedTwice(row.lets); errors.Is(err, billed.ErrTwice) != row.twice {
			t.Errorf("%s: %v, want found: %v", row.name, err, row.twice)
		}
	}
}
