package metering

// XID is an error that NVIDIA's driver reported about a device.
type XID struct {
	Code  uint64 `json:"code,string"`
	Fault Fault  `json:"fault"`       // whose it likely was
	Mono  int64  `json:"mono,string"` // when the source learned of it
}

// NewXID classifies a code from NVIDIA's catalog.
func NewXID(code uint64, mono int64) XID {
	return XID{Code: code, Fault: blame(code), Mono: mono}
}

// Fault says whose fault an XID likely was. Without it a node that a renter's
// own kernel crashed and a node that broke look the same.
type Fault string

const (
	Workload Fault = "workload" // the renter's program
	Hardware Fault = "hardware" // the provider's hardware or driver
	Unknown  Fault = "unknown"
)

// blame says whose fault an XID likely was.
func blame(code uint64) Fault {
	switch code {
	case 13, 31, 43, 45: // bad instruction, page fault, stopped processing, cleanup after it
		return Workload
	case 48, 62, 64, 74, 79, 95, 119: // ECC, halt, failed remap, NVLink, off the bus, uncontained, GSP
		return Hardware
	case 63, 94: // a memory row was remapped; an error was contained: the memory, not the program
		return Hardware
	}
	return Unknown
}

// Stops says whether the error ends billing until a healthy pair of readings: the
// GPU fell off the bus (79), its memory is not to be trusted (95), or its
// firmware no longer answers (119). All others are recorded only. It goes by the
// code, not by what the record says about it.
func (x XID) Stops() bool { return x.Code == 79 || x.Code == 95 || x.Code == 119 }
