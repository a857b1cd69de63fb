package metering

import (
	"context"
	"errors"
)

// ErrDevice says that a device is not one the source, the meter or the lease
// knows.
var ErrDevice = errors.New("unknown device")

// ErrEnd says that a source has no more readings of a device: it was closed, or
// what it plays back is over.
var ErrEnd = errors.New("no more readings")

// ErrRestart says that a source works again only when its program is started anew.
var ErrRestart = errors.New("nothing can be metered before a restart")

// Device is the identity of a GPU or of a MIG slice, as its source reports it.
// It stands in the evidence of every record.
type Device struct {
	BootID      string `json:"bootId"` // of the host: a reboot ends every interval
	Driver      string `json:"driver"` // version
	MemoryBytes uint64 `json:"memoryBytes,string"`
	MIG         bool   `json:"mig"`
	Name        string `json:"name"`
	NVML        string `json:"nvml"`             // library version
	Parent      string `json:"parent,omitempty"` // UUID of the GPU that a MIG slice was cut from
	PCI         string `json:"pci"`
	Simulated   bool   `json:"simulated"`
	Slice       string `json:"slice,omitempty"` // "gpu instance/compute instance" of a MIG slice
	UUID        string `json:"uuid"`            // "GPU-..", "MIG-.." or "SIM-GPU-.."
	VBIOS       string `json:"vbios"`
}

// Source gives readings of devices. Read may be called for different devices
// at the same time; it must stamp its reading after the last call it makes to
// the device, so that a call that hangs shows as a gap.
//
// A device that is lost, or answers with an error, is a reading that says so.
// An error from Read means that there is no reading: of an unknown device it
// counts as down and is asked again, and [ErrEnd], of a source that is closed or
// at its end, ends the readings.
type Source interface {
	Name() string
	Devices(ctx context.Context) ([]Device, error)
	Read(ctx context.Context, uuid string) (Reading, error)
	Close() error
}

// Describer is a Source that can describe one device without a look at the others, which may hang.
type Describer interface {
	Describe(ctx context.Context, uuid string) (Device, error)
}

// Health is what a reading says about its device. Only a pair of Healthy
// readings bills.
type Health string

const (
	Healthy  Health = "healthy"
	Lost     Health = "lost"     // the GPU fell off the bus
	Reset    Health = "reset"    // the GPU needs a reset
	Failed   Health = "failed"   // the driver answered with another error
	Stalled  Health = "stalled"  // the driver did not answer in time; counted as a gap
	Replaced Health = "replaced" // another device answered; the meter sets this itself
)

// Fields says which optional figures a reading carries. A figure the device
// does not support is absent, which is not a failure.
type Fields uint8

const (
	HasEnergy Fields = 1 << iota
	HasMemory
	HasUtilization
	HasProcesses
	HasThrottle
	HasXIDs
)

var fieldNames = [...]string{"energy", "memory", "utilization", "processes", "throttle", "xids"}

// Missing names the figures that are absent.
func (f Fields) Missing() []string {
	var names []string
	for i, name := range fieldNames {
		if f&(1<<i) == 0 {
			names = append(names, name)
		}
	}
	return names
}

// Reading is one look at one device. Its JSON form, with keys in order, is a
// leaf of the Merkle tree in the evidence: see [Reading.Encode].
type Reading struct {
	At          Instant `json:"at"`     // after the last call to the device
	BootID      string  `json:"bootId"` // of the host
	Detail      string  `json:"detail,omitempty"`
	Device      string  `json:"device"`            // the UUID that was asked for
	Driver      string  `json:"driver"`            // version
	Energy      uint64  `json:"energy,string"`     // millijoules since the driver was loaded
	Generation  uint64  `json:"generation,string"` // counts the driver's (re)initializations
	Has         Fields  `json:"has"`               // which optional figures are present
	Health      Health  `json:"health"`
	Memory      uint64  `json:"memory,string"`     // bytes in use
	PowerBrake  uint64  `json:"powerBrake,string"` // ns slowed by the power brake, since driver load
	Processes   uint32  `json:"processes"`         // how many; never which
	Seen        string  `json:"seen"`              // the UUID that answered
	Simulated   bool    `json:"simulated"`
	Thermal     uint64  `json:"thermal,string"` // ns slowed by heat, since driver load
	Utilization uint32  `json:"utilization"`    // percent
	XIDs        []XID   `json:"xids,omitempty"` // since the reading before
}
