package provider

import (
	"net/http"
	"strconv"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/internal/admit"
	"github.com/gpupay/gpupay/sdk/internal/cors"
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
	offer := p.Offer()
	if text := r.PathValue("hash"); text != "" && common.HexToHash(text) != offer.Hash {
		if !p.limiter.Challenge(r) {
			frontDesk{p}.Refuse(w, r, wire.TooMany.With("too many requests from your address"))
			return
		}
		past, err := p.store.Offers.Get(r.Context(), common.HexToHash(text))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		offer = past
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("ETag", strconv.Quote(offer.Hash.Hex()))
	serve.Hurry(w)
	_, _ = w.Write(offer.Document)
}
