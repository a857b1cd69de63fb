package verify_test

import (
	"context"
	"errors"
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

// A payee meters ten seconds while three pass for the payer, whose own clock tells it.
func Example() {
	ctx, payees, payers := context.Background(), sim.NewClock(), sim.NewClock()
	gpu := sim.New(1, sim.Options{Clock: payees})
	key := rig.Key{PrivateKey: crypto.ToECDSAUnsafe(common.LeftPadBytes([]byte{7}, 32))}
	lease := metering.Lease{
		ID: common.HexToHash("0x01"), ChainID: 31337, Price: metering.Price{Amount: *uint256.NewInt(555), Unit: metering.Second},
		Devices: []string{sim.UUID(0)}, Simulated: true,
	}
	checker, err := verify.New(verify.Config{Lease: lease, Key: key.Address(), Tolerance: 2 * time.Second, Clock: payers})
	if err != nil {
		panic(err)
	}
	meter, err := usage.NewMeter(usage.Config{Devices: lease.Devices})
	if err != nil {
		panic(err)
	}
	for range 11 {
		reading, err := gpu.Read(ctx, sim.UUID(0))
		if err != nil {
			panic(err)
		}
		if _, err := meter.Observe(reading); err != nil {
			panic(err)
		}
		payees.Advance(time.Second)
	}
	recorder, err := usage.NewRecorder(lease, key, nil)
	if err != nil {
		panic(err)
	}
	record, err := recorder.Next(ctx, meter.Cut(), false)
	if err != nil {
		panic(err)
	}
	payers.Advance(3 * time.Second)
	fmt.Println("after 3s:", errors.Is(checker.Check(record), verify.ErrClock))
	payers.Advance(7 * time.Second)
	err = checker.Check(record)
	fmt.Println("after 10s:", err, record.Owed.Dec())
	// Output:
	// after 3s: true
	// after 10s: <nil> 5550
}
