package offering

import (
	"context"
	"sync"
	"time"

	"github.com/gpupay/gpupay/sdk/wire"
)

// owedFor is how long after its lease has ended a renter gets a challenge to pay for it, under which none begins any more; retiredAge is
// how old an answer about that may be.
const (
	owedFor    = 24 * time.Hour
	retiredAge = 5 * time.Second
)

// retired are the offers of classes that a provider had before it was started with others: leases go on under them.
type retired struct {
	mu      sync.Mutex
	at      time.Time
	byClass map[string]wire.SignedOffer
}

// Challenged returns the offer that a challenge is made for: Of's, or, where no lease of the class begins any more, one under which a
// lease runs, or ended lately. Who pays for that goes on to pay, whatever classes the provider was started with since.
func (o *Offers) Challenged(ctx context.Context, class string) (wire.SignedOffer, error) {
	offer, refusal := o.Of(class)
	if refusal == nil {
		return offer, nil
	}
	r := &o.retired
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); now.Sub(r.at).Abs() >= retiredAge {
		hashes, err := o.Store.Owed(ctx, now.Add(-owedFor))
		if err != nil {
			return offer, err
		}
		r.at, r.byClass = now, make(map[string]wire.SignedOffer)
		for _, hash := range hashes {
			if past, err := o.Store.Get(ctx, hash); err == nil {
				r.byClass[past.ClassID()] = past
			}
		}
	}
	if past, ok := r.byClass[class]; ok {
		return past, nil
	}
	return offer, refusal
}
