package fleet

import (
	"context"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"testing"
	"time"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

// fleet is all gateways; renters go round.
type fleet struct {
	gateways []*Process
	turn     atomic.Uint64
}

func (f *fleet) next() string { return f.gateways[f.turn.Add(1)%uint64(len(f.gateways))].URL }

// payUntil pays a little more again and again.
func (r *Renter) payUntil(ctx context.Context, over <-chan struct{}) error {
	for {
		select {
		case <-over:
			return nil
		case <-time.After(time.Duration(100+rand.IntN(200)) * time.Millisecond):
		}
		if err := r.Pay(ctx, r.Amount+uint64(100+rand.IntN(500))); err != nil {
			return err
		}
	}
}
