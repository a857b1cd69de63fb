package usage_test

import (
	"context"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/internal/rig"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/metering/usage"
)

// Ten seconds of a simulated GPU, of which it is lost for three, are stated in a record.
func Example() {
	ctx, clock := context.Background(), sim.NewClock()
	gpu := sim.New(1, sim.Options{Clock: clock, Script: []sim.Fault{{Kind: sim.Lost, At: 5 * time.Second, For: 3 * time.Second}}})
	key := rig.Key{PrivateKey: crypto.ToECDSAUnsafe(common.LeftPadBytes([]byte{7}, 32))}
	lease := metering.Lease{
		ID: common.HexToHash("0x01"), ChainID: 31337, Price: metering.Price{Amount: *uint256.NewInt(555), Unit: metering.Second},
		Devices: []string{sim.UUID(0)}, Simulated: true,
	}
	meter, err := usage.NewMeter(usage.Config{Devices: lease.Devices})
	if err != nil {
		panic(err)
	}
	recorder, err := usage.NewRecorder(lease, key, nil)
	if err != nil {
		panic(err)
	}
	var classes []usage.Class
	for range 11 {
		reading, err := gpu.Read(ctx, sim.UUID(0))
		if err != nil {
			panic(err)
		}
		interval, err := meter.Observe(reading)
		if err != nil {
			panic(err)
		}
		classes = append(classes, interval.Class)
		clock.Advance(time.Second)
	}
	record, err := recorder.Next(ctx, meter.Cut(), true)
	if err != nil {
		panic(err)
	}
	fmt.Println(classes)
	fmt.Println(time.Duration(record.Nanos), "cost", record.Owed.Dec())
	// Output:
	// [opened allocated allocated allocated allocated down down down down allocated allocated]
	// 6s cost 3330
}
