// Package sim is a simulated GPU, for demonstrations and tests. It says so
// everywhere: in its UUIDs ("SIM-GPU-0"), its name, every reading and the
// evidence of every record. Never sell its time.
//
// Its faults are scripted on its clock, so that a test can say to the
// nanosecond what a meter must bill.
package sim

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gpupay/gpupay/metering"
)

// Kind is a way in which a simulated GPU can misbehave.
type Kind string

const (
	Hang     Kind = "hang"     // calls do not return until the fault is over
	Lost     Kind = "lost"     // the GPU fell off the bus
	XID      Kind = "xid"      // one driver error, of number Code
	Reload   Kind = "reload"   // the driver is loaded again: its counters start over
	Suspend  Kind = "suspend"  // the host slept for For: boottime runs ahead of monotonic time
	Throttle Kind = "throttle" // the GPU is slowed by heat
	Idle     Kind = "idle"     // nothing runs on the GPU
	Replace  Kind = "replace"  // another GPU answers
)

// Fault is one entry of a script.
type Fault struct {
	Device int // by number; -1 is all of them
	Kind   Kind
	At     time.Duration // since the source was made
	For    time.Duration
	Code   uint64 // of an XID
}

// Options of a simulated source. The zero value is a healthy GPU on the clock
// of this host.
type Options struct {
	Clock       metering.Clock // metering.System if nil
	MemoryBytes uint64         // of each; 80 GiB if zero
	Models      []string       // what they are called, one after the other, and the last of it all that follow; "Simulated GPU" if empty
	Script      []Fault
}

// Source is a host of simulated GPUs.
type Source struct {
	clock  metering.Clock
	start  metering.Instant
	memory uint64
	models []string
	count  int

	mu     sync.Mutex
	script []fault
	told   map[key]bool // XIDs that a reading carried
	closed chan struct{}
	once   sync.Once
}

type fault struct {
	Fault
	id int
}

type key struct{ fault, device int }

var _ metering.Source = (*Source)(nil)

// New makes a host of n simulated GPUs, UUID(0) to UUID(n-1).
func New(n int, opts Options) *Source {
	if opts.Clock == nil {
		opts.Clock = metering.System
	}
	if opts.MemoryBytes == 0 {
		opts.MemoryBytes = 80 << 30
	}
	if len(opts.Models) == 0 {
		opts.Models = []string{"Simulated GPU"}
	}
	s := &Source{
		clock:  opts.Clock,
		start:  opts.Clock.Now(),
		memory: opts.MemoryBytes,
		models: opts.Models,
		count:  n,
		told:   make(map[key]bool),
		closed: make(chan struct{}),
	}
	for _, f := range opts.Script {
		s.add(f)
	}
	return s
}

// UUID is the UUID of a simulated GPU.
func UUID(number int) string { return prefix + strconv.Itoa(number) }

const prefix = "SIM-GPU-"

// Name says what the source is, in the evidence of every record.
func (s *Source) Name() string { return "simulated" }

// Inject adds a fault while the source runs. At counts from now.
func (s *Source) Inject(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()

	f.At += s.since(s.clock.Now())
	s.add(f)
}

func (s *Source) add(f Fault) {
	s.script = append(s.script, fault{Fault: f, id: len(s.script)})
}

// Devices lists the simulated GPUs.
func (s *Source) Devices(context.Context) ([]metering.Device, error) {
	var out []metering.Device
	for i := range s.count {
		out = append(out, metering.Device{
			BootID:      s.clock.BootID(),
			Driver:      "simulated",
			MemoryBytes: s.memory,
			Name:        s.models[min(i, len(s.models)-1)],
			NVML:        "simulated",
			PCI:         fmt.Sprintf("SIM:%02d", i),
			Simulated:   true,
			UUID:        UUID(i),
			VBIOS:       "simulated",
		})
	}
	return out, nil
}

// Read looks at a simulated GPU. While a Hang lasts it does not return.
func (s *Source) Read(ctx context.Context, uuid string) (metering.Reading, error) {
	number := s.number(uuid)
	if number < 0 {
		return metering.Reading{}, fmt.Errorf("%w: %s is not one of %d simulated GPUs", metering.ErrDevice, uuid, s.count)
	}
	for {
		wait := s.hang(number)
		if wait <= 0 {
			break
		}
		select {
		case <-s.clock.After(wait):
		case <-ctx.Done():
			return metering.Reading{}, ctx.Err()
		case <-s.closed:
		}
		if s.isClosed() {
			break
		}
	}
	if s.isClosed() {
		return metering.Reading{}, fmt.Errorf("simulated GPU %s: %w", uuid, metering.ErrEnd)
	}
	return s.look(number, uuid), nil
}

// number is the inverse of UUID, or -1.
func (s *Source) number(uuid string) int {
	digits, _ := strings.CutPrefix(uuid, prefix)
	n, err := strconv.Atoi(digits)
	if err != nil || n < 0 || n >= s.count || len(uuid) != len(prefix)+len(digits) || digits[0] == '+' || digits[0] == '0' && len(digits) > 1 {
		return -1
	}
	return n
}

// Close ends every call that hangs.
func (s *Source) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func (s *Source) isClosed() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

// hang is how much longer a call to the device does not return.
func (s *Source) hang(number int) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()

	if len(s.script) == 0 {
		return 0
	}
	at := s.since(s.clock.Now())
	var wait time.Duration
	for _, f := range s.active(number, Hang, at) {
		wait = max(wait, f.At+f.For-at)
	}
	return wait
}

func (s *Source) look(number int, uuid string) metering.Reading {
	s.mu.Lock()
	defer s.mu.Unlock()

	now := s.clock.Now()
	at := s.since(now)
	r := metering.Reading{
		At:         now,
		BootID:     s.clock.BootID(),
		Device:     uuid,
		Driver:     "simulated",
		Generation: 1,
		Health:     metering.Healthy,
		Seen:       uuid,
		Simulated:  true,
	}
	for _, f := range s.past(number, Suspend, at) {
		r.At.Boot += int64(f.For)
	}
	for _, f := range s.past(number, XID, at) {
		if k := (key{f.id, number}); !s.told[k] {
			s.told[k] = true
			r.XIDs = append(r.XIDs, metering.NewXID(f.Code, now.Mono))
		}
	}
	if len(s.active(number, Replace, at)) > 0 {
		r.Seen = "SIM-GPU-OTHER"
	}
	if len(s.active(number, Lost, at)) > 0 {
		r.Health, r.Detail, r.Seen = metering.Lost, "simulated loss", ""
		return r
	}
	s.figures(&r, number, at)
	return r
}

// figures fills in what a GPU under full load would report.
func (s *Source) figures(r *metering.Reading, number int, at time.Duration) {
	r.Has = metering.HasEnergy | metering.HasMemory | metering.HasUtilization |
		metering.HasProcesses | metering.HasThrottle | metering.HasXIDs
	loaded := time.Duration(0) // when the driver was loaded
	for _, f := range s.past(number, Reload, at) {
		r.Generation++
		loaded = max(loaded, f.At)
	}
	r.Energy = uint64((at - loaded).Milliseconds()) * 300 // 300 W
	r.Memory = s.memory / 2
	r.Utilization, r.Processes = 97, 1
	if len(s.active(number, Idle, at)) > 0 {
		r.Utilization, r.Processes = 0, 0
	}
	for _, f := range s.past(number, Throttle, at) {
		r.Thermal += uint64(min(at, f.end()) - f.At)
	}
}

// active are the faults of a kind that a device has now; past are those that
// have begun, over or not.
func (s *Source) active(number int, kind Kind, at time.Duration) []fault {
	return slices.DeleteFunc(s.past(number, kind, at), func(f fault) bool { return at >= f.end() })
}

func (s *Source) past(number int, kind Kind, at time.Duration) []fault {
	var out []fault
	for _, f := range s.script {
		if f.Kind == kind && at >= f.At && (f.Device == number || f.Device < 0) {
			out = append(out, f)
		}
	}
	return out
}

func (f Fault) end() time.Duration {
	if f.For > math.MaxInt64-f.At {
		return math.MaxInt64
	}
	return f.At + f.For
}

func (s *Source) since(now metering.Instant) time.Duration {
	return time.Duration(now.Mono - s.start.Mono)
}
