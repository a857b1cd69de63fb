package sdk

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/serve"
)

// health is what Health answers.
type health struct {
	Status          string            `json:"status"` // "ok", "degraded: " and what of, or why it answers 503
	Coin            string            `json:"coinWei,omitempty"`
	Reserve         string            `json:"reserveWei,omitempty"`
	Source          string            `json:"source,omitempty"`       // "ok", or why no GPU can be metered; empty where nodes meter
	Restart         bool              `json:"restartWanted"`          // nothing can be metered before the program is restarted
	Quarantined     []string          `json:"quarantined"`            // never null
	Refused         map[string]string `json:"refusedNodes,omitempty"` // of another kind than the first: why, by name
	Away            []string          `json:"unreachableNodes,omitempty"`
	Leases          int               `json:"leases"`
	Unmetered       int               `json:"unmeteredLeases"`
	Held            int               `json:"heldLeases"` // they have ended, and their GPUs could not be taken back yet
	OldestUnsettled float64           `json:"oldestUnsettledSeconds"`
	ChainSeen       *float64          `json:"chainSeenSeconds,omitempty"` // how long ago; missing before the first look, and where another gateway looks
}

// Health answers 200 while the provider can take vouchers, reach its chain, meter
// its GPUs, write down what it signs and pay for a settlement, 503 and the reason otherwise. What concerns
// some GPUs alone, or leases on them, leaves it at 200 and says degraded: no
// balancer should take the others' renters away for it. It says how much coin the
// key can still spend and how much is kept for settlements, which GPUs are in
// quarantine, which nodes are refused and why and which are out of reach, how many leases nobody can meter, how old the oldest unsettled voucher
// is, and when the chain was last seen.
func (p *Provider) Health() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		defer cancel()
		h, code := p.health(ctx), http.StatusOK
		err := errors.Join(p.check(ctx), p.checkCoin(ctx, &h), h.checkSource(), p.leases.Deps.Marks.Check(ctx))
		switch {
		case err != nil:
			h.Status, code = err.Error(), http.StatusServiceUnavailable
		case len(h.Quarantined) > 0 || h.Unmetered > 0 || h.Held > 0:
			h.Status = inventory.GPUs{Quarantined: h.Quarantined, Held: h.Held}.Degraded(h.Unmetered)
		case len(h.Refused) > 0 || len(h.Away) > 0:
			h.Status = fmt.Sprintf("degraded: %d nodes are refused, %d are out of reach", len(h.Refused), len(h.Away))
		}
		serve.JSON(w, code, h)
	})
}

func (p *Provider) health(ctx context.Context) health {
	leases, gpus := p.leases.All(), p.leases.GPUs(ctx)
	refused, away := p.nodes.Unfit()
	h := health{Status: "ok", Leases: len(leases), Unmetered: lease.Unmetered(leases), Quarantined: append([]string{}, gpus.Quarantined...), Held: gpus.Held, Refused: refused,
		Away: away, Restart: gpus.Restart()}
	switch {
	case gpus.Err != nil:
		h.Source = gpus.Err.Error()
	case p.nodes == nil:
		h.Source = "ok"
	}
	if age, err := p.sender.Store.Oldest(ctx, time.Now()); err == nil {
		h.OldestUnsettled = age.Seconds()
	}
	if seen, ok := p.chainSeen(); ok {
		ago := time.Since(seen).Seconds()
		h.ChainSeen = &ago
	}
	return h
}

func (h *health) checkSource() error {
	if h.Source == "" || h.Source == "ok" {
		return nil
	}
	return fmt.Errorf("no GPU can be metered: %s", h.Source)
}

// chainSeen is when every contract was last looked at to the chain's newest block;
// false before the first look, and where another gateway does that.
func (p *Provider) chainSeen() (time.Time, bool) {
	if p.settlement == nil {
		return time.Time{}, false
	}
	seen := p.settlement.Looked()
	return seen, !seen.IsZero()
}
