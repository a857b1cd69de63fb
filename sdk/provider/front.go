package provider

import (
	"errors"
	"net/http"
	"net/url"
	"strings"

	"github.com/gpupay/gpupay/sdk/internal/scheme"
	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/limit"
	"github.com/gpupay/gpupay/sdk/wire"
)

func checkPublicURL(text string) error {
	if text == "" {
		return nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return errors.New("provider: HTTP.PublicURL must be a URL such as https://gpus.example.org, without a query or credentials")
	}
	return nil
}

// maxAddress bounds what of a request's address is repeated in an answer; bytes.
const maxAddress = 1 << 10

// frontDesk answers as every part of the provider does.
type frontDesk struct{ p *Server }

// AddressOf is the URL of what was asked for, as its client knows it.
func (d frontDesk) AddressOf(r *http.Request) string {
	uri := r.RequestURI
	if len(uri) > maxAddress || !strings.HasPrefix(uri, "/") {
		uri = "/"
	}
	if d.p.config.HTTP.PublicURL != "" {
		return strings.TrimRight(d.p.config.HTTP.PublicURL, "/") + uri
	}
	host := r.Host
	if len(host) > maxAddress {
		host = "localhost"
	}
	return d.p.proxies.Scheme(r) + "://" + host + uri
}

// Refuse answers with a problem and, where a payment can mend it, with a fresh
// challenge.
func (d frontDesk) Refuse(w http.ResponseWriter, r *http.Request, err error) {
	problem := d.Problem(err)
	if problem.Status == http.StatusPaymentRequired && !d.p.limiter.Challenge(r) {
		problem = wire.TooMany.With("too many requests without a payment from your address: wait a second")
	}
	d.p.metrics.Refused(problem)
	if problem.Status == http.StatusPaymentRequired {
		problem = d.offer(w, r, problem)
	}
	switch problem.Status {
	case http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "10")
	case http.StatusTooManyRequests:
		w.Header().Set("Retry-After", "2")
	}
	serve.Hurry(w)
	problem.Write(w)
}

// offer adds to a 402 what the schemes ask for. The problem is another one where the request does not say which of several classes of
// GPUs it is for, or names one that there is not.
func (d frontDesk) offer(w http.ResponseWriter, r *http.Request, problem *wire.Problem) *wire.Problem {
	err := d.p.schemes.Offer(w.Header(), r)
	var which *wire.Problem
	switch {
	case errors.As(err, &which):
		return which
	case err != nil:
		return wire.Internal.With("no challenge could be made")
	}
	class := scheme.ClassOf(r)
	if class == "" && len(d.p.config.Classes) == 1 {
		class = d.p.config.Classes[0].ID
	}
	if _, err := d.p.offers.Of(class); errors.As(err, &which) { // who pays for a lease of before has its challenge; there are no more
		problem.Classes = which.Classes
	}
	problem.FreeGPUs = d.p.free(class)
	return problem
}

// Problem is what a renter is told of an error.
func (d frontDesk) Problem(err error) *wire.Problem {
	problem := problemOf(err)
	if problem.Status == http.StatusInternalServerError { // nothing else may a stranger write into the log at will
		d.p.config.Log.Error("request failed", "error", err)
	} else {
		d.p.config.Log.Debug("request refused", "problem", problem.Type, "error", err)
	}
	return problem
}

// behind reads who stands in front of the provider. That it can be read was
// checked.
func (p *Server) behind() { p.proxies, _ = limit.ParseProxies(p.config.HTTP.TrustedProxies) }
