package proxy

import (
	"cmp"
	"net/http"
	"slices"

	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/route"
)

// model is a model as OpenAI's API lists it, and beside that who serves it for how much.
type model struct {
	ID      string  `json:"id"`
	Object  string  `json:"object"`
	Created int64   `json:"created"`
	OwnedBy string  `json:"owned_by"`
	Gpupay  []offer `json:"gpupay"`
}

// offer is a provider of a model. Prices are dollars.
type offer struct {
	Provider      string  `json:"provider"`
	PerSlotHour   float64 `json:"price_per_slot_hour,omitempty"`
	PerMillionIn  float64 `json:"price_per_million_input_tokens,omitempty"`
	PerMillionOut float64 `json:"price_per_million_output_tokens,omitempty"`
	Measured      float64 `json:"measured_per_million_tokens,omitempty"` // what a million tokens of answers have cost here
	Region        string  `json:"region,omitempty"`
	Quantization  string  `json:"quantization,omitempty"`
	Revision      string  `json:"revision,omitempty"`
	Prefill       bool    `json:"prefill,omitempty"` // whether it goes on with an answer that another one began
}

// listed is the union of what providers serve, by model.
func (s *Server) listed(key Key) []model {
	byID := make(map[string]*model)
	for _, e := range s.refresh(nil) {
		if len(key.Models) > 0 && !slices.Contains(key.Models, e.Model) {
			continue
		}
		m := byID[e.Model]
		if m == nil {
			m = &model{ID: e.Model, Object: "model", OwnedBy: "gpupay"}
			byID[e.Model] = m
		}
		m.Gpupay = append(m.Gpupay, s.offer(e))
	}
	all := make([]model, 0, len(byID))
	for _, m := range byID {
		all = append(all, *m)
	}
	slices.SortFunc(all, func(a, b model) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

func (s *Server) offer(e route.Endpoint) offer {
	return offer{
		Provider: redact.URL(e.ID), Region: e.Region, Quantization: e.Quantization, Revision: e.Revision, Prefill: e.Prefill,
		PerSlotHour: s.stats.dollars(e.Price.PerSlotSecond) * 3600, PerMillionIn: s.stats.dollars(e.Price.PerInputToken) * 1e6,
		PerMillionOut: s.stats.dollars(e.Price.PerOutputToken) * 1e6, Measured: s.stats.perMillion(e),
	}
}

func (s *Server) models(w http.ResponseWriter, r *http.Request) {
	key, failed := s.caller(r)
	if failed != nil {
		failed.write(w)
		return
	}
	serve.JSON(w, http.StatusOK, struct {
		Object string  `json:"object"`
		Data   []model `json:"data"`
	}{"list", s.listed(key)})
}

func (s *Server) model(w http.ResponseWriter, r *http.Request) {
	key, failed := s.caller(r)
	if failed != nil {
		failed.write(w)
		return
	}
	for _, m := range s.listed(key) {
		if m.ID == r.PathValue("model") {
			serve.JSON(w, http.StatusOK, m)
			return
		}
	}
	notFound("model_not_found", "No provider serves the model %q now. GET /v1/models lists those that are served.", redact.Line(r.PathValue("model"))).write(w)
}
