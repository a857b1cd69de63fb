package scheme

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/gpupay/gpupay/sdk/internal/lease"
)

// Set is the schemes by which a provider is paid, each asked alike. The first takes what no other does.
type Set []Scheme

// ServeHTTP hands a request for a paid resource to the scheme that it is paid by.
func (all Set) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for _, s := range slices.Backward(all) {
		if s.Pays(r) {
			s.ServePaid(w, r)
			return
		}
	}
}

// Offer adds to a 402 what every scheme asks for.
func (all Set) Offer(h http.Header, r *http.Request) error {
	for _, s := range all {
		if err := s.Offer(h, r); err != nil {
			return err
		}
	}
	return nil
}

// Take has a lease run as the scheme is paid that it is of. One of a scheme that is not mounted any more is over.
func (all Set) Take(l *lease.Lease) error {
	for _, s := range slices.Backward(all) {
		if taken, err := s.Takes(l); taken || err != nil {
			return err
		}
	}
	return lease.OverError(fmt.Sprintf("its channel is one of scheme %s, which this provider does not take any more", l.Terms.Scheme))
}

// Notice tells a lease that runs here what was paid for it at other gateways.
func (all Set) Notice(ctx context.Context, l *lease.Lease) (err error) {
	for _, s := range all {
		err = errors.Join(err, s.Notice(ctx, l))
	}
	return err
}

// Of is the scheme of a type, nil where it is not mounted.
func Of[S Scheme](all Set) (none S) {
	for _, s := range all {
		if of, ok := s.(S); ok {
			return of
		}
	}
	return none
}
