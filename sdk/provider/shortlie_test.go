package provider

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/sdk/wire"
)

// The fields of a channel, counted from the end of an answer that is one channel.
const fieldDeposit, fieldSettled, fieldOpen, fieldFinalized = 6, 5, 2, 1

// falseChannel has an endpoint say something else in fields of a channel.
func falseChannel(words map[int]uint64) badrpc.Fault {
	return badrpc.About(hexutil.Encode(crypto.Keccak256([]byte("channels(bytes32[])"))[:4]), func(x *badrpc.Exchange) {
		var out hexutil.Bytes
		if json.Unmarshal(x.Result, &out) != nil {
			return
		}
		for n, value := range words {
			if at := len(out) - 32*n; at >= 0 {
				copy(out[at:], uint256.NewInt(value).PaddedBytes(32))
			}
		}
		badrpc.Says(out)(x)
	})
}

// TestWhatAnEndpointSaysForAMomentIsUndone: for two seconds the only endpoint says something false of a channel, then it is well.
// What was vouchered is settled, the payer is charged what it used, and the channel serves again; also after a restart.
func TestWhatAnEndpointSaysForAMomentIsUndone(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		words   map[int]uint64
		restart bool
	}{
		{"the channel is over", map[int]uint64{fieldOpen: 0, fieldFinalized: 1}, false},
		{"the channel is over, and a restart", map[int]uint64{fieldOpen: 0, fieldFinalized: 1}, true},
		{"no such channel", map[int]uint64{fieldDeposit: 0, fieldSettled: 0, fieldOpen: 0}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var bad *badrpc.Endpoint
			r := newRig(t, quiet, generousCredit, func(p *Config) {
				bad = badrpc.New(t, p.RPC)
				p.RPC, p.Chain.Finality = bad.URL, 25
			})
			lease := r.open(1, 500_000, "")
			lease.pay(5_000)
			lease.record()
			bad.On("eth_call", falseChannel(c.words))
			time.Sleep(2 * time.Second)
			bad.Heal()
			if c.restart {
				r.restart()
			}
			within := time.Now().Add(30 * time.Second)
			for r.balance(r.config.Key.Address()) < 5000 {
				if time.Now().After(within) {
					t.Fatalf("what was vouchered is lost: %+v", lease.state())
				}
				time.Sleep(200 * time.Millisecond)
				if err := r.provider.Settle(t.Context()); err != nil {
					t.Log(err)
				}
			}
			for { // its lease may be running, or another begins
				resp := lease.comeBack(6000)
				if resp.StatusCode == http.StatusOK {
					lease.attach(resp)
					break
				}
				if problem := wire.ParseProblem(resp); time.Now().After(within) {
					t.Fatalf("the channel is refused: %v", problem)
				}
				time.Sleep(200 * time.Millisecond)
			}
			if spent := lease.spent(); spent > 5000 {
				t.Errorf("%d is charged for what cost less than 5000", spent)
			}
		})
	}
}
