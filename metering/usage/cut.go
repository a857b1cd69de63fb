package usage

import (
	"github.com/gpupay/gpupay/metering"
)

// Cut ends a stretch of metering and returns its evidence. The interval that
// is still open at the cut is counted whole in the next one: a cut, wherever it
// falls, changes no bill.
func (m *Meter) Cut() metering.Evidence {
	m.mu.Lock()
	defer m.mu.Unlock()

	e := metering.Evidence{
		MaxGap:  int64(m.config.MaxGap),
		Root:    m.tree.Root(),
		Samples: m.tree.Count(),
		Source:  m.source,
		Tick:    int64(m.config.Tick),
	}
	for _, d := range m.devices {
		de := d.cut()
		e.Devices = append(e.Devices, de)
		e.Nanos += de.Nanos.Allocated
		e.Total += de.Total
		e.Simulated = e.Simulated || de.Device.Simulated
	}
	if m.config.Keep > 0 && !m.unkept {
		m.keep(cut{root: e.Root, samples: m.samples})
	}
	m.samples, m.unkept = nil, false
	m.tree.Clear()
	m.saved = m.state()
	return e
}

func (d *device) cut() metering.DeviceEvidence {
	p := d.part
	add(&d.before, d.since)
	e := metering.DeviceEvidence{
		Device:   d.id,
		Energy:   p.energy,
		From:     p.from,
		Gaps:     p.gaps,
		Memory:   p.memory,
		MoreGaps: p.moreGaps,
		MoreXIDs: p.moreXIDs,
		Nanos:    d.since,
		Samples:  p.samples,
		To:       d.last.At,
		Total:    d.before.Allocated,
		XIDs:     p.xids,
	}
	if p.samples > 0 {
		e.Missing = p.has.Missing()
	}
	if d.known.seen != "" { // as they are now, not as they were when the lease began
		e.Device.BootID, e.Device.Driver = d.known.bootID, d.known.driver
	}
	if d.last.Device != "" { // whose clock the last stamp is on, whether or not the device answered since the host was rebooted
		e.Device.BootID = d.last.BootID
	}
	e.Device.Simulated = e.Device.Simulated || d.last.Simulated
	d.since = metering.Nanos{}
	d.part = part{from: d.last.At}
	return e
}

func add(n *metering.Nanos, o metering.Nanos) {
	n.Active += o.Active
	n.Allocated += o.Allocated
	n.Down += o.Down
	n.Gap += o.Gap
	n.Paused += o.Paused
	n.Throttled += o.Throttled
}
