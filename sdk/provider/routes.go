package provider

import (
	"errors"
	"net/http"
	"strconv"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/internal/admit"
	"github.com/gpupay/gpupay/sdk/internal/cors"
	"github.com/gpupay/gpupay/sdk/internal/scheme"
	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/wire"
)

// routes are the provider's resources. The lease is the paid one; vouchers go
// to the same URI as what they pay for.
func (p *Server) routes() {
	p.behind()
	p.mux = http.NewServeMux()
	p.mux.HandleFunc("GET /offer", p.serveOffer)
	p.mux.HandleFunc("GET /offer/{hash}", p.serveOffer)
	for _, s := range p.schemes {
		p.mux.Handle(s.Path(), p.schemes)
	}
}

// ServeHTTP serves offers and leases.
func (p *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if cors.Origins(p.config.HTTP.AllowedOrigins).Answer(w, r) {
		return
	}
	if err := admit.DrainBody(w, r); err != nil {
		frontDesk{p}.Refuse(w, r, err)
		return
	}
	p.mux.ServeHTTP(w, r)
}

func (p *Server) serveOffer(w http.ResponseWriter, r *http.Request) {
	var offer wire.SignedOffer
	var err error
	if text := r.PathValue("hash"); text != "" {
		offer, err = p.offers.Find(r.Context(), common.HexToHash(text), func() bool { return p.limiter.Challenge(r) })
	} else {
		offer, err = p.offers.Of(scheme.ClassOf(r))
	}
	var problem *wire.Problem
	switch {
	case errors.As(err, &problem):
		frontDesk{p}.Refuse(w, r, err)
		return
	case err != nil:
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("ETag", strconv.Quote(offer.Hash.Hex()))
	serve.Hurry(w)
	_, _ = w.Write(offer.Document)
}
