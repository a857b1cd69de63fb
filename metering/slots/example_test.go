package slots_test

import (
	"context"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/metering/slots"
	"github.com/gpupay/gpupay/metering/usage"
	"github.com/gpupay/gpupay/metering/verify"
)

// Two renters share one simulated GPU by four slots. One of them sends two requests, of which the second one fails, and checks the
// record of them.
func Example() {
	ctx := context.Background()
	clock := sim.NewClock()
	gpu := sim.New(1, sim.Options{Clock: clock})
	share := metering.Share{GPUs: 1, Slots: 4}
	lease := metering.Lease{
		ID: common.HexToHash("0x01"), ChainID: 31337, Price: metering.Price{Amount: *uint256.NewInt(400), Unit: metering.Second},
		Devices: []string{sim.UUID(0)}, Share: share, Simulated: true,
	}
	neighbour := common.HexToHash("0x02")
	checker, err := verify.New(verify.Config{Lease: lease, Key: meterKey.Address(), Tolerance: time.Second, Clock: clock})
	must(err)
	meter, err := slots.New(slots.Config{Share: share, Devices: lease.Devices})
	must(err)
	must(meter.Begin(lease.ID, slots.State{}))
	must(meter.Begin(neighbour, slots.State{}))
	recorder, err := usage.NewRecorder(lease, meterKey, nil)
	must(err)
	books := slots.Books{Own: make(map[uint64]slots.Own)}

	wait := func(seconds int) {
		for range seconds { // who serves requests has a goroutine for this
			clock.Advance(time.Second)
			reading, err := gpu.Read(ctx, sim.UUID(0))
			must(err)
			must(meter.Observe(reading))
		}
	}
	request := func(id uint64, seconds int, outcome metering.Outcome) {
		sent := clock.Now().Mono
		must(meter.Take(lease.ID, id, clock.Now().Mono))
		wait(seconds)
		must(meter.Give(lease.ID, id, clock.Now().Mono, outcome))
		books.Own[id] = slots.Own{From: sent, To: clock.Now().Mono, Failed: outcome == metering.RequestFailed}
	}
	wait(1)
	must(meter.Take(neighbour, 1, clock.Now().Mono)) // holds its slot all the while
	request(1, 10, metering.RequestDone)
	request(2, 20, metering.RequestFailed)

	evidence, err := meter.Cut(lease.ID, true)
	must(err)
	record, err := recorder.Next(ctx, evidence, true)
	must(err)
	must(checker.Check(record))
	_, err = books.Check(record.Evidence, slots.Limits{})
	must(err)
	fmt.Println("in a slot:", time.Duration(record.Evidence.Slots.SlotNanos))
	fmt.Println("billed:", time.Duration(record.Nanos))
	fmt.Println("owed:", record.Owed.Dec())

	books.Own[1] = slots.Own{From: 0, To: int64(7 * time.Second)} // as if it had taken less
	_, err = books.Check(record.Evidence, slots.Limits{})
	fmt.Println(err)
	// Output:
	// in a slot: 10s
	// billed: 2.5s
	// owed: 1000
	// request 1 is billed 10s, at most 9s can be: 1s too much: it took 7s here, and 2s of 2s is left of what a lease's requests may come to more
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
