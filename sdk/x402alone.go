package sdk

import (
	"context"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/sdk/chain"
)

// alone makes this gateway the only one to serve a channel, for as long as that
// takes. When it dies, the others wait until its claim has ended.
func (d *x402Desk) alone(ctx context.Context, id common.Hash) (unclaim func(), err error) {
	if !d.shared {
		return func() {}, nil
	}
	if unclaim := d.held.take(id); unclaim != nil {
		return unclaim, nil
	}
	name, owner := "x402 "+id.Hex(), newGatewayID()
	for {
		ok, err := d.store.claim(ctx, name, owner, claimTime)
		if err != nil {
			return nil, err
		}
		if ok {
			break
		}
		if err := chain.Pause(ctx, d.poll/4); err != nil {
			return nil, err
		}
	}
	renewing, stop := context.WithCancel(d.leases.lifetime())
	go func() {
		for chain.Pause(renewing, claimTime/4) == nil {
			if err := d.store.renew(renewing, name, owner, claimTime); err != nil && renewing.Err() == nil {
				d.config.Log.Warn("a claim was not renewed", "claim", name, "error", err)
			}
		}
	}()
	return func() {
		stop()
		call, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := d.store.unclaim(call, name, owner); err != nil && d.leases.lifetime().Err() == nil {
			d.config.Log.Warn("a claim was not given back: it ends by itself", "claim", name, "error", err)
		}
	}, nil
}

// yield lets other gateways serve a channel: at once or, where a request was
// corrected that will come again, a moment later.
func (d *x402Desk) yield(id common.Hash, unclaim func(), later bool) {
	if !d.shared || !later {
		unclaim()
		return
	}
	d.held.put(id, unclaim, d.lines.hold)
}

// heldClaims are claims of channels whose line waits for a corrected request.
type heldClaims struct {
	mu   sync.Mutex
	byID map[common.Hash]*heldClaim
}

type heldClaim struct {
	unclaim func()
	timer   *time.Timer
}

func (h *heldClaims) put(id common.Hash, unclaim func(), hold time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.byID == nil {
		h.byID = make(map[common.Hash]*heldClaim)
	}
	c := &heldClaim{unclaim: unclaim}
	h.byID[id] = c
	c.timer = time.AfterFunc(hold, func() {
		if h.drop(id, c) {
			unclaim()
		}
	})
}

// take hands a claim that is still held over to the next request.
func (h *heldClaims) take(id common.Hash) (unclaim func()) {
	h.mu.Lock()
	c := h.byID[id]
	h.mu.Unlock()
	if c == nil || !h.drop(id, c) {
		return nil
	}
	c.timer.Stop()
	return c.unclaim
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

// renew keeps a claim that is still held.
func (s leaseStore) renew(ctx context.Context, name, owner string, ttl time.Duration) error {
	return s.db.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`UPDATE claims SET expires = `+serverNow+` + ? WHERE name = ? AND owner = ?`), ttl.Milliseconds(), name, owner)
		return err
	})
}

// notice tells a lease that runs here what requests at other gateways reserved.
func (d *x402Desk) notice(ctx context.Context, l *lease) error {
	if d == nil || l.window == 0 {
		return nil
	}
	note, err := d.notes.channel(ctx, l.terms.ID())
	if err != nil {
		return err
	}
	if v, _ := l.snapshot(); note.Reserved.Gt(&v.reserved) {
		l.update(func(v *leaseView) { v.reserved = note.Reserved })
		l.wake()
	}
	return nil
}
