package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/gpupay/gpupay/sdk/budget"
	"github.com/gpupay/gpupay/sdk/pool"
	"github.com/gpupay/gpupay/sdk/route"
)

// ErrBudget is what a Pool's error is when a budget does not hold a reservation.
var ErrBudget = errors.New("the budget does not hold it")

// Pool pays providers out of one budget a day; see FromPool. It is safe for concurrent use.
type Pool interface {
	// Endpoints are those that may be asked now, at the prices that they have signed.
	Endpoints() []route.Endpoint
	// Left is what may still be reserved today for a local key; empty: for all together.
	Left(key string) (route.Nano, error)
	// Room is what one request may cost at an endpoint where so much is left: the first one there may have more be set aside.
	Room(key, endpoint string, left route.Nano) route.Nano
	// Reserve takes what a request can cost at the most out of what is left, on disk before it returns. Its error is ErrBudget where that
	// is more than is left; any other is the endpoint's, which may cost more now than it did at, and leaves nothing reserved.
	Reserve(ctx context.Context, key string, at route.Endpoint, most route.Nano) (Hold, error)
	// Missing says of each provider of some models that is not among Endpoints why, and has it be tried again soon.
	Missing(ctx context.Context, models []string) []pool.Missing
	// Money says where the money is, as the chain has it.
	Money(ctx context.Context) (pool.Money, error)
}

// Hold is a reservation for one request.
type Hold interface {
	// RoundTrip sends the request, whose URL has a path alone, to the endpoint.
	RoundTrip(*http.Request) (*http.Response, error)
	// Done corrects the reservation to what the request cost. It is called once, or Fail is.
	Done(ctx context.Context, cost route.Nano) error
	// Fail says that the request was answered with a failure: it costs nothing, and a provider that bills it is not paid for it.
	Fail(ctx context.Context) error
}

// FromPool is a Pool of rentals at providers.
func FromPool(p *pool.Pool) Pool { return pooled{p} }

type pooled struct{ *pool.Pool }

// Reserve tells a budget that is used from a provider that cannot be paid.
func (p pooled) Reserve(ctx context.Context, key string, at route.Endpoint, most route.Nano) (Hold, error) {
	hold, err := p.Pool.Reserve(ctx, key, at, most)
	var over *budget.ExceededError
	switch {
	case errors.As(err, &over):
		return nil, fmt.Errorf("%w: %w", ErrBudget, err)
	case err != nil:
		return nil, err
	}
	return hold, nil
}
