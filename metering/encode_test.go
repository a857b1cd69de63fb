package metering

import (
	"testing"
)

// FuzzReadingEncode: the reading that is written by hand is the one that
// encoding/json writes.
func FuzzReadingEncode(f *testing.F) {
	f.Add("boot", "", "GPU-1", "550.1", "healthy", int64(1), uint64(2), uint32(3), uint8(63), true, false)
	f.Add("b\"o\\ot", "<x> & \x7f", "GPU\n", "é\u2028", "\xff", int64(-1), uint64(1<<63), uint32(1<<31), uint8(255), false, true)
	f.Fuzz(func(t *testing.T, boot, detail, device, driver, health string, i int64, u uint64, n uint32, has uint8, simulated, xid bool) {
		r := Reading{At: Instant{Boot: i, Mono: i / 3, Wall: -i}, BootID: boot, Detail: detail, Device: device, Driver: driver, Energy: u,
			Generation: u / 2, Has: Fields(has), Health: Health(health), Memory: u / 3, PowerBrake: u / 5, Processes: n, Seen: device + driver,
			Simulated: simulated, Thermal: u / 7, Utilization: n / 2}
		if xid {
			r.XIDs = []XID{NewXID(u, i)}
		}
		if got, want := string(r.Encode()), string(canonical(r)); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	})
}

// TestPlainReadingIsWrittenByHand: else the fuzz target compares encoding/json
// with itself.
func TestPlainReadingIsWrittenByHand(t *testing.T) {
	r := Reading{BootID: "b", Device: "GPU-1", Driver: "550", Health: Healthy, Seen: "GPU-1"}
	buf := make([]byte, 0, 1024)
	if allocs := testing.AllocsPerRun(10, func() { buf = r.Append(buf[:0]) }); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}
