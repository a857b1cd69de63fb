package leasestore

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Offers keeps the offers that leases were begun under.
type Offers struct {
	db *store.DB
	*offerCache
}

// offerCache remembers offers, which never change: to read one means to check
// its signature, and every request names one. Leases share what is in it.
type offerCache struct {
	mu     sync.Mutex
	byHash map[common.Hash]*wire.SignedOffer
}

// maxOffers is how many are remembered. A provider has one at a time.
const maxOffers = 64

// Shared is the offer that all share.
func (c *offerCache) Shared(o wire.SignedOffer) *wire.SignedOffer {
	c.mu.Lock()
	defer c.mu.Unlock()
	if known := c.byHash[o.Hash]; known != nil {
		return known
	}
	if c.byHash == nil || len(c.byHash) >= maxOffers {
		c.byHash = make(map[common.Hash]*wire.SignedOffer)
	}
	c.byHash[o.Hash] = &o
	return &o
}

func (c *offerCache) known(hash common.Hash) *wire.SignedOffer {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.byHash[hash]
}

// Put keeps an offer, which never changes.
func (s Offers) Put(ctx context.Context, o wire.SignedOffer) error {
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO offers (hash, document) VALUES (?, ?) ON CONFLICT (hash) DO NOTHING`),
			o.Hash.Hex(), string(o.Document))
		return err
	})
}

// Get is the offer of a hash, checked.
func (s Offers) Get(ctx context.Context, hash common.Hash) (wire.SignedOffer, error) {
	if known := s.known(hash); known != nil {
		return *known, nil
	}
	var document string
	db := s.db.View()
	if err := db.GetContext(ctx, &document, db.Rebind(`SELECT document FROM offers WHERE hash = ?`), hash.Hex()); err != nil {
		return wire.SignedOffer{}, fmt.Errorf("offer %s: %w", hash, err)
	}
	o, err := wire.ParseOffer([]byte(document))
	if err != nil {
		return o, err
	}
	return *s.Shared(o), nil
}

// Owed are the hashes of offers under which a lease runs, or has ended since a time.
func (s Offers) Owed(ctx context.Context, since time.Time) ([]common.Hash, error) {
	var texts []string
	db := s.db.View()
	err := db.SelectContext(ctx, &texts, db.Rebind(`SELECT DISTINCT offer FROM leases WHERE ended_at = 0 OR ended_at > ?`), since.Unix())
	hashes := make([]common.Hash, len(texts))
	for i, text := range texts {
		hashes[i] = common.HexToHash(text)
	}
	return hashes, err
}
