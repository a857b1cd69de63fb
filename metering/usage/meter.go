package usage

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/internal/ident"
	"github.com/gpupay/gpupay/metering/merkle"
)

// DefaultKeep is the Keep of a [Config] that has none.
const DefaultKeep = 4096

// suspend is how far boottime may run ahead of monotonic time within one
// interval before it counts as sleep. The two clocks are read within a
// millisecond of one another; a real suspend takes longer than this.
const suspend = 100 * time.Millisecond

// ErrReading says that a reading cannot be used.
var ErrReading = errors.New("unusable reading")

// Config is what a meter measures and by which rules.
type Config struct {
	Devices []string      // UUIDs, each once: the devices of one lease
	Tick    time.Duration // how often each is read; metering.DefaultTick if zero
	MaxGap  time.Duration // a longer interval bills nothing; metering.DefaultMaxGap if zero
	// Keep is how many samples are kept for proofs, of past cuts and of the one to come; DefaultKeep if zero, none if
	// negative. A cut with more has a root and no proofs.
	Keep int
}

// Totals are the cumulative nanoseconds of a lease.
type Totals struct {
	metering.Nanos
	Devices map[string]metering.Nanos // by UUID
}

// Meter turns the readings of one lease's devices into billable nanoseconds.
// It reads no clock, calls no device and starts no goroutine: the same readings
// always make the same bill. It may be used by several goroutines at once.
type Meter struct {
	config Config

	mu      sync.Mutex
	source  string
	paused  bool
	devices []*device          // in the order of config.Devices
	index   map[string]*device // where there are many
	tree    merkle.Tree        // of the samples since the last cut
	samples [][]byte           // themselves, if any are kept
	unkept  bool               // there were more than are kept since the last cut: none of them is
	cuts    []cut
	kept    int
	saved   State
}

type cut struct {
	root    common.Hash
	samples [][]byte
}

// NewMeter starts a meter at zero. Start it when the devices are ready in the
// renter's hands, never while they are being made ready.
func NewMeter(config Config) (*Meter, error) {
	config = config.defaults()
	if err := config.validate(); err != nil {
		return nil, err
	}
	m := &Meter{config: config, devices: make([]*device, len(config.Devices))}
	for i, uuid := range config.Devices {
		m.devices[i] = &device{id: metering.Device{UUID: uuid}}
	}
	if len(m.devices) > fewDevices {
		m.index = make(map[string]*device)
		for _, d := range m.devices {
			m.index[d.id.UUID] = d
		}
	}
	m.saved = m.state()
	return m, nil
}

// fewDevices are looked through faster than a map.
const fewDevices = 8

// device finds one of the lease's devices, nil if it is none.
func (m *Meter) device(uuid string) *device {
	if m.index != nil {
		return m.index[uuid]
	}
	for _, d := range m.devices {
		if d.id.UUID == uuid {
			return d
		}
	}
	return nil
}

func (c Config) defaults() Config {
	if c.Tick == 0 {
		c.Tick = metering.DefaultTick
	}
	if c.MaxGap == 0 {
		c.MaxGap = metering.DefaultMaxGap
	}
	if c.Keep == 0 {
		c.Keep = DefaultKeep
	}
	c.Devices = append([]string(nil), c.Devices...)
	return c
}

func (c Config) validate() error {
	if err := ident.UUIDs(c.Devices); err != nil {
		return fmt.Errorf("%w: %w", metering.ErrDevice, err)
	}
	if c.Tick < 0 || c.MaxGap < c.Tick {
		return fmt.Errorf("a tick of %s with gaps from %s would bill nothing", c.Tick, c.MaxGap)
	}
	return nil
}

// Config is the configuration with its defaults filled in.
func (m *Meter) Config() Config {
	return m.config.defaults()
}

// Describe tells the meter who a device is, for the evidence. source is the
// name of the source that says so.
func (m *Meter) Describe(source string, id metering.Device) error {
	m.mu.Lock()
	defer m.mu.Unlock()

	d := m.device(id.UUID)
	if d == nil {
		return fmt.Errorf("%w: %s is not in this lease", metering.ErrDevice, id.UUID)
	}
	for _, s := range []*string{&id.BootID, &id.Driver, &id.Name, &id.NVML, &id.Parent, &id.PCI, &id.Slice, &id.VBIOS} {
		*s = ident.Printable(*s)
	}
	d.id = id
	m.source = ident.Printable(source)
	return nil
}

// Observe counts the time since the device's reading before. The interval is
// billed only if both readings are healthy, of the same device, boot and
// driver, and close enough together.
func (m *Meter) Observe(r metering.Reading) (Interval, error) {
	m.mu.Lock()
	defer m.mu.Unlock()

	d := m.device(r.Device)
	if d == nil {
		return Interval{}, fmt.Errorf("%w: a reading of %s, which is not in this lease", metering.ErrDevice, r.Device)
	}
	if r.At.Mono < 0 || r.At.Boot < 0 {
		return Interval{}, fmt.Errorf("%w: %s is stamped before the host's boot", ErrReading, r.Device)
	}
	r = clean(r)
	in := d.observe(r, m.config.MaxGap, m.paused)
	if in.Class != Late && !m.paused { // a pause may be long, and none of it is billed
		m.sample(r)
	}
	return in, nil
}

func (m *Meter) sample(r metering.Reading) {
	if m.config.Keep < 0 {
		var buf [768]byte
		m.tree.AddPrefixed(r.Append(append(buf[:0], merkle.LeafPrefix)))
		return
	}
	encoded := r.Encode()
	m.tree.Add(encoded)
	if len(m.samples) == m.config.Keep {
		m.samples, m.unkept = nil, true
	}
	if !m.unkept {
		m.samples = append(m.samples, encoded)
	}
}

// Pause suspends the lease: nothing is billed, and nothing is a gap, from the
// last reading before it to the first reading after Resume.
func (m *Meter) Pause() {
	m.mu.Lock()
	defer m.mu.Unlock()

	m.paused = true
	for _, d := range m.devices {
		d.pausing = true
	}
}

// Resume ends a pause.
func (m *Meter) Resume() {
	m.mu.Lock()
	defer m.mu.Unlock()

	m.paused = false
}

// Totals are the lease's nanoseconds from its start to the last readings.
func (m *Meter) Totals() Totals {
	m.mu.Lock()
	defer m.mu.Unlock()

	t := Totals{Devices: make(map[string]metering.Nanos)}
	for _, d := range m.devices {
		n := d.before
		add(&n, d.since)
		t.Devices[d.id.UUID] = n
		add(&t.Nanos, n)
	}
	return t
}

// Allocated is what was billed so far, the Allocated of Totals: it costs
// nothing to ask after every reading.
func (m *Meter) Allocated() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()

	var nanos int64
	for _, d := range m.devices {
		nanos += d.before.Allocated + d.since.Allocated
	}
	return nanos
}

// Samples are the encoded readings under a root that Cut returned, in order,
// while the meter still keeps them.
func (m *Meter) Samples(root common.Hash) ([][]byte, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()

	for _, c := range m.cuts {
		if c.root == root {
			return append([][]byte(nil), c.samples...), true
		}
	}
	return nil, false
}

// Proof shows one sample of a cut alone.
func (m *Meter) Proof(root common.Hash, index uint64) (merkle.Proof, error) {
	samples, ok := m.Samples(root)
	if !ok {
		return merkle.Proof{}, fmt.Errorf("%w: the samples of %s are no longer kept", merkle.ErrProof, root)
	}
	return merkle.Prove(samples, index)
}

// keep holds on to the newest samples, and forgets the oldest cuts.
func (m *Meter) keep(c cut) {
	m.cuts = append(m.cuts, c)
	m.kept += len(c.samples)
	for len(m.cuts) > 1 && m.kept > m.config.Keep {
		m.kept -= len(m.cuts[0].samples)
		m.cuts = m.cuts[1:]
	}
}

// State is what a meter needs to go on after a restart: its totals at the last
// cut. Time measured after that cut stood in no record, and is not billed.
type State struct {
	Devices []DeviceState `json:"devices"`
}

// DeviceState is one device's part of a State.
type DeviceState struct {
	Last  metering.Reading `json:"last"` // the last before the cut; no Device if there was none
	Nanos metering.Nanos   `json:"nanos"`
	UUID  string           `json:"uuid"`
}

// Save is the state at the last cut. Store it with the record of that cut.
func (m *Meter) Save() State {
	m.mu.Lock()
	defer m.mu.Unlock()

	return State{Devices: append([]DeviceState(nil), m.saved.Devices...)}
}

func (m *Meter) state() State {
	var s State
	for _, d := range m.devices {
		s.Devices = append(s.Devices, DeviceState{Last: d.last, Nanos: d.before, UUID: d.id.UUID})
	}
	return s
}

// Restore goes on where Save was. The hole between the two is a gap.
func Restore(config Config, s State) (*Meter, error) {
	m, err := NewMeter(config)
	if err != nil {
		return nil, err
	}
	for _, ds := range s.Devices {
		d := m.device(ds.UUID)
		if d == nil {
			return nil, fmt.Errorf("%w: the saved meter has %s, the lease has not", metering.ErrDevice, ds.UUID)
		}
		if ds.Nanos.Allocated < 0 || ds.Last.At.Mono < 0 || ds.Last.At.Boot < 0 {
			return nil, fmt.Errorf("%w: the saved state of %s is negative", ErrReading, ds.UUID)
		}
		d.before, d.last = ds.Nanos, ds.Last
		d.known, d.part.from = identify(&ds.Last), ds.Last.At
		d.restarted = ds.Last.Device != ""
	}
	m.saved = m.state()
	return m, nil
}
