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

	"github.com/gpupay/gpupay/internal/redact"
)

// Explain adds to an error of an HTTP request, or of a dial, what to do about it. The URL, which may hold a secret, is left
// out; what the error wraps stays.
func Explain(err error) error {
	var outer *url.Error
	if errors.As(err, &outer) {
		err = outer.Err
	}
	hint := Hint(err)
	if hint == "" && err.Error() == Printable(err.Error(), maxError) {
		return err
	}
	return &explained{err, hint}
}

// maxError bounds an error's words, in characters: a line of an answer that is none, or a certificate's names, can be megabytes.
const maxError = 1000

type explained struct {
	error
	hint string
}

func (e *explained) Error() string {
	words := Printable(e.error.Error(), maxError)
	if e.hint == "" {
		return words
	}
	return words + ": " + e.hint
}
func (e *explained) Unwrap() error { return e.error }

// Printable leaves of a stranger's words what cannot steer a terminal or forge a line of a log, and no more than most characters.
func Printable(s string, most int) string {
	s = redact.Text(s)
	if runes := []rune(s); len(runes) > most {
		s = string(runes[:most])
	}
	return s
}

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
