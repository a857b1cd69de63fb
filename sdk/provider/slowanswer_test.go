package provider

import (
	"context"
	"fmt"
	"math/big"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
)

// slowBackend keeps one answer of a contract to an HTTP request's question back: what the chain said when it was asked.
type slowBackend struct {
	chain.Backend
	countdown atomic.Int64  // at zero the answer is kept back
	held      chan struct{} // closed when one is
	release   chan struct{} // lets it go
}

func (b *slowBackend) CallContract(ctx context.Context, msg ethereum.CallMsg, block *big.Int) ([]byte, error) {
	out, err := b.Backend.CallContract(ctx, msg, block)
	if ctx.Value(http.ServerContextKey) != nil && b.countdown.Add(-1) == 0 {
		close(b.held)
		<-b.release
	}
	return out, err
}

// A stranger names the open of a channel as its top-up, which anybody can, and the endpoint is slow to answer. Meanwhile the
// payer closes the channel, or asks to: the old answer undoes neither, whichever of them is late.
func TestSlowAnswerReopensNothing(t *testing.T) {
	t.Parallel()
	for _, answer := range []int64{1, 2} {
		t.Run(fmt.Sprintf("close, answer %d", answer), func(t *testing.T) {
			testSlowAnswer(t, answer, channel.Finalized, func(lease *tab) { lease.close(0) })
		})
		t.Run(fmt.Sprintf("close request, answer %d", answer), func(t *testing.T) {
			testSlowAnswer(t, answer, channel.Closing, func(lease *tab) { requestClose(t, lease.rig, lease.chain.Keys[1], lease.terms) })
		})
	}
}

func testSlowAnswer(t *testing.T, answer int64, want channel.Status, end func(*tab)) {
	r := newRig(t, func(c *Config) { c.Terms.Credit = time.Minute })
	r.shut()
	slow := &slowBackend{Backend: r.chain.Backend, held: make(chan struct{}), release: make(chan struct{})}
	r.config.Chain.Backend = slow
	r.start()
	r.payer = channel.NewKey(r.chain.Keys[1])
	if err := r.chain.Fund(t.Context(), r.payer.Address(), new(big.Int), *uint256.NewInt(1_000_000)); err != nil {
		t.Fatal(err)
	}
	lease := r.open(1, 500_000, "")
	opened, err := r.provider.sender.Find(t.Context(), lease.terms.ID())
	if err != nil || len(opened) != 1 {
		t.Fatalf("the open is not in the outbox: %v %v", opened, err)
	}
	amount, salt, hash := wireAmount(1), lease.terms.Salt, opened[0].Hash
	stranger := &wire.Credential{Challenge: lease.challenge(), Payload: wire.Payload{Action: wire.ActionTopUp, Type: wire.TypeHash,
		ChannelID: lease.terms.ID(), AdditionalDeposit: &amount, Salt: &salt, Hash: &hash}}

	slow.countdown.Store(answer)
	var late sync.WaitGroup
	late.Go(func() { lease.do("POST", "", stranger) })
	<-slow.held
	late.Go(func() { end(lease) })
	time.AfterFunc(time.Second, func() { close(slow.release) })
	over := make(chan struct{})
	go func() { defer close(over); late.Wait() }()
	var last channel.Status
	for done, until := false, time.Now().Add(time.Minute); (!done || last != want) && time.Now().Before(until); time.Sleep(2 * time.Millisecond) {
		select {
		case <-over:
			done = true
		default:
		}
		s, err := r.provider.payee.State(t.Context(), lease.terms.ID())
		if err != nil || s.Status < last {
			t.Fatalf("it is %s after it was %s (%v)", s.Status, last, err)
		}
		last = s.Status
	}
	<-over
	if last != want {
		t.Errorf("it is %s, want %s", last, want)
	}
}
