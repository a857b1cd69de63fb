package renter_test

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/verify"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestStrangerAccusesNoPayeeInARental: somebody has rented at his own site under a copy of an honest provider's offer. He forges
// records, keeps those of the provider back, or says other things of a lease than they do: his site gets no more, the provider
// does. What its own signed records contradict is held against it at every site. Both also by a renter that was started anew.
func TestStrangerAccusesNoPayeeInARental(t *testing.T) {
	m := testrig.NewMarket(t)
	payee := channel.NewKey(m.Payee).Address()
	for _, test := range []struct {
		name     string
		script   func(*testrig.Stream)
		said     uint64 // base units owed when the lease began, as the site said
		want     error
		convicts bool
	}{
		{"a forged record", func(p *testrig.Stream) { p.Hostile.MeterKey = channel.NewKey(m.Keys[5]); p.Overcharge() }, 0, verify.ErrSignature, false},
		{"a record without a signature, of no amount", func(p *testrig.Stream) {
			document, err := json.Marshal(p.Next(50 * time.Millisecond))
			var fields map[string]any
			if err = errors.Join(err, json.Unmarshal(document, &fields)); err != nil {
				p.T.Error(err)
			}
			fields["owed"] = "01"
			delete(fields, "signature")
			p.Send(1, wire.EventUsage, fields)
		}, 0, peer.ErrProtocol, false},
		{"a record that came too early", func(p *testrig.Stream) { p.Usage(p.Next(36 * time.Second)) }, 0, verify.ErrClock, false},
		{"a record that begins elsewhere than its lease was said to", func(p *testrig.Stream) { p.Usage(p.Next(50 * time.Millisecond)) }, 1, metering.ErrPrice, false},
		{"a record of another price", (*testrig.Stream).Overcharge, 0, metering.ErrPrice, true},
		{"two records of one number", func(p *testrig.Stream) {
			p.Honest(1)
			p.Usage(p.Resign(p.Sent, func(r *metering.SignedRecord) { r.To++ }))
		}, 0, verify.ErrForked, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := testrig.NewHostile(t, m, nil)
			v.Script = test.script
			config := renterrig.Config(t, m, m.Payer)
			r := renterrig.Open(t, config)
			l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "0.1"})
			if err != nil {
				t.Fatal(err)
			}
			l.Lease().Row.OwedBefore.SetUint64(test.said)
			if err := l.Lease().Forget(); err != nil {
				t.Fatal(err)
			}
			var d *wallet.Dispute
			if err := l.Run(t.Context()); !errors.Is(err, test.want) || !errors.As(err, &d) {
				t.Fatalf("%v, want %v", err, test.want)
			}
			for range 2 {
				if err := r.Wallet().Vet(t.Context(), payee, "http://elsewhere"); errors.As(err, &d) != test.convicts {
					t.Errorf("the payee at its own site: %v", err)
				}
				if err := r.Wallet().Vet(t.Context(), common.Address{1}, peer.SiteOf(v.Server.URL)); !errors.As(err, &d) {
					t.Errorf("another payee at the site: %v", err)
				}
				if err := r.Close(); err != nil {
					t.Fatal(err)
				}
				r = renterrig.Open(t, config)
			}
		})
	}
}
