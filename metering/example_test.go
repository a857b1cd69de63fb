package metering_test

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
	"github.com/gpupay/gpupay/metering/verify"
)

// A payee meters a simulated GPU for a minute in which it is lost for five
// seconds, and writes a record; the payer checks it against its own clock.
func Example() {
	ctx := context.Background()
	clock := sim.NewClock()
	gpu := sim.New(1, sim.Options{Clock: clock, Script: []sim.Fault{
		{Kind: sim.Lost, At: 30 * time.Second, For: 5 * time.Second},
	}})
	meteringKey := rig.Key{PrivateKey: crypto.ToECDSAUnsafe(common.LeftPadBytes([]byte{7}, 32))}
	lease := metering.Lease{
		ID:        common.HexToHash("0x01"),
		ChainID:   31337,
		Price:     metering.Price{Amount: *uint256.NewInt(555), Unit: metering.Second},
		Devices:   []string{sim.UUID(0)},
		Simulated: true,
	}

	checker, err := verify.New(verify.Config{
		Lease: lease, Key: meteringKey.Address(), Tolerance: 2 * time.Second, Clock: clock,
	})
	if err != nil {
		panic(err)
	}
	meter, err := usage.NewMeter(usage.Config{Devices: lease.Devices})
	if err != nil {
		panic(err)
	}
	recorder, err := usage.NewRecorder(lease, meteringKey, nil)
	if err != nil {
		panic(err)
	}

	for range 61 { // a sampling.Loop does this in real time
		reading, err := gpu.Read(ctx, sim.UUID(0))
		if err != nil {
			panic(err)
		}
		if _, err := meter.Observe(reading); err != nil {
			panic(err)
		}
		clock.Advance(time.Second)
	}
	record, err := recorder.Next(ctx, meter.Cut(), true)
	if err != nil {
		panic(err)
	}
	if err := checker.Check(record); err != nil {
		panic(err)
	}
	fmt.Println("billed:", time.Duration(record.Nanos))
	fmt.Println("owed:", record.Owed.Dec())
	fmt.Println("down:", time.Duration(record.Evidence.Devices[0].Nanos.Down))

	proof, err := meter.Proof(record.Evidence.Root, 30)
	if err != nil {
		panic(err)
	}
	fmt.Println("sample 30 proven:", proof.Verify(record.Evidence.Root, record.Evidence.Samples) == nil)
	// Output:
	// billed: 54s
	// owed: 29970
	// down: 6s
	// sample 30 proven: true
}
