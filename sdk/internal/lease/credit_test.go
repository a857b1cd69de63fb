package lease

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/usage"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/payercredit"
	"github.com/gpupay/gpupay/sdk/internal/sharing"
)

// payersLeases are the leases of one payer at one gateway, read by hand: nothing of it depends on how fast the machine is.
type payersLeases struct {
	*testing.T
	accounts *payercredit.Accounts
	leases   []*Lease
	now      int64 // of the readings, nanoseconds
}

// A lease's view takes no voucher back that it was told of, whichever state comes last: of two that came together, the
// older may.
func TestViewKeepsTheNewestVoucher(t *testing.T) {
	l := New(Spec{}, View{})
	older, newer := *uint256.NewInt(100), *uint256.NewInt(200)
	deposit := *uint256.NewInt(1000)
	l.Balance.Observe(channel.State{Accepted: newer, Deposit: deposit})
	l.Balance.Pays(channel.State{Accepted: older})
	l.Balance.Observe(channel.State{Accepted: older, Deposit: *uint256.NewInt(500)}) // a re-org took a deposit, and no voucher
	if v := l.Status.Look(); v.Accepted != newer || v.Deposit.Uint64() != 500 {
		t.Errorf("accepted %s, deposit %s", v.Accepted.Dec(), v.Deposit.Dec())
	}
}

const handTick = time.Second // a base unit is a millisecond

// lease joins the payer's account with a lease of some GPUs.
func (f *payersLeases) lease(credit uint64, gpus int) *Lease {
	n := len(f.leases) + 1
	l := New(Spec{
		ID: common.Hash{byte(n)}, Terms: channel.Terms{Payer: common.Address{1}, Salt: common.Hash{byte(n)}}, MaxDebt: *uint256.NewInt(credit), Credit: Postpaid{},
		Price: metering.Price{Amount: *uint256.NewInt(3_600_000), Unit: metering.Hour},
		Deps:  Deps{Accounts: f.accounts, Clock: metering.System, Timing: Timing{Tick: handTick}},
	}, View{State: leasestore.Active, Deposit: *uint256.NewInt(1_000_000)})
	for gpu := range gpus {
		l.Allocation.Devices = append(l.Allocation.Devices, fmt.Sprintf("GPU-%d-%d", n, gpu))
	}
	var err error
	if l.own, err = usage.NewMeter(usage.Config{Devices: l.Allocation.Devices, Tick: handTick, MaxGap: 3 * handTick, Keep: -1}); err != nil {
		f.Fatal(err)
	}
	l.Meter = sharing.Own{Meter: l.own}
	l.health.watchdog.Limit = 3 * handTick
	l.Balance.join(nil)
	f.leases = append(f.leases, l)
	f.read(l)
	return l
}

func (f *payersLeases) read(l *Lease) {
	for _, device := range l.Allocation.Devices {
		r := metering.Reading{Device: device, Seen: device, BootID: "boot", Driver: "1", Health: metering.Healthy, At: metering.Instant{Wall: f.now, Mono: f.now, Boot: f.now}}
		interval, err := l.own.Observe(r)
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
			v := l.Status.Look()
			why := l.Guard.hindrance(&v)
			switch {
			case v.State == leasestore.Active && why != "":
				l.Meter.Pause()
				l.Records.Show(leasestore.Suspended, why)
			case v.State == leasestore.Suspended && why == "" && l.Balance.Claims(true):
				l.Guard.resumeMeter()
				l.Records.Show(leasestore.Active, "")
			case v.State == leasestore.Active:
				l.Guard.resumeMeter()
			}
		}
	}
}

func (f *payersLeases) debt() (sum uint64) {
	for _, l := range f.leases {
		debt := l.Balance.Debt()
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
				v, debt := l.Status.Look(), l.Balance.Debt()
				l.Balance.Pays(channel.State{Accepted: *v.Accepted.Add(&v.Accepted, &debt), Deposit: v.Deposit})
				f.runs(5)
				if owed := f.debt(); owed > most {
					t.Fatalf("%d is owed of a credit of %d, %d payments later", owed, most, round+1)
				}
			}
		})
	}
}

// TestUseWithoutARecordIsOwed: a lease none of whose use could be recorded, as on a full disk, does not go on unpaid.
func TestUseWithoutARecordIsOwed(t *testing.T) {
	f := &payersLeases{T: t, accounts: payercredit.New(uint256.Int{})}
	l := f.lease(8_000, 1)
	f.runs(20)
	if v := l.Status.Look(); v.State != leasestore.Suspended || !v.Owed.IsZero() || l.Credit.mayResume(&l.Balance, v) {
		t.Errorf("%s, and by its records %s is owed: it may go on, unpaid", v.State, v.Owed.Dec())
	}
}

// TestLeasesPaidInAdvanceTakeNoCredit: the next ticks of a lease that is paid in advance are not off the credit of the payer's others.
func TestLeasesPaidInAdvanceTakeNoCredit(t *testing.T) {
	f := &payersLeases{T: t, accounts: payercredit.New(uint256.Int{})}
	for range 40 {
		l := f.lease(10_000, 1)
		l.Balance.Pays(channel.State{Accepted: *uint256.NewInt(100_000), Deposit: l.Status.Look().Deposit})
	}
	f.runs(50)
	for _, l := range f.leases {
		if debt := l.own.Totals().Allocated; debt != int64(50*handTick) {
			t.Fatalf("a lease that is paid in advance was served for %s of 50 s", time.Duration(debt))
		}
	}
}

// TestSuspendedLeasesGoOnOneByOne: of a payer's suspended leases that may each go on, only so many do as the credit has room for.
func TestSuspendedLeasesGoOnOneByOne(t *testing.T) {
	f := &payersLeases{T: t, accounts: payercredit.New(uint256.Int{})}
	for range 8 {
		l := f.lease(8_000, 1)
		l.Meter.Pause()
		l.Records.Show(leasestore.Suspended, reasonUnpaid)
	}
	var may []*Lease
	for _, l := range f.leases {
		if v := l.Status.Look(); l.Guard.hindrance(&v) == "" {
			may = append(may, l)
		}
	}
	if len(may) != len(f.leases) {
		t.Fatalf("%d of %d leases may go on with all of the credit", len(may), len(f.leases))
	}
	var do int
	for _, l := range may { // each has looked before any of them goes on
		if l.Balance.Claims(true) {
			l.Guard.resumeMeter()
			l.Records.Show(leasestore.Active, "")
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

// TestSuspensionsTimeGoesOn: what is left of the time that a suspended lease has is at least a quarter, however wrong the clock is or was.
func TestSuspensionsTimeGoesOn(t *testing.T) {
	now := time.Now()
	for then, left := range map[time.Time]time.Duration{
		{}:                                 time.Minute,
		now:                                time.Minute,
		now.Add(-10 * time.Second):         50 * time.Second,
		now.Add(-24 * time.Hour):           15 * time.Second,
		now.Add(24 * time.Hour):            time.Minute,
		now.Add(-50 * time.Second):         15 * time.Second,
		time.Unix(0, 1):                    15 * time.Second,
		now.Add(-45 * time.Second):         15 * time.Second,
		now.Add(-44900 * time.Millisecond): 15100 * time.Millisecond,
	} {
		if got := time.Minute - now.Sub(leasestore.SuspendedSince(then, now, time.Minute)); got != left {
			t.Errorf("suspended at %s it has %s at %s, want %s", then, got, now, left)
		}
	}
}

// TestLeaseThatDoesNotRunTakesNoCredit: one that cannot be taken up, however often that is tried, leaves its payer's others the whole of their credit.
func TestLeaseThatDoesNotRunTakesNoCredit(t *testing.T) {
	f := &payersLeases{T: t, accounts: payercredit.New(uint256.Int{})}
	runs := f.lease(8_000, 1)
	refused := errors.New("the database does not answer")
	h := &Manager{
		Owing: func(context.Context, common.Address) ([]channel.State, error) { return nil, nil },
		Share: func(context.Context, common.Hash) (*uint256.Int, error) { return nil, refused },
	}
	h.Live(t.Context())
	for range 3 {
		l := f.lease(8_000, 4)
		l.Balance.Leave()
		if err := h.launch(l, leasestore.Active, channel.State{}, nil, nil); !errors.Is(err, refused) {
			t.Fatal(err)
		}
	}
	if debt, ahead := runs.Balance.account.Others(&runs.Balance); !debt.IsZero() || !ahead.IsZero() {
		t.Errorf("leases that do not run owe %s, and %s soon", debt.Dec(), ahead.Dec())
	}
}
