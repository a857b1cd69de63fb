package node

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/serve"
)

// health is what Health answers.
type health struct {
	Status      string   `json:"status"`        // "ok", "degraded: " and what of, or why it answers 503
	Restart     bool     `json:"restartWanted"` // nothing can be metered before the program is restarted
	Quarantined []string `json:"quarantined,omitempty"`
	Leases      int      `json:"leases"`
	Unmetered   int      `json:"unmeteredLeases"`
	Held        int      `json:"heldLeases"` // they have ended, or were forgotten, and their GPUs could not be taken back yet
}

// Health answers 200 while the node can keep records, write down what it signs and list its devices, 503 and
// the reason otherwise. Where some or all of its GPUs do not work, or leases cannot be metered, it answers 200 and says degraded.
func (n *Agent) Health() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		defer cancel()
		leases, gpus := n.leases.All(), n.leases.GPUs(ctx)
		h, code := health{Status: "ok", Restart: gpus.Restart(), Quarantined: gpus.Quarantined, Leases: len(leases), Unmetered: lease.Unmetered(leases), Held: gpus.Held}, http.StatusOK
		err := errors.Join(n.spool.DB.View().PingContext(ctx), gpus.Err, n.leases.Deps.Marks.Check(ctx))
		switch why := n.refused(); {
		case err != nil:
			h.Status, code = err.Error(), http.StatusServiceUnavailable
		case why != "":
			h.Status = "degraded: " + why
		case len(h.Quarantined) > 0 || h.Unmetered > 0 || h.Held > 0:
			h.Status = gpus.Degraded(h.Unmetered)
		}
		serve.JSON(w, code, h)
	})
}
