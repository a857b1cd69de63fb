package sdk

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestStrangerAccusesNoPayeeInARental: somebody has rented at his own site under a copy of an honest provider's offer. He forges
// records, keeps those of the provider back, or says other things of a lease than they do: his site gets no more, the provider
// does. What its own signed records contradict is held against it at every site. Both also by a renter that was started anew.
func TestStrangerAccusesNoPayeeInARental(t *testing.T) {
	m := newMarket(t)
	payee := channel.NewKey(m.payee).Address()
	for _, test := range []struct {
		name     string
		script   func(*plot)
		said     uint64 // base units owed when the lease began, as the site said
		want     error
		convicts bool
	}{
		{"a forged record", func(p *plot) { p.villain.meter = channel.NewKey(m.Keys[5]); p.overcharge() }, 0, metering.ErrSignature, false},
		{"a record without a signature, of no amount", func(p *plot) {
			document, err := json.Marshal(p.next(50 * time.Millisecond))
			var fields map[string]any
			if err = errors.Join(err, json.Unmarshal(document, &fields)); err != nil {
				p.t.Error(err)
			}
			fields["owed"] = "01"
			delete(fields, "signature")
			p.send(1, wire.EventUsage, fields)
		}, 0, peer.ErrProtocol, false},
		{"a record that came too early", func(p *plot) { p.usage(p.next(36 * time.Second)) }, 0, metering.ErrClock, false},
		{"a record that begins elsewhere than its lease was said to", func(p *plot) { p.usage(p.next(50 * time.Millisecond)) }, 1, metering.ErrPrice, false},
		{"a record of another price", (*plot).overcharge, 0, metering.ErrPrice, true},
		{"two records of one number", func(p *plot) {
			p.honest(1)
			p.usage(p.resign(p.sent, func(r *metering.SignedRecord) { r.To++ }))
		}, 0, metering.ErrForked, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := newVillain(t, m, nil)
			v.script = test.script
			config := m.renterConfig(t, m.payer)
			r := openRenter(t, config)
			l, err := r.Rent(t.Context(), v.server.URL, RentOptions{Deposit: "0.1"})
			if err != nil {
				t.Fatal(err)
			}
			l.row.OwedBefore.SetUint64(test.said)
			if err := l.forget(); err != nil {
				t.Fatal(err)
			}
			var d *Dispute
			if err := l.Run(t.Context()); !errors.Is(err, test.want) || !errors.As(err, &d) {
				t.Fatalf("%v, want %v", err, test.want)
			}
			for range 2 {
				if err := r.w.Vet(t.Context(), payee, "http://elsewhere"); errors.As(err, &d) != test.convicts {
					t.Errorf("the payee at its own site: %v", err)
				}
				if err := r.w.Vet(t.Context(), common.Address{1}, siteOf(v.server.URL)); !errors.As(err, &d) {
					t.Errorf("another payee at the site: %v", err)
				}
				if err := r.Close(); err != nil {
					t.Fatal(err)
				}
				r = openRenter(t, config)
			}
		})
	}
}
