package provider

import (
	"context"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
)

// Export returns what this provider kept about a channel.
func (p *Server) Export(ctx context.Context, channelID common.Hash) (*audit.Bundle, error) {
	return leasestore.Export(ctx, p.db, p.sender.Store, channelID)
}
