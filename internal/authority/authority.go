// Package authority runs a public authority for certificates, the one by which ACME clients are tested, and a name server that leads it
// wherever a test wants: a module of its own, since nothing of it is of the product.
package authority

import (
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"
)

// Blocked is a domain that the authority gives no certificate for.
const Blocked = "blocked.example.org"

// Authority gives certificates for the domains that lead to a port of this host.
type Authority struct {
	URL    string         // of its directory
	Roots  *x509.CertPool // who vouches for its own server
	Issuer *x509.CertPool // who vouches for what it gives
	Orders atomic.Int64   // how many certificates were asked for
	server *httptest.Server
}

// Start runs one whose certificates are valid for some seconds, and that finds every domain but nowhere.example.org at a port of this host.
// before may change its answers.
func Start(t *testing.T, port int, seconds uint64, before func(http.ResponseWriter)) *Authority {
	t.Helper()
	t.Setenv("PEBBLE_VA_NOSLEEP", "1")
	t.Setenv("PEBBLE_WFE_NONCEREJECT", "0")
	logger, memory := log.New(io.Discard, "", 0), db.NewMemoryStore()
	if err := memory.AddBlockedDomain(Blocked); err != nil {
		t.Fatal(err)
	}
	issuer := ca.New(logger, memory, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {ValidityPeriod: seconds}})
	front := wfe.New(logger, memory, va.New(logger, 1, port, false, names(t), memory), issuer, []string{"authority.example"}, false, false, 0, 0)
	a, handler := &Authority{Issuer: x509.NewCertPool()}, front.Handler()
	a.server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if before != nil {
			before(w)
		}
		if r.URL.Path == "/order-plz" {
			a.Orders.Add(1)
		}
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(a.Stop)
	a.URL, a.Roots = a.server.URL+wfe.DirectoryPath, x509.NewCertPool()
	a.Roots.AddCert(a.server.Certificate())
	a.Issuer.AppendCertsFromPEM(issuer.GetRootCert(0).PEM())
	return a
}

// Stop has it answer nobody any more.
func (a *Authority) Stop() {
	a.server.CloseClientConnections()
	a.server.Close()
}

// names leads every name but one to this host.
func names(t *testing.T) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{Listener: listener, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg).SetReply(r)
		if q := r.Question[0]; q.Name == "nowhere.example.org." {
			m.Rcode = dns.RcodeNameError
		} else if q.Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(127, 0, 0, 1)}}
		}
		_ = w.WriteMsg(m) // who asked has gone
	})}
	go server.ActivateAndServe()
	t.Cleanup(func() { server.Shutdown() })
	return listener.Addr().String()
}
