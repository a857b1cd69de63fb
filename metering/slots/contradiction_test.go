package slots_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/slots"
	"github.com/gpupay/gpupay/metering/usage"
)

// signedService is records of two leases that share two slots.
func signedService(t *testing.T) (*service, []metering.SignedRecord) {
	s := newService(t, 2, gpu)
	s.ok(s.meter.Describe("sim", metering.Device{UUID: gpu, Name: "Good GPU", BootID: "boot"}))
	s.every(1000, 9000)
	one := s.records(lease, 2,
		func() { s.take(lease, 1, 2000); s.take(other, 1, 2100); s.give(lease, 1, 3000, metering.RequestDone) },
		func() { s.take(lease, 2, 3000); s.give(lease, 2, 3001, metering.RequestDone) })
	return s, append(one, s.records(other, 2, func() { s.give(other, 1, 4000, metering.RequestAborted) })...)
}

// resigned is a record with other evidence, and what it says is what that says.
func (s *service) resigned(r metering.SignedRecord, change func(e *metering.SlotEvidence)) metering.SignedRecord {
	s.t.Helper()
	r.Evidence = lie(r.Evidence, change)
	r.Nanos, r.EvidenceHash = uint64(r.Evidence.Total), r.Evidence.Hash()
	signature, err := meterKey.Sign(context.Background(), r.Digest(s.domain()))
	s.ok(err)
	r.Signature = signature
	return r
}

func (s *service) domain() [32]byte {
	terms := s.terms(lease, 2)
	return metering.Domain(terms.ChainID, terms.Escrow)
}

// TestContradictions has what convicts whoever signed it, whoever shows it.
func TestContradictions(t *testing.T) {
	tests := []struct {
		name string
		lie  func(s *service, all []metering.SignedRecord)
		says string
	}{
		{"one id with two times", func(s *service, all []metering.SignedRecord) {
			all[1] = s.resigned(all[1], func(e *metering.SlotEvidence) { e.Requests[0].ID = 1 })
		}, "request 1 of lease " + lease.String() + " is billed twice"},
		{"three at once in two slots, in the records of two renters", func(s *service, all []metering.SignedRecord) {
			all[1] = s.resigned(all[1], func(e *metering.SlotEvidence) { e.Requests[0].From = 2500 * ms })
		}, "3 requests ran at once"},
		{"three at once in one record", func(s *service, all []metering.SignedRecord) {
			all[0] = s.resigned(all[0], func(e *metering.SlotEvidence) {
				r := e.Requests[0]
				r.Nanos = 0
				r.ID = 8
				e.Requests = append(e.Requests, r)
				r.ID = 9
				e.Requests = append(e.Requests, r)
			})
		}, "3 requests ran at once"},
		{"a sum that does not add up", func(s *service, all []metering.SignedRecord) {
			all[0] = s.resigned(all[0], func(e *metering.SlotEvidence) {})
			all[0].Evidence.Slots.SlotNanos++
			all[0].EvidenceHash = all[0].Evidence.Hash()
			all[0].Signature, _ = meterKey.Sign(context.Background(), all[0].Digest(s.domain()))
		}, "1 too many"},
		{"more than its own time", func(s *service, all []metering.SignedRecord) {
			all[0] = s.resigned(all[0], func(e *metering.SlotEvidence) { e.Requests[0].Nanos += 5 })
		}, "5 too many"},
		{"two records of one number", func(s *service, all []metering.SignedRecord) {
			all[2] = s.resigned(all[0], func(e *metering.SlotEvidence) { e.Requests[0].ID = 5 })
		}, "there are two records 1"},
		{"a record that does not go on", func(s *service, all []metering.SignedRecord) {
			all[0] = s.resigned(all[0], func(e *metering.SlotEvidence) { e.Requests[0].Nanos -= 2 })
		}, "the one before ended at"},
		{"a failed request that is billed", func(s *service, all []metering.SignedRecord) {
			all[0] = s.resigned(all[0], func(e *metering.SlotEvidence) { e.Requests[0].Outcome = metering.RequestFailed })
		}, "request 1 failed"},
		{"time that the record before shows as a hole", func(s *service, all []metering.SignedRecord) {
			third := common.Hash{3}
			s.begin(third)
			s.read(10_000)
			s.read(14_000) // over MaxGap
			hole := s.records(third, 2, func() {}, func() { s.read(15_000) })
			all[0], all[1] = hole[0], s.resigned(hole[1], func(e *metering.SlotEvidence) {
				e.Requests = append(e.Requests, metering.Request{From: 11e9, ID: 9, Nanos: 2e9, Outcome: metering.RequestDone, To: 15e9})
			})
		}, "outside of the holes of its devices there are 1000000000"},
		{"more than its devices were healthy", func(s *service, all []metering.SignedRecord) {
			all[0] = s.resigned(all[0], func(e *metering.SlotEvidence) { e.Requests[0].To += 20e9; e.Requests[0].Nanos += 20e9 })
		}, "healthy"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, all := signedService(t)
			if err := slots.Contradiction(s.domain(), meterKey.Address(), append(all, all...)...); err != nil {
				t.Fatalf("honest records, each of them twice: %v", err)
			}
			tt.lie(s, all)
			err := slots.Contradiction(s.domain(), meterKey.Address(), all...)
			if !errors.Is(err, slots.ErrContradiction) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestNoContradiction: what its key did not sign, or what is of another kind, proves nothing against it, and what is of another
// boot or of other devices is not beside it.
func TestNoContradiction(t *testing.T) {
	s, all := signedService(t)
	contradict := func() metering.SignedRecord {
		return s.resigned(all[1], func(e *metering.SlotEvidence) { e.Requests[0].From = 2500 * ms })
	}
	forged := contradict()
	forged.Signature[3] ^= 1
	bare := contradict()
	bare.Evidence = metering.Evidence{}
	for _, wrong := range []metering.SignedRecord{forged, bare} {
		if err := slots.Contradiction(s.domain(), meterKey.Address(), all[0], wrong, all[2]); err == nil || errors.Is(err, slots.ErrContradiction) {
			t.Errorf("got %v", err)
		}
	}
	rebooted := contradict()
	rebooted.Evidence.Devices = append([]metering.DeviceEvidence(nil), rebooted.Evidence.Devices...)
	rebooted.Evidence.Devices[0].Device.BootID = "next"
	rebooted = s.resigned(rebooted, func(*metering.SlotEvidence) {})
	if err := slots.Contradiction(s.domain(), meterKey.Address(), all[0], rebooted, all[2]); err != nil {
		t.Errorf("of another boot: %v", err)
	}
}

// TestFailuresBeforeTheFirstReading: a request that ended before the devices were read again after a reboot is on a clock that no reading names yet:
// it is not beside what was billed by that clock before.
func TestFailuresBeforeTheFirstReading(t *testing.T) {
	s := newService(t, 1, gpu)
	s.ok(s.meter.Describe("sim", metering.Device{UUID: gpu, Name: "Good GPU", BootID: "boot"}))
	s.every(1000, 4000)
	recorder, err := usage.NewRecorder(s.terms(lease, 1), meterKey, nil)
	s.ok(err)
	s.take(lease, 1, 2000)
	s.give(lease, 1, 3000, metering.RequestDone)
	before, err := recorder.Next(context.Background(), s.cut(lease, false), false)
	s.ok(err)
	state, err := s.meter.Save(lease)
	s.ok(err)

	s.meter, err = slots.New(slots.Config{Share: metering.Share{GPUs: 1, Slots: 1}, Devices: s.devices})
	s.ok(err)
	s.ok(s.meter.Begin(lease, state))
	s.take(lease, 2, 2500) // since the next boot
	s.give(lease, 2, 2600, metering.RequestFailed)
	after, err := recorder.Next(context.Background(), s.cut(lease, false), false)
	s.ok(err)
	if err := slots.Contradiction(s.domain(), meterKey.Address(), before, after); err != nil {
		t.Error(err)
	}
}
