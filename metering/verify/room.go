package verify

import (
	"fmt"
	"math/bits"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
)

// RecordRoom is how many bytes a payer keeps of a record of so many devices, on the
// average: what an honest one takes, several times over, since a payee that is paid
// late states more of them. A lease may take so much for each RecordEvery that it has
// run, and for recordBurst more.
func RecordRoom(devices int) uint64 { return 2<<10 + 2<<10*uint64(devices) }

// slotRoom is RecordRoom for a record of a lease that shares its devices: beside them,
// a list of MaxRequests.
func slotRoom(devices int) uint64 { return RecordRoom(devices) + 8<<10 }

func room(l metering.Lease) uint64 {
	if l.Share.Shared() {
		return slotRoom(len(l.Devices))
	}
	return RecordRoom(len(l.Devices))
}

const (
	recordBurst = 64
	recordSize  = 1 << 10 // of a record beside its evidence
)

// size is what a record takes on disk, in bytes.
func size(s metering.SignedRecord) uint64 { return recordSize + uint64(len(s.Evidence.Encode())) }

// room refuses what fills the payer's disk. What was taken counts, whoever delivers
// it late: an absence is time that the lease ran.
func (c *Checker) room(s metering.SignedRecord, _ common.Hash) error {
	every := c.config.RecordEvery
	if every <= 0 {
		return nil
	}
	kept, most := c.state.Kept+size(s), c.allowed(recordBurst)
	if kept > most {
		return fmt.Errorf("%w: %d bytes in %s, at most %d are kept of records of %d devices that come every %s",
			ErrRoom, kept, time.Duration(c.Elapsed()).Round(time.Millisecond), most, len(c.config.Lease.Devices), every)
	}
	return nil
}

// allowed is what the lease's records may take now, and so many more.
func (c *Checker) allowed(more uint64) uint64 {
	high, most := bits.Mul64(uint64(c.Elapsed()/int64(c.config.RecordEvery))+more, room(c.config.Lease))
	if high != 0 {
		return ^uint64(0)
	}
	return most
}

// Overfull is by how many bytes the lease's records take more than its time allows:
// where a payee begins leases one after the other, the next begins with it.
func (c *Checker) Overfull() uint64 {
	if c.config.RecordEvery <= 0 {
		return 0
	}
	return c.state.Kept - min(c.state.Kept, c.allowed(0))
}
