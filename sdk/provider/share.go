package provider

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/internal/sharing"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Share is how leases share GPUs: each request of one holds a slot from its acceptance to its last byte, and a slot's second costs
// GPUs/Slots of a GPU-second, so that all renters together pay at most for the GPUs' time. The zero value shares nothing: each lease has
// its GPUs for itself. Requests come to whoever embeds the provider (sdk/sidecar), which has each take its slot: see Slots.
type Share struct {
	Slots int // how many requests run at once, of all leases together: 1 to 1024
	GPUs  int // how many each request uses: all that are shared, 1 to 64; so many as are there when the provider starts if zero
	// MaxTime is how long a request runs at most, whole seconds from when it takes its slot: 1 s to a day; MaxRequestTime if zero. Offers
	// name it, as wire.Share.MaxSeconds: a request that is answered for longer ends there, and is paid up to there.
	MaxTime time.Duration

	LeasesPerPayer    int // how many leases of one payer may be open; 4 if zero
	RequestsPerLease  int // how many requests of one lease may run at once; as many as there are slots if zero
	RequestsPerSecond int // how many of one lease may begin in a second, with a burst of ten seconds' worth; 20 if zero
}

// MaxRequestTime is how long a request runs at most where its Share does not say.
const MaxRequestTime = 30 * time.Minute

// Request is a request of a lease that shares GPUs, while it holds a slot: whoever took it calls End.
type Request = sharing.Request

func (c Config) shareOf(id string) Share {
	for _, class := range c.Classes {
		if class.ID == id {
			return class.Share
		}
	}
	return c.Share
}

func (c Config) checkShares() error {
	for _, id := range c.classes().IDs() {
		switch s := c.shareOf(id); {
		case s == Share{}:
		case s.Slots < 1 || s.Slots > metering.MaxSlots || s.GPUs < 0 || s.GPUs > metering.MaxGPUs || s.LeasesPerPayer < 0 || s.RequestsPerLease < 0 || s.RequestsPerSecond < 0:
			return fmt.Errorf("provider: Share: %d slots on %d GPUs: from 1 to %d and from 1 to %d can be shared, and no limit is negative", s.Slots, s.GPUs, metering.MaxSlots, metering.MaxGPUs)
		case s.MaxTime < 0 || s.MaxTime > wire.MaxRequestSeconds*time.Second || s.MaxTime%time.Second != 0:
			return fmt.Errorf("provider: Share: MaxTime (%s) must be whole seconds, up to %s", s.MaxTime, wire.MaxRequestSeconds*time.Second)
		case len(c.Nodes.Links) > 0:
			return errors.New("provider: Share: GPUs are shared where they are metered, and nodes share none: leave Nodes.Links empty")
		case strings.Contains(c.Database, "://"):
			return errors.New("provider: Share: only one process may have requests run on GPUs that are shared: give Database as a file")
		}
	}
	return nil
}

// share makes the services of the classes whose GPUs leases share.
func (p *Server) share() error {
	p.leases.Services, p.offers.Shares = make(sharing.Services), make(map[string]wire.Share)
	for _, id := range p.config.classes().IDs() {
		s, devices := p.config.shareOf(id), inventory.Names(p.leases.Offered.Of(id))
		if s.Slots == 0 || p.noGPUs != nil {
			continue
		}
		if s.GPUs = cmp.Or(s.GPUs, len(devices)); s.GPUs != len(devices) {
			return fmt.Errorf("provider: Share: a request uses %d GPUs, and there are %d of its class: name those that are shared as a class of their own", s.GPUs, len(devices))
		}
		most := cmp.Or(s.MaxTime, MaxRequestTime)
		share := metering.Share{GPUs: uint32(s.GPUs), Slots: uint32(s.Slots)}
		service, err := sharing.New(sharing.Config{Share: share, Devices: devices, Tick: p.config.Metering.Tick, MaxGap: p.config.Metering.MaxGap, Clock: p.config.Metering.Clock,
			URL: p.config.HTTP.PublicURL, Sick: p.leases.Offered.Quarantines(p.config.Allocator), Log: p.config.Log,
			Limits: sharing.Limits{Leases: s.LeasesPerPayer, Concurrent: s.RequestsPerLease, Rate: rate.Limit(s.RequestsPerSecond)}})
		if err != nil {
			return fmt.Errorf("provider: Share: %w", err)
		}
		p.leases.Services[id], p.offers.Shares[id] = service, wire.Share{GPUs: share.GPUs, MaxSeconds: uint32(most / time.Second), Slots: share.Slots}
	}
	return nil
}

// Slots are those of a provider's GPUs that leases share: what a program takes for each request that it serves itself.
type Slots struct{ p *Server }

// Slots are the provider's. Without a Share there are none.
func (p *Server) Slots() Slots { return Slots{p} }

// Take has a request of a lease that shares GPUs take a slot. token is the bearer token of the lease's access, and id what the client
// calls the request, once in a lease, or zero. It waits a second at most, for nothing. Its errors are answered by Refuse: a limit is 429,
// and 402 names what has to be paid before the client asks again. The request's Ctx ends with ctx, and when the lease has used up what it
// may owe.
func (s Slots) Take(ctx context.Context, token string, id uint64) (*Request, error) {
	turn, err := s.Admit(token)
	if err != nil {
		return nil, err
	}
	return turn.Take(ctx, id)
}

// Turn is a request that may be read and has no slot yet: its Take is Slots.Take, and its Leave gives it up.
type Turn = sharing.Turn

// Admit lets in a request before its body is read, which Take is too late for. It refuses a token that is no lease's, more requests a second
// than a lease may send (429), and more at once that are read or wait than can have a slot soon (429).
func (s Slots) Admit(token string) (*Turn, error) { return s.p.leases.Services.Admit(token) }

// SetDown has nothing be served or rented of what is shared, for a reason that renters are told; nil: it is.
func (s Slots) SetDown(why error) {
	s.p.leases.Services.SetDown(why)
}

// Refuse answers a request that got no slot. Beside what clients of ours read it says so where OpenAI's look for it.
func (s Slots) Refuse(w http.ResponseWriter, err error) {
	problem := frontDesk(s).Problem(err)
	s.p.metrics.Refused(problem)
	if problem.Status != http.StatusUnauthorized {
		w.Header().Set("Retry-After", "1")
	}
	serve.Hurry(w)
	problem.WriteWith(w, map[string]any{"message": cmp.Or(problem.Detail, problem.Title), "type": "gpupay", "code": problem.Status})
}
