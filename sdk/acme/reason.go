package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/mholt/acmez/v3/acme"
)

// clockTolerance is how far a clock may be off before a certificate is asked for: what is issued now is valid from now.
const clockTolerance = 5 * time.Minute

// checkClock holds this host's clock to the authority's: where it is wrong, everything after fails, and each time for another reason.
func checkClock(ctx context.Context, c Config) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, authority(c), nil)
	if err != nil {
		return fmt.Errorf("the authority's address: %w", err)
	}
	client := &http.Client{Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{RootCAs: c.Roots, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true,
	}}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("no certificate for %s: the authority: %w", c.Domain, why(err))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("no certificate for %s: the authority at %s answers %s: try again later, or give another one", c.Domain, authority(c), resp.Status)
	}
	theirs, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return nil // it does not say
	}
	if off := time.Since(theirs); off.Abs() > clockTolerance {
		return fmt.Errorf("no certificate for %s: this host's clock says %s and the authority's %s: set it", c.Domain, time.Now().UTC().Format(time.DateTime), theirs.UTC().Format(time.DateTime))
	}
	return nil
}

const unreached = "the authority does not find this server behind the domain's name: open port 443 to the world, and have it lead here and to nothing else that does TLS"

// reasons are what the authority's problems come from, and what to do about them.
var reasons = map[string]string{
	acme.ProblemTypeConnection:         unreached,
	acme.ProblemTypeTLS:                unreached,
	acme.ProblemTypeUnauthorized:       unreached,
	acme.ProblemTypeDNS:                "the domain's name leads nowhere: add an A or AAAA record with this server's public address",
	acme.ProblemTypeCAA:                "the domain's CAA record names another authority: add this one",
	acme.ProblemTypeRateLimited:        "the authority was asked too often: wait as long as it says, and keep the folder of certificates between starts",
	acme.ProblemTypeRejectedIdentifier: "the authority gives no certificate for this name",
	acme.ProblemTypeServerInternal:     "the authority has trouble of its own: try again later",
}

// why is an error of the library with what it comes from and what to do.
func why(err error) error {
	var problem acme.Problem
	if errors.As(err, &problem) {
		if len(problem.Subproblems) > 0 {
			problem = problem.Subproblems[0].Problem
		}
		if reason, known := reasons[problem.Type]; known {
			return fmt.Errorf("%s (%s)", reason, problem.Detail)
		}
		return fmt.Errorf("the authority refuses: %s (%s)", problem.Detail, problem.Type)
	}
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return fmt.Errorf("this host's clock says %s, at which the authority's own certificate, valid from %s to %s, is not: set it", time.Now().UTC().Format(time.DateTime),
			invalid.Cert.NotBefore.UTC().Format(time.DateTime), invalid.Cert.NotAfter.UTC().Format(time.DateTime))
	}
	return err
}
