// Package scheme is what a provider and the ways in which it is paid know of each other: a scheme reaches nothing else of the
// provider that it is mounted on.
package scheme

import (
	"context"
	"fmt"
	"net/http"
	"strconv"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/reserve"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Scheme is one way to be paid for leases.
type Scheme interface {
	Path() string              // of the resource that it adds; every scheme serves those of all
	Pays(r *http.Request) bool // whether a request brings a payment of this scheme
	ServePaid(w http.ResponseWriter, r *http.Request)
	Offer(h http.Header, r *http.Request) error // adds to a 402 what this scheme asks for

	// Takes has a lease that begins, is restored or is shown run as this scheme is paid. It is false for one of another scheme.
	Takes(l *lease.Lease) (bool, error)
	// Notice tells a lease that runs here what requests at other gateways paid for it, if it is one of this scheme.
	Notice(ctx context.Context, l *lease.Lease) error
}

// Leases begins, finds and ends leases, wherever they run.
type Leases interface {
	Of(class string) (wire.SignedOffer, error)                              // the offer under which new ones begin: an empty class is the only one that there is
	Challenged(ctx context.Context, class string) (wire.SignedOffer, error) // the one that a challenge is for, also where none begins any more
	TakesLeases() error
	BeginLease(ctx context.Context, row leasestore.Row, s channel.State, offer wire.SignedOffer, c *leasestore.Lock) (*lease.Lease, error) // c: under which
	Running(channelID common.Hash) *lease.Lease                                                                                            // nil: none here
	Serving(ctx context.Context, s channel.State) (*lease.Lease, error)                                                                    // also elsewhere; the caller owes a Detach
	Detach(l *lease.Lease)
	Begun(ctx context.Context, channelID common.Hash) bool // whether one runs, here or elsewhere
	NextStream(ctx context.Context, l *lease.Lease) (number uint64, err error)
	Paid(s channel.State) // tells the channel's lease, or what is known of its payer
	EndLease(ctx context.Context, channelID common.Hash, row *leasestore.Row, reason string) error
	CheckFree(ctx context.Context, devices []string, route inventory.Route) error // refuses devices that are in a lease which is not the route's, or cannot be metered

	Begin() bool // registers work that the provider's Close waits for until it is Done
	Done()
	Lifetime() context.Context // ends with the provider
}

// GPUs keeps GPUs for leases whose deposits are on their way.
type GPUs interface {
	Room(ctx context.Context, class string, channelID common.Hash, gpus, back int) error
	Reserve(ctx context.Context, class string, channelID common.Hash, gpus, back int) (*reserve.Reservation, error)
	Seated(ctx context.Context, s *reserve.Reservation, class string, channelID common.Hash, gpus int) (*reserve.Reservation, error)
}

// Debts says what a payer owes on a contract's channels.
type Debts interface {
	OwingAt(ctx context.Context, contract chain.Contract, payers ...common.Address) ([]channel.State, error)
	LeastRow(contract chain.Contract) uint256.Int
	Debtors(owing []channel.State, row uint256.Int) string
	Lapse(ctx context.Context, owing []channel.State) ([]channel.State, error)
	Lapses(owing []channel.State) string
	Creditworthy(ctx context.Context, s channel.State, offer wire.SignedOffer, gpus int) error
}

// Outbox sends deposits, each once.
type Outbox interface {
	SubmitOnce(ctx context.Context, terms channel.Terms, call chain.Call, reserve func() error) (chain.TxID, error)
	IsWhole(ctx context.Context) error
	Claim(ctx context.Context, name string) (*leasestore.Lock, error) // makes this gateway the only one to do it
}

// Front answers as every part of the provider does.
type Front interface {
	Refuse(w http.ResponseWriter, r *http.Request, err error)
	Problem(err error) *wire.Problem
	AddressOf(r *http.Request) string
}

// Metrics counts what schemes take and refuse.
type Metrics interface {
	Voucher(o channel.Outcome)
	Refused(p *wire.Problem)
}

// ClassOf is the class of GPUs that a request is for; empty where it does not say.
func ClassOf(r *http.Request) string { return r.URL.Query().Get("class") }

// GPUsOf is how many GPUs a request is for; one where it does not say.
func GPUsOf(r *http.Request) (int, error) {
	text := r.URL.Query().Get("gpus")
	if text == "" {
		return 1, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > wire.MaxGPUs {
		return 0, fmt.Errorf("%w: gpus=%.20q is not a number from 1 to %d", wire.ErrMalformed, text, wire.MaxGPUs)
	}
	return n, nil
}
