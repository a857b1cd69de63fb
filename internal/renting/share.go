package renting

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"strings"
	"time"

	"github.com/gpupay/gpupay/sdk/renter"
)

// local is where clients on this machine send requests of a rental that shares GPUs. It asks for no key, since many of them can give
// none: whoever may connect to the loopback spends the rental's budget. Pages in a browser may not.
type local struct {
	rental *renter.Rental
	send   http.RoundTripper
}

// listen opens the address, which is this machine's own.
func listen(address string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil || !loopback(host) {
		return nil, fmt.Errorf("--share-listen %q is no address of the loopback such as 127.0.0.1:8420: whoever reaches it spends your budget", address)
	}
	at, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--share-listen: %w", err)
	}
	return at, nil
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// Forward has what comes to a listener of this machine be sent on a rental that shares GPUs, whose Run must run, until close is called. That
// ends the requests that run: they are paid until then.
func Forward(at net.Listener, rental *renter.Rental) (close func()) {
	base := http.DefaultTransport.(*http.Transport).Clone()
	base.DisableCompression = true // the client says what it reads
	base.MaxIdleConnsPerHost = 64
	l := &local{rental: rental, send: rental.Transport(base)}
	server := &http.Server{Handler: l, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	go func() { _ = server.Serve(at) }()
	return func() { _ = server.Close(); base.CloseIdleConnections() }
}

// sayWhere prints where requests are taken as soon as they can be sent.
func sayWhere(ctx context.Context, at net.Listener, rental *renter.Rental) {
	for ctx.Err() == nil {
		if _, err := rental.Endpoint(); err == nil {
			fmt.Printf("ready: OPENAI_BASE_URL=http://%s/v1 (any OPENAI_API_KEY will do; whoever may connect to this machine's loopback spends this budget)\n", at.Addr())
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(look):
		}
	}
}

// ServeHTTP passes on what comes from this machine, for the routes of the two APIs.
func (l *local) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	switch {
	case !loopback(host) || r.Header.Get("Origin") != "": // a name that leads here may be a stranger's, and so is a page
		fail(w, http.StatusForbidden, "no page of a browser and no name but localhost is answered here")
	case !strings.HasPrefix(r.URL.Path, "/v1/") && !strings.HasPrefix(r.URL.Path, "/api/"):
		fail(w, http.StatusNotFound, "no such route is served")
	default:
		l.pass(w, r)
	}
}

func (l *local) pass(w http.ResponseWriter, r *http.Request) {
	to, err := l.rental.Endpoint()
	if err != nil {
		fail(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	proxy := httputil.ReverseProxy{
		Transport: l.send, FlushInterval: -1, ErrorLog: log.New(io.Discard, "", 0), // errors of connections quote what came over them
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(to)
			p.Out.Header.Del("Authorization")
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			status := http.StatusBadGateway
			if errors.Is(err, renter.ErrShare) {
				status = http.StatusServiceUnavailable
			}
			fail(w, status, err.Error())
		},
	}
	proxy.ServeHTTP(w, r)
}

// fail answers in the provider's place, as clients of either API read it.
func fail(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"message": text, "type": "gpupay", "code": status}}) // its client is gone if this fails
}
