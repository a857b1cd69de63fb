package sdk

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
)

// alone makes this gateway the only one to serve a channel, for as long as that
// takes: nil where it is alone anyway. When it dies, the others wait until its claim
// has ended.
func (d *x402Desk) alone(ctx context.Context, id common.Hash) (*leasestore.Lock, error) {
	if !d.shared {
		return nil, nil
	}
	if c := d.held.take(id); c != nil {
		err := c.Held(ctx)
		if err == nil {
			return c, nil
		}
		if c.Release(ctx); !errors.Is(err, leasestore.ErrLockLost) {
			return nil, err
		}
	}
	return d.store.Locks.Take(ctx, d.leases.lifetime(), "x402 "+id.Hex(), d.poll/4, d.config.Log)
}

// yield lets other gateways serve a channel: at once or, where a request was
// corrected that will come again, a moment later.
func (d *x402Desk) yield(ctx context.Context, id common.Hash, c *leasestore.Lock, later bool) {
	if c == nil || !later {
		c.Release(ctx)
		return
	}
	d.held.put(id, c, d.lines.hold)
}

// booksOf are a request's: what is written to them counts only while the request has
// its turn among the gateways. One that was stopped for longer than its claim lasts
// would write, and serve, beside those that came after it.
func (d *x402Desk) booksOf(r *x402Request) (db *store.DB, book *channel.Payee, notes x402Store) {
	if r.claim == nil {
		return d.db, d.book, d.notes
	}
	db = d.db.Guard(r.claim.Check)
	guarded := *d.book
	guarded.Store = db.Payee()
	return db, &guarded, x402Store{db}
}

// notesOf are the notes among a request's books.
func (d *x402Desk) notesOf(r *x402Request) x402Store {
	_, _, notes := d.booksOf(r)
	return notes
}

// heldClaims are claims of channels whose line waits for a corrected request.
type heldClaims struct {
	mu   sync.Mutex
	byID map[common.Hash]*heldClaim
}

type heldClaim struct {
	claim *leasestore.Lock
	timer *time.Timer
}

func (h *heldClaims) put(id common.Hash, held *leasestore.Lock, hold time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.byID == nil {
		h.byID = make(map[common.Hash]*heldClaim)
	}
	c := &heldClaim{claim: held}
	h.byID[id] = c
	c.timer = time.AfterFunc(hold, func() {
		if h.drop(id, c) {
			held.Release(context.Background())
		}
	})
}

// take hands a claim that is still held over to the next request.
func (h *heldClaims) take(id common.Hash) *leasestore.Lock {
	h.mu.Lock()
	c := h.byID[id]
	h.mu.Unlock()
	if c == nil || !h.drop(id, c) {
		return nil
	}
	c.timer.Stop()
	return c.claim
}

// drop is true for the one who may give the claim back.
func (h *heldClaims) drop(id common.Hash, c *heldClaim) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.byID[id] != c {
		return false
	}
	delete(h.byID, id)
	return true
}

// notice tells a lease that runs here what requests at other gateways reserved.
func (d *x402Desk) notice(ctx context.Context, l *lease) error {
	if d == nil || l.credit.postpaid() {
		return nil
	}
	note, err := d.notes.channel(ctx, l.terms.ID())
	if err != nil {
		return err
	}
	if v, _ := l.snapshot(); note.Reserved.Gt(&v.reserved) {
		l.reserve(note.Reserved)
	}
	return nil
}
