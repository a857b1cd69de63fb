package slots

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/internal/eip712"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/verify"
)

// ErrContradiction says that records that one key signed cannot all be true: proof
// against who holds it, for anybody.
var ErrContradiction = errors.New("signed records contradict each other")

// Contradiction looks for what no honest meter signs: one request id with two times or
// billed twice in a lease, more billed requests at once than there are slots, requests billed
// in the holes of their own lease's devices, sums that do not add up. It sees the requests that
// are listed, and their times as they were signed: who leaves requests out, or makes up times,
// hides from it. The records are of any leases on one service, from any renters, and
// key signed them, or the answer is another error and proves nothing. It is nil where
// they agree.
func Contradiction(domain common.Hash, key common.Address, records ...metering.SignedRecord) error {
	distinct := make(map[common.Hash]bool)
	var signed []metering.SignedRecord
	for _, s := range records {
		digest := s.Digest(domain)
		signer, err := eip712.Recover(digest, s.Signature)
		if err != nil {
			return fmt.Errorf("%w: record %d of lease %s: %w", verify.ErrSignature, s.Sequence, s.LeaseID, err)
		}
		if signer != key {
			return fmt.Errorf("%w: record %d of lease %s is signed by %s, not %s", verify.ErrSignature, s.Sequence, s.LeaseID, signer, key)
		}
		if hash := s.Evidence.Hash(); hash != s.EvidenceHash {
			return fmt.Errorf("%w: record %d of lease %s holds the hash of another", metering.ErrEvidence, s.Sequence, s.LeaseID)
		}
		if s.Evidence.Kind != metering.KindSlots {
			return fmt.Errorf("%w: record %d of lease %s is not of slots", metering.ErrEvidence, s.Sequence, s.LeaseID)
		}
		if !distinct[digest] {
			distinct[digest] = true
			signed = append(signed, s)
		}
	}
	for _, s := range signed {
		if err := sums(s); err != nil {
			return fmt.Errorf("%w: record %d of lease %s: %w", ErrContradiction, s.Sequence, s.LeaseID, err)
		}
	}
	for _, check := range []func([]metering.SignedRecord) error{follow, named, holed, crowded} {
		if err := check(signed); err != nil {
			return fmt.Errorf("%w: %w", ErrContradiction, err)
		}
	}
	return nil
}

// sums checks one record against its own evidence.
func sums(s metering.SignedRecord) error {
	if err := s.Evidence.Validate(); err != nil {
		return err
	}
	if s.Nanos != uint64(s.Evidence.Total) {
		return fmt.Errorf("it says %d ns, its evidence %d", s.Nanos, s.Evidence.Total)
	}
	return observed(s.Evidence)
}

// follow checks each record that stands beside the one before it.
func follow(records []metering.SignedRecord) error {
	type number struct {
		lease    common.Hash
		sequence uint64
	}
	before := make(map[number]metering.SignedRecord)
	for _, s := range records {
		n := number{s.LeaseID, s.Sequence}
		if _, ok := before[n]; ok {
			return fmt.Errorf("there are two records %d of lease %s", s.Sequence, s.LeaseID)
		}
		before[n] = s
	}
	for _, s := range records {
		nanos, rest := uint64(0), uint32(0)
		if last, ok := before[number{s.LeaseID, s.Sequence - 1}]; ok && s.Sequence > 1 {
			nanos, rest = last.Nanos, last.Evidence.Slots.Rest
		} else if s.Sequence > 1 {
			continue
		}
		if e := s.Evidence; uint64(e.Total-e.Nanos) != nanos || e.Slots.Carried != rest {
			return fmt.Errorf("record %d of lease %s goes on from %d ns and %d parts of one, and the one before ended at %d and %d",
				s.Sequence, s.LeaseID, e.Total-e.Nanos, e.Slots.Carried, nanos, rest)
		}
	}
	return nil
}

// named checks that each request of a lease stands in one record.
func named(records []metering.SignedRecord) error {
	type name struct {
		lease common.Hash
		id    uint64
	}
	seen := make(map[name]metering.Request)
	for _, s := range records {
		for _, r := range s.Evidence.Slots.Requests {
			n := name{s.LeaseID, r.ID}
			if o, ok := seen[n]; ok {
				return fmt.Errorf("request %d of lease %s is billed twice: %d ns from %d to %d, and %d ns from %d to %d",
					r.ID, s.LeaseID, o.Nanos, o.From, o.To, r.Nanos, r.From, r.To)
			}
			seen[n] = r
		}
	}
	return nil
}

// holed checks that no request is billed for time that is a hole in any record of its
// lease, of one boot that has a name: one record alone shows the holes since the one before.
func holed(records []metering.SignedRecord) error {
	type clock struct {
		lease   common.Hash
		service string
	}
	away := make(map[clock][]metering.Hole)
	for _, s := range records {
		if on := service(s.Evidence); on != "" {
			for _, d := range s.Evidence.Devices {
				away[clock{s.LeaseID, on}] = append(away[clock{s.LeaseID, on}], holes(d)...)
			}
		}
	}
	for _, s := range records {
		all := away[clock{s.LeaseID, service(s.Evidence)}]
		for _, r := range s.Evidence.Slots.Requests {
			if most := outside(all, r.From, r.To); r.Nanos > most {
				return fmt.Errorf("request %d of lease %s is billed %d ns from %d to %d, and outside of the holes of its devices there are %d: %d too many",
					r.ID, s.LeaseID, r.Nanos, r.From, r.To, most, r.Nanos-most)
			}
		}
	}
	return nil
}

// crowded checks that no more requests ran at once than the service has slots. Times
// compare within one boot of the host of one service's devices; where a system names
// no boots they do not. What is billed is of the boot that its evidence names: the
// readings that it is billed by are. What costs nothing may be of the next one.
func crowded(records []metering.SignedRecord) error {
	services, slots := make(map[string][]metering.Request), make(map[string]uint32)
	for _, s := range records {
		if on := service(s.Evidence); on != "" {
			billed := slices.DeleteFunc(slices.Clone(s.Evidence.Slots.Requests), func(r metering.Request) bool { return r.Nanos == 0 })
			services[on], slots[on] = append(services[on], billed...), s.Evidence.Slots.Slots
		}
	}
	for on, requests := range services {
		if most, at := metering.AtOnce(requests); most > int(slots[on]) {
			return fmt.Errorf("%d requests ran at once at %d, in %d slots", most, at, slots[on])
		}
	}
	return nil
}

// service names what evidence is of: its devices, their boot and slots. Empty: of
// nothing that can be compared with other evidence.
func service(e metering.Evidence) string {
	var names []string
	for _, d := range e.Devices {
		if d.Device.BootID == "" || d.Device.BootID != e.Devices[0].Device.BootID || len(d.Stretches()) > 1 {
			return ""
		}
		names = append(names, fmt.Sprintf("%q", d.Device.UUID))
	}
	if len(names) == 0 {
		return ""
	}
	slices.Sort(names)
	return fmt.Sprintf("%q %d %s", e.Devices[0].Device.BootID, e.Slots.Slots, strings.Join(names, " "))
}
