package provider

import (
	"testing"

	"github.com/ethereum/go-ethereum/common/hexutil"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/badrpc"
)

// One of two endpoints is late with the block of a close: it is waited for, and the channel is not taken for one that goes on.
func TestCloseWaitsForTheLateEndpoint(t *testing.T) {
	var late *badrpc.Endpoint
	r := newAnvilRig(t, func(c *Config) {
		late = badrpc.New(t, c.RPC)
		c.RPC += "," + late.URL
	})
	lease := r.open(1, 100_000, "")
	final := lease.release()
	late.On("eth_blockNumber", badrpc.Times(12, badrpc.Says(hexutil.Uint64(r.anvil.Head(t)))))
	lease.close(final.Owed.Uint64())
	s, err := r.provider.payee.State(t.Context(), lease.terms.ID())
	if err != nil || s.Status != channel.Finalized {
		t.Errorf("after its close the channel is %s, %v", s.Status, err)
	}
}
