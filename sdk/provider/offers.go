package provider

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// offering publishes what the provider rents out, and for what. A lease keeps the offer it was rented under: each is on disk before
// anybody is shown it.
type offering struct {
	key     channel.Signer
	terms   wire.Offer // without what changes: devices, and the expiry
	ttl     time.Duration
	devices func() []metering.Device
	store   leasestore.Offers
	log     *slog.Logger

	mu     sync.Mutex
	newest wire.SignedOffer
}

// makeOffers has the provider publish its first offer.
func (p *Server) makeOffers(ctx context.Context) error {
	c := p.config
	o := &p.offers
	o.key, o.ttl, o.store, o.log, o.devices = c.Key, c.Terms.OfferTTL, p.store.Offers, c.Log, p.leases.Offered.List
	o.terms = wire.Offer{
		Version:     1,
		ChainID:     p.escrow.ChainID(),
		Escrow:      wire.Address(p.escrow.Address()),
		Token:       wire.Address(c.Token),
		Payee:       wire.Address(c.Key.Address()),
		Meter:       wire.Address(c.Metering.Key.Address()),
		Amount:      wire.NewAmount(p.price.Amount),
		Unit:        string(p.price.Unit),
		Credit:      uint64(c.Terms.Credit / time.Second),
		MinDeposit:  wire.NewAmount(p.minDeposit),
		Tick:        c.Metering.Tick.Milliseconds(),
		MaxGap:      c.Metering.MaxGap.Milliseconds(),
		RecordEvery: c.Metering.RecordEvery.Milliseconds(),
	}
	if p.gasless && !p.minTransfer.IsZero() {
		least := wire.NewAmount(p.minTransfer)
		o.terms.MinTopUp = &least
	}
	if p.nodes != nil { // each signs the records of its leases with a key of its own
		o.devices, o.terms.Version, o.terms.Meter = p.nodes.Devices, 2, wire.Address(common.Address{})
	}
	return o.renew(ctx)
}

// Offer returns the offer that new leases are made under.
func (p *Server) Offer() wire.SignedOffer { return p.offers.current() }

func (o *offering) current() wire.SignedOffer {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.newest
}

// renew publishes an offer with a fresh expiry.
func (o *offering) renew(ctx context.Context) error {
	devices, terms := o.devices(), o.terms
	terms.Devices, terms.Simulated = wire.DevicesOf(devices), wire.Simulated(devices)
	terms.Expires = offerEnd(time.Now(), o.ttl).Unix()
	offer, err := wire.SignOffer(ctx, o.key, terms)
	if err != nil {
		return err
	}
	if err := o.store.Put(ctx, offer); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.newest = offer
	return nil
}

// offerEnd is when an offer that is made now expires: after half of ttl at least, and ttl at most. It is the same for a whole
// half, so that all gateways of a database, and the next process, make one offer: a balancer sends a renter, or a lease, to any.
func offerEnd(now time.Time, ttl time.Duration) time.Time {
	half := ttl / 2
	return now.Truncate(half).Add(2 * half)
}

// offerLook is how long an offer is not renewed, at most, after it was due: the wall clock may have been set.
const offerLook = time.Minute

// run publishes the next offer when it is due. What fails is tried again.
func (o *offering) run(ctx context.Context) error {
	for {
		end := offerEnd(time.Now(), o.ttl)
		due := time.Until(end.Add(-o.ttl / 2))
		if err := chain.Pause(ctx, min(due+time.Millisecond, offerLook)); err != nil {
			return err
		}
		if o.current().Expires == offerEnd(time.Now(), o.ttl).Unix() {
			continue
		}
		if err := o.renew(ctx); err != nil && ctx.Err() == nil {
			o.log.Error("offer could not be renewed: it is tried again", "error", err)
			if err := chain.Pause(ctx, time.Second); err != nil {
				return err
			}
		}
	}
}
