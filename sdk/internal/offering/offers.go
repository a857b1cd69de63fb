// Package offering publishes what a provider rents out, and for what: a signed offer for each class of its devices. A lease keeps the
// offer that it began under: each is on disk before anybody is shown it.
package offering

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Rate is what the devices of a class cost.
type Rate struct {
	Price      metering.Price // of one
	MinDeposit uint256.Int    // base units
}

// Config says what is offered.
type Config struct {
	Key     channel.Signer
	Terms   wire.Offer // what all offers say
	TTL     time.Duration
	Classes inventory.Classes
	Rates   map[string]Rate       // by class; of the empty one where there are none
	Shares  map[string]wire.Share // of classes whose devices leases share
	Devices func() []metering.Device
	Of      func(metering.Device) (class string, ok bool)
	Store   leasestore.Offers
	Log     *slog.Logger
}

// Offers are those of a provider. They are complete with their Config.
type Offers struct {
	Config

	mu     sync.Mutex
	newest map[string]wire.SignedOffer // by class

	retired retired
}

// Of returns the offer that new leases of a class are made under. Where there is one class it need not be named. The error names the
// classes that there are.
func (o *Offers) Of(class string) (wire.SignedOffer, error) {
	ids := o.Classes.IDs()
	o.mu.Lock()
	defer o.mu.Unlock()
	switch all := strings.Join(ids, ", "); {
	case class == "" && len(ids) > 1:
		problem := wire.NoClass.With("this provider has GPUs of several classes, each at a price of its own: ask for one of them, as by ?class=%s. There are: %s", ids[0], all)
		problem.Classes = ids
		return wire.SignedOffer{}, problem
	case class == "":
		class = ids[0]
	case !slices.Contains(ids, class) && all == "":
		return wire.SignedOffer{}, wire.NoSuchClass.With("this provider's GPUs are all of one kind, and it has no class %.64q: ask for none", class)
	case !slices.Contains(ids, class):
		problem := wire.NoSuchClass.With("this provider has no class %.64q. There are: %s", class, all)
		problem.Classes = ids
		return wire.SignedOffer{}, problem
	}
	offer, ok := o.newest[class]
	if !ok {
		return offer, wire.NoCapacity.With("no GPU of class %s is here now", class)
	}
	return offer, nil
}

// All are the offers that new leases are made under, in the order of the classes.
func (o *Offers) All() (all []wire.SignedOffer) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, id := range o.Classes.IDs() {
		if offer, ok := o.newest[id]; ok {
			all = append(all, offer)
		}
	}
	return all
}

// Find is an offer of now or before, by its hash.
func (o *Offers) Find(ctx context.Context, hash common.Hash, may func() bool) (offer wire.SignedOffer, err error) {
	for _, offer := range o.All() {
		if offer.Hash == hash {
			return offer, nil
		}
	}
	if !may() {
		return offer, wire.TooMany.With("too many requests from your address")
	}
	return o.Store.Get(ctx, hash)
}

// draft is the offer of a class as it would be made now. It is false where no device of the class was ever listed.
func (o *Offers) draft(class string) (wire.Offer, bool) {
	devices, rate, terms := inventory.Those(o.Devices(), func(d metering.Device) bool { id, ok := o.Config.Of(d); return ok && id == class }), o.Rates[class], o.Terms
	if class != "" {
		terms.Version, terms.Class = 2, o.snapshot()[class].Class
		if len(devices) > 0 && (terms.Class == nil || !terms.Class.Has(devices[0])) {
			first := devices[0]
			terms.Class = &wire.Class{ID: class, Model: first.Name, MemoryBytes: first.MemoryBytes, MIG: first.MIG}
		}
		if terms.Class == nil {
			return terms, false
		}
		devices = inventory.Those(devices, terms.Class.Has)
	}
	if share, shared := o.Shares[class]; shared {
		terms.Version, terms.Share = 2, &share
	}
	terms.Amount, terms.Unit, terms.MinDeposit = wire.NewAmount(rate.Price.Amount), string(rate.Price.Unit), wire.NewAmount(rate.MinDeposit)
	terms.Devices, terms.Simulated = wire.DevicesOf(devices), wire.Simulated(devices)
	terms.Expires = End(time.Now(), o.TTL).Unix()
	return terms, true
}

// Renew publishes offers with a fresh expiry.
func (o *Offers) Renew(ctx context.Context) (err error) {
	for _, class := range o.Classes.IDs() {
		if failed := o.renew(ctx, class); failed != nil && class != "" {
			err = errors.Join(err, fmt.Errorf("class %s: %w", class, failed))
		} else if failed != nil {
			err = failed
		}
	}
	return err
}

func (o *Offers) renew(ctx context.Context, class string) error {
	terms, ok := o.draft(class)
	if !ok {
		return nil
	}
	offer, err := wire.SignOffer(ctx, o.Key, terms)
	if err == nil {
		err = o.Store.Put(ctx, offer)
	}
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.newest == nil {
		o.newest = make(map[string]wire.SignedOffer)
	}
	o.newest[class] = offer
	return nil
}

// Set has other offers be the newest.
func (o *Offers) Set(all ...wire.SignedOffer) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.newest = make(map[string]wire.SignedOffer)
	for _, offer := range all {
		o.newest[offer.ClassID()] = offer
	}
}

// snapshot is the newest offers by class.
func (o *Offers) snapshot() map[string]wire.SignedOffer {
	o.mu.Lock()
	defer o.mu.Unlock()
	return maps.Clone(o.newest)
}

// Differ reports whether an offer says something else of the devices than is listed now, or a class has devices and no offer.
func (o *Offers) Differ() bool {
	newest := o.snapshot()
	return slices.ContainsFunc(o.Classes.IDs(), func(class string) bool {
		now, ok := o.draft(class)
		was, known := newest[class]
		return ok && (!known || !slices.Equal(was.Devices, now.Devices) || was.Simulated != now.Simulated)
	})
}

// due reports whether an offer expires before one that is made now, or a class has come to devices.
func (o *Offers) due() bool {
	newest := o.snapshot()
	return slices.ContainsFunc(o.Classes.IDs(), func(class string) bool {
		was, known := newest[class]
		_, ok := o.draft(class)
		return ok && (!known || was.Expires != End(time.Now(), o.TTL).Unix())
	})
}

// End is when an offer that is made now expires: after half of ttl at least, and ttl at most. It is the same for a whole
// half, so that all gateways of a database, and the next process, make one offer: a balancer sends a renter, or a lease, to any.
func End(now time.Time, ttl time.Duration) time.Time {
	half := ttl / 2
	return now.Truncate(half).Add(2 * half)
}

// look is how long an offer is not renewed, at most, after it was due: the wall clock may have been set.
const look = time.Minute

// Run publishes the next offers when they are due. What fails is tried again.
func (o *Offers) Run(ctx context.Context) error {
	for {
		end := End(time.Now(), o.TTL)
		due := time.Until(end.Add(-o.TTL / 2))
		if err := chain.Pause(ctx, min(due+time.Millisecond, look)); err != nil {
			return err
		}
		if !o.due() {
			continue
		}
		if err := o.Renew(ctx); err != nil && ctx.Err() == nil {
			o.Log.Error("offer could not be renewed: it is tried again", "error", err)
			if err := chain.Pause(ctx, time.Second); err != nil {
				return err
			}
		}
	}
}
