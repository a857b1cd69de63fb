package x402client

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
)

// Channel is a channel with an x402 server. Amounts are base units.
type Channel struct {
	ID      common.Hash
	URL     string // where it was paid first
	Terms   channel.Terms
	Status  channel.Status
	Deposit uint256.Int // in the channel, what was claimed included, as far as we know
	Charged uint256.Int // by the server, for answers
	Signed  uint256.Int // the most that the server could claim
	Dispute string      // what the server, or else one of its sites, was caught at
	Leaving bool
}

// violation is what a payee was caught at, or else its sites, one after the other.
func (s account) violation() string {
	if s.Dispute != "" {
		return s.Dispute
	}
	return strings.Join(slices.Sorted(maps.Values(s.Accused)), "; ")
}

// Channels lists the channels with x402 servers, as this database knows them.
func (x *Client) Channels(ctx context.Context) ([]Channel, error) {
	all, err := x.accounts().list(ctx)
	if err != nil {
		return nil, err
	}
	channels := make([]Channel, len(all))
	for i, t := range all {
		s, err := x.payer.State(ctx, t.ID)
		if err != nil {
			return nil, err
		}
		channels[i] = Channel{
			ID: t.ID, URL: t.URL, Terms: s.Terms, Status: s.Status, Deposit: s.Deposit, Charged: t.Charged, Signed: s.Cost(),
			Dispute: t.violation(), Leaving: t.Leaving,
		}
	}
	return channels, nil
}
