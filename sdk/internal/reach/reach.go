// Package reach says why a server was not reached, and what to do about it.
package reach

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/url"
	"strings"
	"syscall"
)

// Explain adds to an error of an HTTP request, or of a dial, what to do about it. The URL, which may hold a secret, is left
// out; what the error wraps stays.
func Explain(err error) error {
	var outer *url.Error
	if errors.As(err, &outer) {
		err = outer.Err
	}
	if hint := Hint(err); hint != "" {
		return &explained{err, hint}
	}
	return err
}

type explained struct {
	error
	hint string
}

func (e *explained) Error() string { return e.error.Error() + ": " + e.hint }
func (e *explained) Unwrap() error { return e.error }

// Hint is what to do about an error of a dial, or nothing where the error says enough.
func Hint(err error) string {
	var (
		name *net.DNSError
		tag  tls.RecordHeaderError
		cert *tls.CertificateVerificationError
		old  x509.UnknownAuthorityError
	)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens there; check host and port, and that it runs"
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"), errors.As(err, &tag): // net/http has no error value for it
		return "it speaks no TLS there; give its URL with http://, or the port at which its proxy has TLS"
	case errors.As(err, &name) && name.IsNotFound:
		return "check the host's name"
	case errors.As(err, &cert), errors.As(err, &old):
		return "its certificate is not trusted here; check the host's name, and who signed it"
	}
	return ""
}
