package metering

import (
	"errors"
	"fmt"
	"slices"
)

// contradicts says where a device's evidence contradicts itself: what an honest
// meter cannot have counted, whatever the device did. maxGap is the evidence's own.
func (d DeviceEvidence) contradicts(maxGap int64) error {
	if err := d.accounted(); err != nil {
		return err
	}
	if d.Nanos.Allocated == 0 {
		return nil
	}
	if maxGap <= 0 || uint64(d.Nanos.Allocated-1)/uint64(maxGap) >= d.Samples { // each billed interval ends with a sample
		return fmt.Errorf("%d ns allocated with %d samples, at most %d ns apart", d.Nanos.Allocated, d.Samples, maxGap)
	}
	for _, x := range d.XIDs {
		if x.Stops() && x.Mono < d.To.Mono && !d.interrupted() {
			return fmt.Errorf("xid %d, and all of its time is billed", x.Code)
		}
	}
	return nil
}

// accounted checks that the time between the stamps is allocated, down, a gap or
// paused, to the nanosecond, and that the holes are what was down or a gap.
func (d DeviceEvidence) accounted() error {
	passed, holes, err := d.spans()
	if err != nil {
		return err
	}
	n, rest := d.Nanos, passed
	for _, part := range []int64{n.Allocated, n.Down, n.Gap, n.Paused} {
		if uint64(part) > rest {
			return fmt.Errorf("%d ns allocated, %d down, %d of gaps and %d paused between stamps %d ns apart", n.Allocated, n.Down, n.Gap, n.Paused, passed)
		}
		rest -= uint64(part)
	}
	if rest != 0 {
		return fmt.Errorf("%d ns between its stamps are not accounted for", rest)
	}
	if unbilled := uint64(n.Down) + uint64(n.Gap); holes > unbilled || d.MoreGaps == 0 && holes != unbilled {
		return fmt.Errorf("holes of %d ns, and %d ns of gaps and down time", holes, unbilled)
	}
	return nil
}

// spans is the time between the stamps and that in the listed holes, in
// nanoseconds. The ends of a reboot are on two clocks: before and after it time is
// counted on one each, and it happens once at most.
func (d DeviceEvidence) spans() (passed, holes uint64, err error) {
	start, at := d.From.Mono, d.From.Mono // of this clock, and up to where holes were seen
	if start < 0 || d.To.Mono < 0 {
		return 0, 0, errors.New("a stamp from before its host's boot")
	}
	rebooted := false
	for i, g := range d.Gaps {
		switch {
		case g.From < 0 || g.To < 0:
			return 0, 0, errors.New("a hole from before its host's boot")
		case g.Reason == ReasonReboot && rebooted:
			return 0, 0, errors.New("two reboots")
		case g.Reason == ReasonReboot && i == 0 && g.To == start: // nothing was counted before it
			rebooted = true
		case g.From < at:
			return 0, 0, fmt.Errorf("a hole from %d on, after one that ended at %d", g.From, at)
		case g.Reason == ReasonReboot:
			rebooted = true
			passed += uint64(g.From - start)
			start, at = g.To, g.To
		case g.To < g.From:
			return 0, 0, fmt.Errorf("a hole from %d to %d", g.From, g.To)
		default:
			holes += uint64(g.To - g.From)
			at = g.To
		}
	}
	if d.To.Mono < at {
		return 0, 0, fmt.Errorf("its last stamp is %d, after %d", d.To.Mono, at)
	}
	return passed + uint64(d.To.Mono-start), holes, nil
}

// interrupted reports whether any of the time was not billed, or a reboot hid some.
func (d DeviceEvidence) interrupted() bool {
	return d.Nanos.Down > 0 || d.Nanos.Gap > 0 || d.Nanos.Paused > 0 || len(d.Gaps) > 0 || d.MoreGaps > 0
}

// checked is what a checker remembers of a device at the end of its evidence.
func (d DeviceEvidence) checked() CheckedDevice {
	return CheckedDevice{BootID: d.Device.BootID, Mono: d.To.Mono, Total: d.Total, UUID: d.Device.UUID,
		Name: d.Device.Name, MemoryBytes: d.Device.MemoryBytes, VBIOS: d.Device.VBIOS,
		Stopped: slices.ContainsFunc(d.XIDs, d.stoppedBy)}
}

// stoppedBy reports whether an XID stopped the device at the end of its evidence.
// One with a later stamp is of the boot before, if one ended.
func (d DeviceEvidence) stoppedBy(x XID) bool {
	return x.Stops() && (x.Mono == d.To.Mono || x.Mono > d.To.Mono && !d.rebooted())
}

// follows checks a device's evidence against how it ended in the record before.
func (d DeviceEvidence) follows(last CheckedDevice) error {
	if d.Total-d.Nanos.Allocated != last.Total {
		return fmt.Errorf("%w: %s starts at %d ns, the last record ended at %d", ErrEvidence, d.Device.UUID, d.Total-d.Nanos.Allocated, last.Total)
	}
	if d.Nanos.Allocated == 0 {
		return nil
	}
	if d.begins(last.BootID) && d.From.Mono < last.Mono {
		return fmt.Errorf("%w: %s shows time from %d, the last record went to %d", ErrEvidence, d.Device.UUID, d.From.Mono, last.Mono)
	}
	if last.Stopped && !d.interrupted() {
		return fmt.Errorf("%w: %s stopped with an xid in the last record, and all of its time is billed", ErrEvidence, d.Device.UUID)
	}
	if err := d.sameBoot(last); err != nil {
		return err
	}
	return d.isStill(last)
}

// begins reports whether evidence that bills time begins on the clock of the boot
// before: it is of that boot, or ends it with a reboot.
func (d DeviceEvidence) begins(before string) bool {
	return d.Device.BootID == before || before != "" && len(d.Stretches()) > 1
}

// isStill checks that a device is what it was in the record before. Its VBIOS can
// be another after a reboot, and its driver counts memory a little differently.
func (d DeviceEvidence) isStill(last CheckedDevice) error {
	is := d.Device
	if last.Name == "" {
		return nil
	}
	if is.Name != last.Name || !alike(is.MemoryBytes, last.MemoryBytes) || is.BootID == last.BootID && is.VBIOS != last.VBIOS {
		return fmt.Errorf("%w: %s was %s with %d bytes and VBIOS %s, and is %s with %d and %s", ErrDevices, is.UUID,
			last.Name, last.MemoryBytes, last.VBIOS, is.Name, is.MemoryBytes, is.VBIOS)
	}
	return nil
}

// alike reports whether two amounts of memory differ by no more than what drivers
// keep for themselves: a sixteenth.
func alike(a, b uint64) bool { return max(a, b)-min(a, b) <= max(a, b)/16 }

// Model is a kind of device.
type Model struct {
	Name        string
	MemoryBytes uint64 // to a sixteenth
	MIG         *bool  // whether it is a slice of a GPU; nil: it may be either
}

// Is reports whether a device is of the kind.
func (m Model) Is(d Device) bool {
	return printable(m.Name) == d.Name && alike(m.MemoryBytes, d.MemoryBytes) && (m.MIG == nil || *m.MIG == d.MIG)
}

// String names the kind as it stands in a refusal.
func (m Model) String() string {
	text := fmt.Sprintf("%s with %d bytes", m.Name, m.MemoryBytes)
	if m.MIG != nil && *m.MIG {
		text += " as a slice"
	}
	return text
}

// offered checks evidence against what the lease's offer says of its devices.
func (l Lease) offered(e Evidence) error {
	if l.MaxGap > 0 && e.MaxGap > int64(l.MaxGap) {
		return fmt.Errorf("%w: it bills gaps of %d ns, the offer allows %s", ErrEvidence, e.MaxGap, l.MaxGap)
	}
	if l.Tick > 0 && e.Tick != int64(l.Tick) {
		return fmt.Errorf("%w: it was read each %d ns, the offer says %s", ErrEvidence, e.Tick, l.Tick)
	}
	if e.Simulated && !l.Simulated { // also where the offer names no devices: a simulated one is not looked for in other leases
		return fmt.Errorf("%w: they are simulated, and the offer's are not", ErrDevices)
	}
	if len(l.Models) == 0 {
		return nil
	}
	for _, d := range e.Devices {
		if d.Nanos.Allocated > 0 && !slices.ContainsFunc(l.Models, func(m Model) bool { return m.Is(d.Device) }) {
			is := Model{Name: d.Device.Name, MemoryBytes: d.Device.MemoryBytes, MIG: &d.Device.MIG}
			return fmt.Errorf("%w: %s is a %s, the offer has %v", ErrDevices, d.Device.UUID, is, l.Models)
		}
	}
	return nil
}
