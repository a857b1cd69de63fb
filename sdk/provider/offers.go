package provider

import (
	"context"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/offering"
	"github.com/gpupay/gpupay/sdk/wire"
)

// makeOffers has the provider publish its first offers.
func (p *Server) makeOffers(ctx context.Context) error {
	c := p.config
	p.offers.Config = offering.Config{Key: c.Key, TTL: c.Terms.OfferTTL, Classes: c.classes(), Rates: p.rates, Shares: p.offers.Shares, Devices: p.leases.Offered.List,
		Of: p.leases.Offered.Kinds.Of, Store: p.store.Offers, Log: c.Log}
	terms := &p.offers.Terms
	*terms = wire.Offer{
		Version:     1,
		ChainID:     p.escrow.ChainID(),
		Escrow:      wire.Address(p.escrow.Address()),
		Token:       wire.Address(c.Token),
		Payee:       wire.Address(c.Key.Address()),
		Meter:       wire.Address(c.Metering.Key.Address()),
		Credit:      uint64(c.Terms.Credit / time.Second),
		Tick:        c.Metering.Tick.Milliseconds(),
		MaxGap:      c.Metering.MaxGap.Milliseconds(),
		RecordEvery: c.Metering.RecordEvery.Milliseconds(),
	}
	if p.gasless && !p.minTransfer.IsZero() {
		least := wire.NewAmount(p.minTransfer)
		terms.MinTopUp = &least
	}
	if len(c.Classes) > 0 { // of one all may have been lost at the start
		p.offers.Devices = func() []metering.Device {
			p.leases.Offered.Look(context.Background(), c.Source)
			return p.leases.Offered.List()
		}
	}
	if p.nodes != nil { // each signs the records of its leases with a key of its own; they are enlisted by class
		p.offers.Devices, p.offers.Config.Of, terms.Version, terms.Meter = p.nodes.Devices, c.classes().Of, 2, wire.Address(common.Address{})
	}
	return p.offers.Renew(ctx)
}

// Offer returns the offer that new leases are made under, of several classes that of the first one; the zero value where none has GPUs.
func (p *Server) Offer() (first wire.SignedOffer) {
	if all := p.Offers(); len(all) > 0 {
		first = all[0]
	}
	return first
}

// Offers are those that new leases are made under, one for each class of GPUs, in the order of Config.Classes.
func (p *Server) Offers() []wire.SignedOffer { return p.offers.All() }
