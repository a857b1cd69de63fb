// Package acme has a server prove to a public authority that a domain is its own, and serves under the certificate that it gets for that:
// renters then reach it by https, without a proxy in front of it. It needs no port but the server's own.
package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
)

// Config says for which domain there is to be a certificate, and from whom.
type Config struct {
	Domain string // by which renters reach the server, such as gpu.example.org: its port 443 must lead to the listener
	Dir    string // where the account, the keys and the certificates are kept, readable by their owner alone; several servers may share it

	Email     string         // whom the authority writes to; may be empty
	Authority string         // URL of the authority's ACME directory; Let's Encrypt's if empty. By using it you agree to its terms
	Roots     *x509.CertPool // who vouches for the authority's own server; the system's if nil

	Log *slog.Logger // what fails is said here, a line each time; slog.Default() if nil

	Every time.Duration // between looks at whether it is time to renew; ten minutes if 0
}

// Certificate is of one domain. It is renewed in its last third, until Close.
type Certificate struct {
	domain string
	magic  *certmagic.Config
	cache  *certmagic.Cache
	stop   func()
}

// attempt is the key of what ends an attempt to obtain a certificate, in its context.
type attempt struct{}

// Obtain returns the domain's certificate: the one that is kept, or a new one, for which the authority connects to the listener by the
// domain's name. It takes what comes to the listener until it returns, and serves nobody. Its error is one line that says what to do. One
// that is kept and still valid is served at once, and renewed beside.
func Obtain(ctx context.Context, listener net.Listener, c Config) (*Certificate, error) {
	cert, err := open(c, listener.Addr())
	if err != nil {
		return nil, err
	}
	// The challenge is answered by who listens already: the library opens a listener of its own only where nobody does.
	stop, err := answer(listener, cert.TLS())
	if err == nil {
		err = errors.Join(cert.obtain(ctx, c), stop())
	}
	if err != nil {
		cert.Close()
		return nil, err
	}
	return cert, nil
}

// open makes what keeps the certificate, and has it be renewed.
func open(c Config, address net.Addr) (*Certificate, error) {
	domain := strings.ToLower(strings.TrimSuffix(c.Domain, "."))
	if !certmagic.SubjectQualifiesForCert(domain) || strings.ContainsAny(domain, "*:/") || !strings.Contains(domain, ".") || net.ParseIP(domain) != nil {
		return nil, fmt.Errorf("%q is no domain that a certificate can be got for: give a name such as gpu.example.org", c.Domain)
	}
	tcp, ok := address.(*net.TCPAddr)
	if !ok || c.Dir == "" {
		return nil, errors.New("a certificate needs a TCP listener, and a folder to be kept in")
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	cert := &Certificate{domain: domain}
	cert.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert:   func(certmagic.Certificate) (*certmagic.Config, error) { return cert.magic, nil },
		RenewCheckInterval: c.Every,
		Logger:             zap.NewNop(), // what matters of it is an event
	})
	cert.stop = sync.OnceFunc(cert.cache.Stop)
	cert.magic = certmagic.New(cert.cache, certmagic.Config{
		Storage: &certmagic.FileStorage{Path: c.Dir},
		OnEvent: func(ctx context.Context, event string, about map[string]any) error {
			cert.tell(ctx, c.Log, event, about)
			return nil
		},
		Logger: zap.NewNop(),
	})
	cert.magic.Issuers = []certmagic.Issuer{certmagic.NewACMEIssuer(cert.magic, certmagic.ACMEIssuer{
		CA: authority(c), Email: c.Email, Agreed: true, TrustedRoots: c.Roots, CertObtainTimeout: time.Minute,
		DisableHTTPChallenge: true, AltTLSALPNPort: tcp.Port, ListenHost: host(tcp), Logger: zap.NewNop(),
	})}
	return cert, nil
}

func authority(c Config) string {
	if c.Authority != "" {
		return c.Authority
	}
	return certmagic.LetsEncryptProductionCA
}

// host is the one that a listener is bound to; empty: all.
func host(a *net.TCPAddr) string {
	if a.IP.IsUnspecified() {
		return ""
	}
	return a.IP.String()
}

func (c *Certificate) obtain(ctx context.Context, config Config) error {
	if kept, err := c.magic.CacheManagedCertificate(ctx, c.domain); err == nil && !kept.Expired() {
		return nil
	}
	c.cache.RemoveManaged([]certmagic.SubjectIssuer{{Subject: c.domain}})
	if err := checkClock(ctx, config); err != nil {
		return err
	}
	// The library's other way would ask a question at a terminal. This one tries again for weeks, for which nobody waits here.
	once, end := context.WithCancelCause(ctx)
	defer end(nil)
	err := c.magic.RenewCertAsync(context.WithValue(once, attempt{}, end), c.domain, false)
	if err == nil {
		_, err = c.magic.CacheManagedCertificate(ctx, c.domain)
	} else if cause := context.Cause(once); cause != nil {
		err = cause
	}
	if err != nil {
		return fmt.Errorf("no certificate for %s: %w", c.domain, why(err))
	}
	return nil
}

// tell says what became of a renewal: the library tries again by itself, more and more seldom.
func (c *Certificate) tell(ctx context.Context, log *slog.Logger, event string, about map[string]any) {
	err, _ := about["error"].(error)
	end, waits := ctx.Value(attempt{}).(context.CancelCauseFunc)
	switch {
	case event == "cert_obtained":
		log.Info("a certificate was obtained", "domain", c.domain)
	case event == "cert_failed" && waits:
		end(err)
	case event == "cert_failed":
		left, _ := about["remaining"].(time.Duration)
		log.Error("the certificate could not be renewed, which is tried again: until it ends renters notice nothing, and then none gets through",
			"domain", c.domain, "left", left.Round(time.Second), "error", why(err))
	}
}

// TLS serves with the certificate as it is then, and answers the authority.
func (c *Certificate) TLS() *tls.Config {
	config := c.magic.TLSConfig()
	config.MinVersion = tls.VersionTLS12
	return config
}

// Expires is when the certificate that is served ends.
func (c *Certificate) Expires() time.Time {
	for _, cert := range c.cache.AllMatchingCertificates(c.domain) {
		return cert.Leaf.NotAfter
	}
	return time.Time{}
}

// Close has the certificate not be renewed any more.
func (c *Certificate) Close() { c.stop() }

// answer does the handshakes of who comes to a listener until stop, after which the listener is as it was.
func answer(listener net.Listener, config *tls.Config) (stop func() error, err error) {
	l, ok := listener.(interface {
		net.Listener
		SetDeadline(time.Time) error
	})
	if !ok {
		return nil, fmt.Errorf("a certificate cannot be got on a %T, which cannot be interrupted", listener)
	}
	var wait sync.WaitGroup
	wait.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // it was stopped, or serving on it fails as well
			}
			wait.Go(func() {
				defer conn.Close()
				if conn.SetDeadline(time.Now().Add(10*time.Second)) == nil {
					_ = tls.Server(conn, config).Handshake() // the authority says what it thinks of it
				}
			})
		}
	})
	return func() error {
		err := l.SetDeadline(time.Unix(1, 0))
		wait.Wait()
		return errors.Join(err, l.SetDeadline(time.Time{}))
	}, nil
}
