package wire

import (
	"time"

	"github.com/gpupay/gpupay/internal/exactjson"
	"github.com/gpupay/gpupay/metering"
)

// Class is the kind of devices that an offer sells: one price for any of them. A
// lease under the offer is billed for devices of it alone; a record of others is
// refused, and shows to anybody that its payee broke the offer.
type Class struct {
	ID          string `json:"id"`          // what a renter asks for it by: 1 to 63 of a-z, 0-9 and -
	MemoryBytes uint64 `json:"memoryBytes"` // to a sixteenth, which drivers keep for themselves; at most 2^53
	MIG         bool   `json:"mig"`         // a slice of a GPU
	Model       string `json:"model"`       // as the driver names it, 1 to 96 bytes of printable ASCII
}

// Bounds on a class: what is signed has to fit into a header, and figures into a JSON number.
const (
	maxClassID     = 63
	maxClassModel  = 96
	maxClassMemory = 1 << 53
)

// Has reports whether a device is of the class.
func (c Class) Has(d metering.Device) bool { return c.model().Is(d) }

// ClassID is the name of the class that the offer sells; empty where it has none.
func (o Offer) ClassID() string {
	if o.Class == nil {
		return ""
	}
	return o.Class.ID
}

// Sells reports whether what an offer of now has is what this one sells, which a
// lease under it is billed for: a name may have been given to other GPUs since.
func (o Offer) Sells(now Offer) bool {
	sold := o.Meters(metering.Lease{})
	for _, m := range now.Meters(metering.Lease{}).Models {
		if sold.Sells(metering.Device{Name: m.Name, MemoryBytes: m.MemoryBytes, MIG: m.MIG != nil && *m.MIG}) != nil {
			return false
		}
	}
	return true
}

func (c Class) model() metering.Model {
	return metering.Model{Name: c.Model, MemoryBytes: c.MemoryBytes, MIG: &c.MIG}
}

// CheckClassID refuses what names no class.
func CheckClassID(id string) error {
	if id == "" || len(id) > maxClassID {
		return malformed("class has a name of %d bytes, from 1 to %d are taken", len(id), maxClassID)
	}
	for _, b := range []byte(id) {
		if (b < 'a' || b > 'z') && (b < '0' || b > '9') && b != '-' {
			return malformed("class %q: a class is named by a-z, 0-9 and -", id)
		}
	}
	return nil
}

func (c Class) check() error {
	if err := CheckClassID(c.ID); err != nil {
		return err
	}
	if c.Model == "" || len(c.Model) > maxClassModel {
		return malformed("class %s has a model of %d bytes, from 1 to %d are taken", c.ID, len(c.Model), maxClassModel)
	}
	for _, b := range []byte(c.Model) {
		if b < ' ' || b > '~' {
			return malformed("class %s: its model %q is no printable ASCII", c.ID, c.Model)
		}
	}
	if c.MemoryBytes == 0 || c.MemoryBytes > maxClassMemory {
		return malformed("class %s has %d bytes of memory, from 1 to %d are taken", c.ID, c.MemoryBytes, uint64(maxClassMemory))
	}
	return nil
}

// Share is how leases under an offer share its devices: a request holds one of Slots
// from its acceptance to its last byte, and a slot's second costs GPUs/Slots of a
// GPU-second. So all renters' bills together are at most what the GPUs cost.
type Share struct {
	GPUs uint32 `json:"gpus"` // that each request uses: 1 to metering.MaxGPUs
	// MaxSeconds is how long a request runs at most, in whole seconds from its acceptance: 1 to MaxRequestSeconds. The provider ends one
	// that answers for longer, and bills it until then as metering.RequestLimit. Zero is an offer that does not say: its key is left out, and
	// nothing that ended by a time is billed under it.
	MaxSeconds uint32 `json:"maxSeconds,omitempty"`
	Slots      uint32 `json:"slots"` // requests at once, of all leases together: 1 to metering.MaxSlots
}

// MaxRequestSeconds bounds Share.MaxSeconds: a day.
const MaxRequestSeconds = 24 * 60 * 60

// UnmarshalJSON reads a share with exact keys. One that names no longest time leaves the key out: a zero is refused.
func (s *Share) UnmarshalJSON(b []byte) error {
	var read struct {
		GPUs       uint32  `json:"gpus"`
		MaxSeconds *uint32 `json:"maxSeconds"`
		Slots      uint32  `json:"slots"`
	}
	if err := exactjson.Unmarshal(b, &read); err != nil {
		return err
	}
	*s = Share{GPUs: read.GPUs, Slots: read.Slots}
	if read.MaxSeconds == nil {
		return nil
	}
	if s.MaxSeconds = *read.MaxSeconds; s.MaxSeconds == 0 {
		return malformed("offer has requests that run for no time: leave out maxSeconds where it names none")
	}
	return nil
}

// MaxTime is the longest time of a request by the offer, zero where it names none.
func (s *Share) MaxTime() time.Duration {
	if s == nil {
		return 0
	}
	return time.Duration(s.MaxSeconds) * time.Second
}

func (s *Share) check(gpus int) error {
	if err := s.metering().Validate(); err != nil {
		return malformed("offer: %v", err)
	}
	switch {
	case int(s.GPUs) > gpus:
		return malformed("offer shares %d GPUs and has %d", s.GPUs, gpus)
	case s.MaxSeconds > MaxRequestSeconds:
		return malformed("offer has requests that run for up to %d s, at most %d are taken", s.MaxSeconds, MaxRequestSeconds)
	}
	return nil
}

func (s *Share) metering() metering.Share {
	if s == nil {
		return metering.Share{}
	}
	return metering.Share{GPUs: s.GPUs, Slots: s.Slots}
}

// RequestHeader names a request of a lease that shares GPUs, by a number of its client's: once in a lease, and growing. The record
// that bills the request names it so.
const RequestHeader = "Gpupay-Request"

// SharedAccess is how requests of a lease that shares GPUs are sent: the access of its Lease.
type SharedAccess struct {
	Kind  string `json:"kind"`  // KindOpenAI
	URL   string `json:"url"`   // under which the API is; empty: that of the provider itself
	Token string `json:"token"` // bearer
}

// KindOpenAI is access to OpenAI's API.
const KindOpenAI = "openai"
