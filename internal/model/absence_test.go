package model

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"pgregory.net/rapid"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/metering/usage"
	"github.com/gpupay/gpupay/metering/verify"
)

// What an absent renter's offer says.
const (
	absencePrice     = 1000 // base units for a second of each GPU
	absenceCredit    = 10 * absencePrice
	absenceGap       = 3 * time.Second
	absenceTolerance = 2 * time.Second
)

// An absence is a provider that bills what it likes, in a chain of records that is right in itself, and a renter whose clock
// goes on whether it is there or not. Beside its checker stands what a renter may be made to owe, in integers.
type absence struct {
	*rapid.T
	renter, host *sim.Clock
	source       *sim.Source
	meter        *usage.Meter
	recorder     *usage.Recorder
	checker      *verify.Checker
	gpus         int
	began        int64     // on the renter's clock
	signed       uint64    // vouchered
	owed         uint64    // by the newest record
	ceilings     []ceiling // one for each record that was taken
	seen         map[string]int
}

// A ceiling is the most that may have been owed at a time of the lease, in ns.
type ceiling struct {
	at   int64
	owed uint64
}

// TestAbsence: a renter that was away is billed for no more than its newest voucher, the credit and one late reading, and
// beyond that for time that passes after it looked. What is within that is never refused.
func TestAbsence(t *testing.T) {
	set(t, "rapid.checks", "300")
	set(t, "rapid.nofailfile", "true")
	seen := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		a := newAbsence(rt, seen)
		for a.leave(); a.bill(); a.leave() {
			if rapid.Bool().Draw(rt, "pays") {
				a.signed = max(a.signed, a.owed)
			}
		}
	})
	t.Log(seen)
}

func newAbsence(t *rapid.T, seen map[string]int) *absence {
	a := &absence{T: t, renter: sim.NewClock(), host: sim.NewClock(), gpus: rapid.IntRange(1, 2).Draw(t, "gpus"), seen: seen}
	a.source = sim.New(a.gpus, sim.Options{Clock: a.host})
	signer := channel.NewKey(key("meter"))
	lease := metering.Lease{ID: common.Hash{1}, ChannelID: common.Hash{2}, OfferHash: common.Hash{3}, ChainID: 1, Escrow: common.Address{4},
		Price: metering.Price{Amount: *uint256.NewInt(absencePrice), Unit: metering.Second}, MaxGap: absenceGap, Simulated: true}
	for i := range a.gpus {
		lease.Devices = append(lease.Devices, sim.UUID(i))
	}
	var err error
	a.checker, err = verify.New(verify.Config{Lease: lease, Key: signer.Address(), Tolerance: absenceTolerance, Clock: a.renter})
	a.must(err)
	a.began = a.renter.Now().Boot
	a.meter, err = usage.NewMeter(usage.Config{Devices: lease.Devices, Tick: time.Second, MaxGap: absenceGap, Keep: -1})
	a.must(err)
	a.recorder, err = usage.NewRecorder(lease, signer, nil)
	a.must(err)
	a.read()
	return a
}

func (a *absence) must(err error) {
	if err != nil {
		a.Helper()
		a.Fatal(err)
	}
}

func (a *absence) read() {
	for _, uuid := range a.meter.Config().Devices {
		reading, err := a.source.Read(context.Background(), uuid)
		a.must(err)
		_, err = a.meter.Observe(reading)
		a.must(err)
	}
}

// leave is time in which the renter hears nothing.
func (a *absence) leave() {
	a.renter.Advance(rapid.OneOf(
		rapid.Map(rapid.IntRange(0, 3000), func(ms int) time.Duration { return time.Duration(ms) * time.Millisecond }),
		rapid.Map(rapid.IntRange(1, 20), func(minutes int) time.Duration { return time.Duration(minutes) * time.Minute }),
	).Draw(a.T, "away"))
}

// most is what a record may say now: the newest voucher, the credit and one reading, and what was most before and the time
// since. free is by how much each may be wrong, by rounding.
func (a *absence) most() (now, ever uint64, free uint64) {
	elapsed := a.renter.Now().Boot - a.began
	now = a.signed + absenceCredit + uint64(a.gpus)*absencePrice*uint64(absenceGap/time.Second)
	ever = now
	for _, c := range a.ceilings {
		passed := elapsed - c.at
		ever = min(ever, c.owed+a.cost(passed+passed/1000+int64(absenceTolerance)))
	}
	return now, ever, 4
}

// cost is the price of a time on each of the GPUs.
func (a *absence) cost(nanos int64) uint64 {
	return uint64(a.gpus) * uint64(nanos) / uint64(time.Second/absencePrice)
}

// bill makes a record and has the renter judge it. It reports whether the lease goes on: after a lie it does not.
func (a *absence) bill() bool {
	elapsed := a.renter.Now().Boot - a.began
	now, most, free := a.most()
	room := time.Duration(most-min(most, a.owed)) * (time.Second / absencePrice) / time.Duration(a.gpus)
	room = max(0, min(room, time.Duration(elapsed)+absenceTolerance-time.Duration(a.owed)*(time.Second/absencePrice)/time.Duration(a.gpus)))
	worth := rapid.OneOf(
		rapid.Just(room),                     // all that is allowed
		rapid.Just(room+50*time.Millisecond), // and a bit more
		rapid.Map(rapid.IntRange(0, 1000), func(share int) time.Duration { return room / 1000 * time.Duration(share) }),
		rapid.Map(rapid.IntRange(1, 60), func(seconds int) time.Duration { return time.Duration(seconds) * time.Second }),
	).Draw(a.T, "worth").Truncate(time.Millisecond)
	for left := worth; left > 0; left -= time.Second {
		a.host.Advance(min(left, time.Second))
		a.read()
	}
	rec, err := a.recorder.Next(context.Background(), a.meter.Cut(), false)
	a.must(err)
	owed := rec.Owed.Uint64()
	late := int64(rec.Nanos)/int64(a.gpus) > elapsed+int64(absenceTolerance)
	limit := *uint256.NewInt(now + 1)
	switch err := a.checker.CheckWithin(rec, limit); {
	case err != nil && !errors.Is(err, verify.ErrCredit) && !errors.Is(err, verify.ErrClock):
		a.Fatalf("an honest record of %s is refused for something else: %v", worth, err)
	case err != nil && !late && owed+free <= most:
		a.Fatalf("%d owed are refused of %d that may be: %v", owed, most, err)
	case err == nil && (late || owed > most+free):
		a.Fatalf("%d owed are taken, at most %d may be after %s (signed for %d)", owed, most, time.Duration(elapsed), a.signed)
	case err != nil:
		a.seen["refused"]++
		return false
	}
	a.seen["taken"]++
	a.owed = owed
	a.ceilings = append(a.ceilings, ceiling{elapsed, now})
	return len(a.ceilings) < 12
}
