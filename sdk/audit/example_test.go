package audit_test

import (
	"context"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/metering/usage"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/wire"
)

// What a renter exported is checked from its file alone: who signed what, and whether the records bill what was paid. A record of
// which one figure was changed is found.
func Example() {
	ctx := context.Background()
	bundle, err := audit.Parse(exported(ctx))
	must(err)
	checks := audit.Verify(ctx, bundle, nil) // a chain.Backend instead of nil compares amounts with the chain too
	for _, c := range checks {
		if c.Name == "records and voucher" {
			fmt.Println(c)
		}
	}
	fmt.Println("what does not hold:", audit.Failures(checks))

	bundle.Leases[0].Records[0].Nanos = uint64(5 * time.Second)
	fmt.Println("with half the time it holds:", audit.Failures(audit.Verify(ctx, bundle, nil)) == nil)
	// Output:
	// ok      records and voucher: 10000 owed, 10000 vouchered
	// what does not hold: <nil>
	// with half the time it holds: false
}

// exported is the bundle of a channel on which a simulated GPU was rented for ten seconds.
func exported(ctx context.Context) []byte {
	payer, payee, clock := exampleKey(1), exampleKey(2), sim.NewClock()
	gpu := sim.New(1, sim.Options{Clock: clock})
	devices, err := gpu.Devices(ctx)
	must(err)
	terms := channel.Terms{ChainID: 31337, Escrow: common.Address{1}, Payer: payer.Address(), Payee: payee.Address(), Token: common.Address{2}}
	offer, err := wire.SignOffer(ctx, payee, wire.Offer{
		Version: 1, ChainID: terms.ChainID, Escrow: wire.Address(terms.Escrow), Token: wire.Address(terms.Token), Payee: wire.Address(terms.Payee), Meter: wire.Address(payee.Address()),
		Amount: wire.NewAmount(*uint256.NewInt(1000)), Unit: "gpu_second", Credit: 10, Tick: 1000, MaxGap: 3000, RecordEvery: 10_000,
		Devices: wire.DevicesOf(devices), Simulated: true, Expires: 1 << 40,
	})
	must(err)
	price, err := offer.Price()
	must(err)
	lease := offer.Meters(metering.Lease{ID: common.Hash{3}, ChainID: terms.ChainID, Escrow: terms.Escrow, ChannelID: terms.ID(), OfferHash: offer.Hash, Price: price,
		Devices: []string{sim.UUID(0)}})
	meter, err := usage.NewMeter(usage.Config{Devices: lease.Devices})
	must(err)
	must(meter.Describe(gpu.Name(), devices[0]))
	for range 11 {
		reading, err := gpu.Read(ctx, sim.UUID(0))
		must(err)
		_, err = meter.Observe(reading)
		must(err)
		clock.Advance(time.Second)
	}
	recorder, err := usage.NewRecorder(lease, payee, nil)
	must(err)
	record, err := recorder.Next(ctx, meter.Cut(), true)
	must(err)
	voucher, err := channel.EscrowDomain(terms.ChainID, terms.Escrow).Sign(ctx, payer, terms.ID(), record.Owed)
	must(err)
	file, err := audit.Encode(audit.Bundle{
		Kind: audit.Kind, Version: 1, Keeper: audit.KeptByPayer, Channel: terms.ID(), Terms: wire.NewTerms(terms), Deposit: wire.NewAmount(*uint256.NewInt(50_000)),
		Leases:   []audit.Lease{{ID: lease.ID, Offer: offer.Document, Devices: lease.Devices, Records: []metering.SignedRecord{record}}},
		Vouchers: []audit.Voucher{{Cumulative: wire.NewAmount(voucher.Cumulative), Signature: voucher.Signature}},
	})
	must(err)
	return file
}

func exampleKey(n byte) *channel.Key {
	return channel.NewKey(crypto.ToECDSAUnsafe(common.LeftPadBytes([]byte{n}, 32)))
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
