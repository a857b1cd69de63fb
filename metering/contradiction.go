package metering

import (
	"errors"
	"fmt"
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
		if x.Stops() && x.Mono < d.To.Mono && !d.Interrupted() {
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

// Interrupted reports whether any of the time was not billed, or a reboot hid some.
func (d DeviceEvidence) Interrupted() bool {
	return d.Nanos.Down > 0 || d.Nanos.Gap > 0 || d.Nanos.Paused > 0 || len(d.Gaps) > 0 || d.MoreGaps > 0
}
