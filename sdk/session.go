package sdk

import (
	"context"
	"net/http"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/keyed"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/wire"
)

// session is the provider's own scheme: a renter opens a channel, and its vouchers go through a lease's stream. It takes every
// request that no other scheme does, also those without a payment.
type session struct {
	schemeDeps
	escrow  *chain.Escrow
	payee   *channel.Payee
	gasless bool // we send renters' ERC-3009 deposits
	minter  *wire.Minter
	shownTo recordKeeper

	opens keyed.Mutex // one open at a time of a channel
}

// recordKeeper compares records that renters show, and those that were signed, with those that the database has.
type recordKeeper interface {
	remember(ctx context.Context, s channel.State) (channel.State, error)
	heedShown(r *request, s channel.State) (*lease.Lease, error)
}

func (d *session) Path() string { return "/lease" }

func (d *session) Pays(*http.Request) bool { return true }

// Offer adds a fresh challenge to a 402.
func (d *session) Offer(h http.Header, _ *http.Request) error {
	challenge, err := d.challenge()
	if err == nil {
		h.Set("WWW-Authenticate", challenge.Header())
	}
	return err
}
