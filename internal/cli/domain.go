package cli

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"

	"github.com/gpupay/gpupay/sdk/acme"
)

// Domain are the flags of a server that needs no proxy in front of it for TLS.
type Domain struct{ config acme.Config }

// Domain adds them, and --listen, whose default depends on them.
func (f *Flags) Domain(listen *string, otherwise string) *Domain {
	d := new(Domain)
	f.Text(listen, "listen", "", "`address` to serve renters on; "+otherwise+" if empty, for a proxy that does TLS, and :443 with --domain")
	f.Text(&d.config.Domain, "domain", "", "`NAME` of this server, whose port 443 leads here: it then gets its own certificate for https, and renews it")
	f.Text(&d.config.Email, "acme-email", "", "with --domain: whom the authority writes to of certificates that end")
	f.Path(&d.config.Dir, "acme-dir", "gpupay-certificates", "with --domain: `directory` of its certificates and their keys. Keep it between starts: authorities give only so many")
	f.Text(&d.config.Authority, "acme-url", "", "with --domain: `URL` of another authority's ACME directory than Let's Encrypt's. By using one you agree to its terms")
	return d
}

// Addresses fills in where a server listens and what clients call it, where that was not said.
func (d *Domain) Addresses(listen, public *string, otherwise string) {
	if d.config.Domain == "" {
		*listen = cmp.Or(*listen, otherwise)
		return
	}
	*listen = cmp.Or(*listen, ":443")
	*public = cmp.Or(*public, "https://"+d.config.Domain)
}

// URL is where a server is, of its listener's address.
func (d *Domain) URL(address net.Addr) string {
	if d.config.Domain == "" {
		return "http://" + address.String()
	}
	return "https://" + d.config.Domain
}

// TLS has the certificate: nil without --domain. done ends its renewal.
func (d *Domain) TLS(ctx context.Context, listener net.Listener, log *slog.Logger) (config *tls.Config, done func(), err error) {
	if d.config.Domain == "" {
		return nil, func() {}, nil
	}
	d.config.Log = log
	cert, err := acme.Obtain(ctx, listener, d.config)
	if err != nil {
		return nil, func() {}, fmt.Errorf("--domain: %w", err)
	}
	return cert.TLS(), cert.Close, nil
}
