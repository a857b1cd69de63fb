package provider

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/admit"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/remote"
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
	Down            string            `json:"upstreamDown,omitempty"` // why nothing is served of what is shared
	Held            int               `json:"heldLeases"`             // they have ended, or were forgotten, and their GPUs could not be taken back yet
	Unwatched       int               `json:"unwatchedChannels"`      // with something to settle, on a contract that is not watched
	OldestUnsettled float64           `json:"oldestUnsettledSeconds"`
	ChainSeen       *float64          `json:"chainSeenSeconds,omitempty"` // how long ago; missing before the first look, and where another gateway looks
}

// Health answers 200 while the provider can take vouchers, reach its chain, meter
// its GPUs, write down what it signs and pay for a settlement, 503 and the reason otherwise. What concerns
// some GPUs alone, or leases on them, leaves it at 200 and says degraded: no
// balancer should take the others' renters away for it. It says how much coin the
// key can still spend and how much is kept for settlements, which GPUs are in
// quarantine, which nodes are refused and why and which are out of reach, why an inference server is down, how many leases nobody can meter, how old the oldest unsettled voucher
// is, and when the chain was last seen.
func (p *Server) Health() http.Handler {
	return &healthCheck{leases: &p.leases, nodes: p.nodes, sender: p.sender, sponsor: p.sponsor, db: p.db, escrow: p.escrow,
		tolerance: p.config.Chain.ClockTolerance, settles: &p.settlement}
}

// healthCheck asks what service hangs on.
type healthCheck struct {
	leases    *lease.Manager
	nodes     *remote.Nodes // nil where this gateway meters
	sender    *chain.Sender
	sponsor   *admit.GasSponsor
	db        *store.DB
	escrow    *chain.Escrow
	tolerance time.Duration // of the chain's clock
	settles   *settlement
}

func (c *healthCheck) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	h, code := c.look(ctx), http.StatusOK
	err := errors.Join(c.reach(ctx), c.checkCoin(ctx, &h), h.checkSource(), c.leases.Deps.Marks.Check(ctx))
	switch {
	case err != nil:
		h.Status, code = err.Error(), http.StatusServiceUnavailable
	case h.Unwatched > 0:
		h.Status = fmt.Sprintf("degraded: what is owed on %d channels is not settled, and their payers can take it back: their contract is not watched, as the log of the start says", h.Unwatched)
	case h.Down != "":
		h.Status = "degraded: nothing is served or rented of the GPUs that are shared: " + h.Down
	case len(h.Quarantined) > 0 || h.Unmetered > 0 || h.Held > 0:
		h.Status = inventory.GPUs{Quarantined: h.Quarantined, Held: h.Held}.Degraded(h.Unmetered)
	case len(h.Refused) > 0 || len(h.Away) > 0:
		h.Status = fmt.Sprintf("degraded: %d nodes are refused, %d are out of reach", len(h.Refused), len(h.Away))
	}
	serve.JSON(w, code, h)
}

func (c *healthCheck) look(ctx context.Context) health {
	leases, gpus := c.leases.All(), c.leases.GPUs(ctx)
	refused, away := c.nodes.Unfit()
	h := health{Status: "ok", Leases: len(leases), Unmetered: lease.Unmetered(leases), Quarantined: append([]string{}, gpus.Quarantined...), Held: gpus.Held, Refused: refused,
		Away: away, Restart: gpus.Restart(), Down: c.leases.Services.Down()}
	switch {
	case gpus.Err != nil:
		h.Source = gpus.Err.Error()
	case c.nodes == nil:
		h.Source = "ok"
	}
	if age, err := c.sender.Store.Oldest(ctx, time.Now()); err == nil {
		h.OldestUnsettled = age.Seconds()
	}
	if states, err := c.settles.unwatched(ctx); err == nil {
		h.Unwatched = len(states)
	}
	if seen, ok := c.settles.chainSeen(); ok {
		ago := time.Since(seen).Seconds()
		h.ChainSeen = &ago
	}
	return h
}

// checkCoin looks at what the key has for gas.
func (c *healthCheck) checkCoin(ctx context.Context, h *health) error {
	f, err := c.sponsor.Funds(ctx)
	if err != nil {
		return err
	}
	h.Coin, h.Reserve = f.Coin.String(), f.Reserve.String()
	if f.Coin.Cmp(f.Least) < 0 {
		return fmt.Errorf("%s has %s wei and a settlement may take %s: send it native coin", c.sender.Address(), f.Coin, f.Least)
	}
	return nil
}

// reach fails where the database or the chain does not answer.
func (c *healthCheck) reach(ctx context.Context) error {
	if err := c.db.View().PingContext(ctx); err != nil {
		return err
	}
	return c.escrow.CheckClock(ctx, c.tolerance)
}

func (h *health) checkSource() error {
	if h.Source == "" || h.Source == "ok" {
		return nil
	}
	return errors.New("no GPU can be metered: " + h.Source)
}
