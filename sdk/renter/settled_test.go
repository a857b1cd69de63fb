package renter_test

import (
	"context"
	"encoding/json"
	"math/big"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common/hexutil"

	"github.com/gpupay/gpupay/bindings"
	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/metering/verify"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
)

// TestFalseSettledIsNotSignedFor: an endpoint that says, while a channel opens, that all of its deposit was settled has
// nothing signed for it: what the provider gets is what its records say.
func TestFalseSettledIsNotSignedFor(t *testing.T) {
	m := testrig.NewMarket(t)
	server := serveProvider(t, m, nil)
	config, bad := behindEndpoint(t, m)
	lies := claimSettled(t, bad)
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1.00", PayEvery: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	bad.Heal()
	if lies.Load() == 0 {
		t.Fatal("the endpoint was not asked for the channel")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_ = l.Run(ctx)
	c, err := l.Close(t.Context())
	if err != nil || c.Settled != c.Owed || c.Owed.IsZero() || c.Settled == c.Deposit {
		t.Errorf("owed %s, settled %s of %s: %v", c.Owed.Dec(), c.Settled.Dec(), c.Deposit.Dec(), err)
	}
}

// TestFalseSettledBuysNoAbsence: a provider and an endpoint together, of which this one says that all of the deposit was
// settled, have no more signed for a renter's absence than the credit allows.
func TestFalseSettledBuysNoAbsence(t *testing.T) {
	m := testrig.NewMarket(t)
	v := testrig.NewHostile(t, m, nil)
	v.Script = func(p *testrig.Stream) { p.Usage(p.Next(15 * time.Minute)) }
	config, bad := behindEndpoint(t, m)
	lies := claimSettled(t, bad)
	r, l := absenteeOf(t, config, v)
	if paid, err := l.Lease().Payer.State(t.Context(), l.ID()); err != nil || paid.Settled.IsZero() || lies.Load() == 0 {
		t.Fatalf("the renter holds %s for settled (%v): the endpoint was not asked for the channel", paid.Settled.Dec(), err)
	}
	checkAway(t, r, l, l.Run(t.Context()), verify.ErrCredit)
}

// claimSettled has an endpoint say of open channels that all of their deposit was settled, and counts how often it did.
func claimSettled(t *testing.T, bad *badrpc.Endpoint) *atomic.Int64 {
	t.Helper()
	abi, err := bindings.ChannelEscrowMetaData.ParseABI()
	if err != nil {
		t.Fatal(err)
	}
	lies := new(atomic.Int64)
	bad.On("eth_call", func(x *badrpc.Exchange) {
		var text hexutil.Bytes
		if x.Result == nil || json.Unmarshal(x.Result, &text) != nil {
			return
		}
		slots, err := bindings.NewChannelEscrow().UnpackChannels(text)
		if err != nil || len(slots) != 1 || !slots[0].Open {
			return
		}
		slots[0].Settled = new(big.Int).Set(slots[0].Deposit)
		out, err := abi.Methods["channels"].Outputs.Pack(slots)
		if err != nil {
			t.Error(err)
			return
		}
		x.Result, _ = json.Marshal(hexutil.Bytes(out))
		lies.Add(1)
	})
	return lies
}
