package sdk

import (
	"fmt"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/payercredit"
)

// payersLeases are the leases of one payer at one gateway, read by hand: nothing of it depends on how fast the machine is.
type payersLeases struct {
	*testing.T
	accounts *payercredit.Accounts
	leases   []*lease
	now      int64 // of the readings, nanoseconds
}

const handTick = time.Second // a base unit is a millisecond

// lease joins the payer's account with a lease of some GPUs.
func (f *payersLeases) lease(credit uint64, gpus int) *lease {
	n := len(f.leases) + 1
	l := &lease{
		id: common.Hash{byte(n)}, terms: channel.Terms{Payer: common.Address{1}, Salt: common.Hash{byte(n)}}, maxDebt: *uint256.NewInt(credit), credit: postpaid{},
		price: metering.Price{Amount: *uint256.NewInt(3_600_000), Unit: metering.Hour},
		deps:  leaseDeps{accounts: f.accounts, clock: metering.System, timing: leaseTiming{tick: handTick}},
		view:  leaseView{state: leasestore.Active, deposit: *uint256.NewInt(1_000_000)},
	}
	for gpu := range gpus {
		l.allocation.Devices = append(l.allocation.Devices, fmt.Sprintf("GPU-%d-%d", n, gpu))
	}
	var err error
	if l.meter, err = metering.NewMeter(metering.Config{Devices: l.allocation.Devices, Tick: handTick, MaxGap: 3 * handTick, Keep: -1}); err != nil {
		f.Fatal(err)
	}
	l.joinCredit(nil)
	f.leases = append(f.leases, l)
	f.read(l)
	return l
}

func (f *payersLeases) read(l *lease) {
	for _, device := range l.allocation.Devices {
		r := metering.Reading{Device: device, Seen: device, BootID: "boot", Driver: "1", Health: metering.Healthy, At: metering.Instant{Wall: f.now, Mono: f.now, Boot: f.now}}
		interval, err := l.meter.Observe(r)
		if err != nil {
			f.Fatal(err)
		}
		l.Sampled(r, interval)
	}
}

// runs has all leases read at every tick, and does what their goroutines would: one that may not be served is suspended, and
// goes on when it may.
func (f *payersLeases) runs(ticks int) {
	for range ticks {
		f.now += int64(handTick)
		for _, l := range f.leases {
			f.read(l)
		}
		for _, l := range f.leases {
			v := l.look()
			why := l.hindrance(&v)
			switch {
			case v.state == leasestore.Active && why != "":
				l.meter.Pause()
				l.turn(leasestore.Suspended, why)
			case v.state == leasestore.Suspended && why == "" && l.claims(true):
				l.goOn()
				l.turn(leasestore.Active, "")
			case v.state == leasestore.Active:
				l.goOn()
			}
		}
	}
}

func (f *payersLeases) debt() (sum uint64) {
	for _, l := range f.leases {
		debt := l.Debt()
		sum += debt.Uint64()
	}
	return sum
}

// TestManyLeasesAreServedForOneCredit: a payer that does not pay owes one credit at one gateway, whatever number of leases it has
// and of whatever size, and also where it pays a little on one of them and all of them hear so.
func TestManyLeasesAreServedForOneCredit(t *testing.T) {
	for _, at := range []struct{ credit, leases, gpus int }{{60_000, 1, 8}, {60_000, 8, 1}, {60_000, 18, 1}, {20_000, 9, 1}, {40_000, 4, 4}} {
		t.Run(fmt.Sprintf("%d leases of %d GPUs", at.leases, at.gpus), func(t *testing.T) {
			f := &payersLeases{T: t, accounts: payercredit.New(uint256.Int{})}
			for range at.leases {
				f.lease(uint64(at.credit), at.gpus)
			}
			f.runs(100)
			owed, most := f.debt(), uint64(at.credit)
			if owed > most || owed < most/2 {
				t.Fatalf("%d is owed of a credit of %d", owed, most)
			}
			for round := range 20 {
				l := f.leases[round%len(f.leases)]
				v, debt := l.look(), l.Debt()
				l.pays(channel.State{Accepted: *v.accepted.Add(&v.accepted, &debt), Deposit: v.deposit})
				f.runs(5)
				if owed := f.debt(); owed > most {
					t.Fatalf("%d is owed of a credit of %d, %d payments later", owed, most, round+1)
				}
			}
		})
	}
}

// TestLeasesPaidInAdvanceTakeNoCredit: the next ticks of a lease that is paid in advance are not off the credit of the payer's others.
func TestLeasesPaidInAdvanceTakeNoCredit(t *testing.T) {
	f := &payersLeases{T: t, accounts: payercredit.New(uint256.Int{})}
	for range 40 {
		l := f.lease(10_000, 1)
		l.pays(channel.State{Accepted: *uint256.NewInt(100_000), Deposit: l.view.deposit})
	}
	f.runs(50)
	for _, l := range f.leases {
		if debt := l.meter.Totals().Allocated; debt != int64(50*handTick) {
			t.Fatalf("a lease that is paid in advance was served for %s of 50 s", time.Duration(debt))
		}
	}
}

// TestSuspendedLeasesGoOnOneByOne: of a payer's suspended leases that may each go on, only so many do as the credit has room for.
func TestSuspendedLeasesGoOnOneByOne(t *testing.T) {
	f := &payersLeases{T: t, accounts: payercredit.New(uint256.Int{})}
	for range 8 {
		l := f.lease(8_000, 1)
		l.meter.Pause()
		l.turn(leasestore.Suspended, reasonUnpaid)
	}
	var may []*lease
	for _, l := range f.leases {
		if v := l.look(); l.hindrance(&v) == "" {
			may = append(may, l)
		}
	}
	if len(may) != len(f.leases) {
		t.Fatalf("%d of %d leases may go on with all of the credit", len(may), len(f.leases))
	}
	var do int
	for _, l := range may { // each has looked before any of them goes on
		if l.claims(true) {
			l.goOn()
			l.turn(leasestore.Active, "")
			do++
		}
	}
	if do != 4 {
		t.Errorf("%d go on, whose next two ticks are 2 s each, of a credit of 8 s", do)
	}
	f.runs(20)
	if owed := f.debt(); owed == 0 || owed > 8000 {
		t.Errorf("%d is owed of a credit of 8000", owed)
	}
}
