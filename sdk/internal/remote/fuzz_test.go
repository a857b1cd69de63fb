package remote

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/usage"
	"github.com/gpupay/gpupay/metering/verify"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/nodelink"
	"github.com/gpupay/gpupay/sdk/wire"
)

// fixedKey is the same in every process of a fuzzer.
func fixedKey(f *testing.F) *channel.Key {
	f.Helper()
	private, err := crypto.ToECDSA(crypto.Keccak256([]byte("node")))
	if err != nil {
		f.Fatal(err)
	}
	return channel.NewKey(private)
}

// FuzzNodeAnswer gives a gateway whatever a node could answer. Of what it takes, each record is signed by the offer's key and owes what
// its time costs.
func FuzzNodeAnswer(f *testing.F) {
	key := fixedKey(f)
	terms := metering.Lease{ID: common.Hash{1}, ChannelID: common.Hash{2}, OfferHash: common.Hash{3}, ChainID: 1, Escrow: common.Address{4},
		Price: metering.Price{Amount: *uint256.NewInt(1000), Unit: metering.Second}, Devices: []string{"SIM-GPU-0"}, Simulated: true}
	recorder, err := usage.NewRecorder(terms, key, nil)
	if err != nil {
		f.Fatal(err)
	}
	meter, err := usage.NewMeter(usage.Config{Devices: terms.Devices})
	if err != nil {
		f.Fatal(err)
	}
	rec, err := recorder.Next(f.Context(), meter.Cut(), false)
	if err != nil {
		f.Fatal(err)
	}
	good, err := json.Marshal(nodelink.Lease{LeaseID: terms.ID, State: wire.StateActive, Sequence: 1, Allocation: &gpu.Allocation{}, Records: []metering.SignedRecord{rec}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"meter":"0x0000000000000000000000000000000000000001","devices":[{"uuid":"x"}],"free":1,"leases":[]}`))
	f.Fuzz(func(t *testing.T, answer []byte) {
		var status nodelink.Status
		if nodelink.Parse(answer, &status) == nil {
			_ = wire.DevicesOf(status.Devices)
		}
		var l nodelink.Lease
		if nodelink.Parse(answer, &l) != nil {
			return
		}
		checker, err := verify.Resume(verify.Config{Lease: terms, Key: key.Address(), Tolerance: time.Minute}, checkedTo(nil, terms, time.Now().UnixNano()))
		if err != nil {
			t.Fatal(err)
		}
		for _, got := range l.Records {
			if checker.Check(got) != nil {
				continue
			}
			if owed, err := terms.Owed(got.Nanos); err != nil || owed != got.Owed || got.Record != rec.Record {
				t.Fatalf("taken: %+v", got.Record)
			}
		}
	})
}
