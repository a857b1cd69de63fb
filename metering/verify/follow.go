package verify

import (
	"fmt"
	"slices"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/internal/ident"
)

// checked is what a checker remembers of a device at the end of its evidence.
func checked(d metering.DeviceEvidence) Device {
	return Device{BootID: d.Device.BootID, Mono: d.To.Mono, Total: d.Total, UUID: d.Device.UUID,
		Name: d.Device.Name, MemoryBytes: d.Device.MemoryBytes, VBIOS: d.Device.VBIOS,
		Stopped: slices.ContainsFunc(d.XIDs, func(x metering.XID) bool { return stoppedBy(d, x) })}
}

// stoppedBy reports whether an XID stopped the device at the end of its evidence.
// One with a later stamp is of the boot before, if one ended.
func stoppedBy(d metering.DeviceEvidence, x metering.XID) bool {
	return x.Stops() && (x.Mono == d.To.Mono || x.Mono > d.To.Mono && !rebooted(d))
}

// follows checks a device's evidence against how it ended in the record before.
func follows(d metering.DeviceEvidence, last Device) error {
	if d.Total-d.Nanos.Allocated != last.Total {
		return fmt.Errorf("%w: %s starts at %d ns, the last record ended at %d", metering.ErrEvidence, d.Device.UUID, d.Total-d.Nanos.Allocated, last.Total)
	}
	if d.Nanos.Allocated == 0 {
		return nil
	}
	if begins(d, last.BootID) && d.From.Mono < last.Mono {
		return fmt.Errorf("%w: %s shows time from %d, the last record went to %d", metering.ErrEvidence, d.Device.UUID, d.From.Mono, last.Mono)
	}
	if last.Stopped && !d.Interrupted() {
		return fmt.Errorf("%w: %s stopped with an xid in the last record, and all of its time is billed", metering.ErrEvidence, d.Device.UUID)
	}
	if err := sameBoot(d, last); err != nil {
		return err
	}
	return isStill(d, last)
}

// begins reports whether evidence that bills time begins on the clock of the boot
// before: it is of that boot, or ends it with a reboot.
func begins(d metering.DeviceEvidence, before string) bool {
	return d.Device.BootID == before || before != "" && len(d.Stretches()) > 1
}

// isStill checks that a device is what it was in the record before. Its VBIOS can
// be another after a reboot, and its driver counts memory a little differently.
func isStill(d metering.DeviceEvidence, last Device) error {
	is := d.Device
	if last.Name == "" {
		return nil
	}
	if is.Name != last.Name || !ident.Alike(is.MemoryBytes, last.MemoryBytes) || is.BootID == last.BootID && is.VBIOS != last.VBIOS {
		return fmt.Errorf("%w: %s was %s with %d bytes and VBIOS %s, and is %s with %d and %s", ErrDevices, is.UUID,
			last.Name, last.MemoryBytes, last.VBIOS, is.Name, is.MemoryBytes, is.VBIOS)
	}
	return nil
}

// sameBoot refuses billed time on the clock of another boot before the end of the
// one before was shown, and time after a reboot under the boot's old name: both
// would let a host's clock be set back, and its time be billed again. Where a
// system names no boots, the payer's own clock is all there is.
func sameBoot(d metering.DeviceEvidence, last Device) error {
	if last.BootID == "" {
		return nil
	}
	if d.Device.BootID != last.BootID && !rebooted(d) {
		return fmt.Errorf("%w: %s is metered on the clock of boot %q, and the end of boot %q is nowhere", metering.ErrEvidence, d.Device.UUID, d.Device.BootID, last.BootID)
	}
	if d.Device.BootID == last.BootID && rebooted(d) && d.Nanos.Allocated > beforeReboot(d) {
		return fmt.Errorf("%w: %s is metered on after a reboot, and its boot is still %q", metering.ErrEvidence, d.Device.UUID, last.BootID)
	}
	return nil
}

// beforeReboot is the most time, in nanoseconds, that can be billed of what lies
// before the first reboot.
func beforeReboot(d metering.DeviceEvidence) int64 {
	s := d.Stretches()
	if len(s) == 1 {
		return 0
	}
	return max(0, s[0].To-s[0].From)
}

// rebooted reports whether the evidence shows the end of a boot.
func rebooted(d metering.DeviceEvidence) bool {
	return slices.ContainsFunc(d.Gaps, func(g metering.Hole) bool { return g.Reason == metering.ReasonReboot })
}

// after is where devices' evidence ended, given where it ended before.
func after(e metering.Evidence, before []Device) []Device {
	var now []Device
	for _, d := range e.Devices {
		now = append(now, end(d, before))
	}
	return now
}

// Ends is where the evidence of a record ended, for who goes on after it
// without what it had checked before.
func Ends(e metering.Evidence) []Device { return after(e, nil) }

// end is where a device's evidence ended. What billed nothing says nothing of
// the clock but a reboot: then any boot may follow, if it is not named yet.
func end(d metering.DeviceEvidence, devices []Device) Device {
	at := checked(d)
	last, ok := among(devices, d)
	if !ok && d.Total == 0 { // nor does it name a boot whose end must be shown: nothing of it was ever billed
		at.BootID, at.Mono = "", 0
	}
	if !ok || d.Nanos.Allocated > 0 {
		return at
	}
	if d.Device.Name == "" { // it could not be described, and is who it was
		at.Name, at.MemoryBytes, at.VBIOS = last.Name, last.MemoryBytes, last.VBIOS
	}
	switch {
	case !rebooted(d):
		at.BootID, at.Mono = last.BootID, last.Mono
	case at.BootID == last.BootID:
		at.BootID = ""
	}
	return at
}

func among(devices []Device, d metering.DeviceEvidence) (Device, bool) {
	i := slices.IndexFunc(devices, func(o Device) bool { return o.UUID == d.Device.UUID })
	if i < 0 {
		return Device{}, false
	}
	return devices[i], true
}
