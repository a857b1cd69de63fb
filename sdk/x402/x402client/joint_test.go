package x402client

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
)

// A waiting context tells of each wait for it.
type waiting struct {
	context.Context
	waits chan struct{}
}

func (w waiting) Done() <-chan struct{} {
	w.waits <- struct{}{}
	return w.Context.Done()
}

// TestX402LeavesAtOnce: who leaves a channel that is being left has what comes of that, unless that is cut off: then it goes on. Other
// channels are left beside it.
func TestX402LeavesAtOnce(t *testing.T) {
	var l leaves
	id, other := common.Hash{1}, common.Hash{2}
	want := Refund{Channel: id, Amount: channel.MaxAmount()}
	began, end := make(chan struct{}, 9), make(chan error)
	leave := func() (Refund, error) {
		began <- struct{}{}
		if err := <-end; err != nil {
			return Refund{}, err
		}
		return want, nil
	}
	var work sync.WaitGroup
	defer work.Wait()
	results := make(chan error, 3)
	ctx := waiting{t.Context(), make(chan struct{}, 9)}
	for range 3 {
		work.Go(func() {
			got, err := l.join(ctx, id, leave)
			if err == nil && got != want {
				err = errors.New("another refund")
			}
			results <- err
		})
	}
	<-began
	<-ctx.waits
	<-ctx.waits
	if _, err := l.join(t.Context(), other, func() (Refund, error) { return Refund{}, nil }); err != nil {
		t.Error(err)
	}
	hasty, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := l.join(hasty, id, leave); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("who does not wait hears %v", err)
	}
	if len(began) > 0 {
		t.Fatal("a second one began beside it")
	}
	cut := errors.New("cut off")
	end <- cut
	if err := <-results; !errors.Is(err, cut) {
		t.Errorf("who was cut off hears %v", err)
	}
	<-began // one of the others goes on
	<-ctx.waits
	end <- nil
	for range 2 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	if len(began) > 0 || len(l.all) > 0 {
		t.Errorf("%d more began, %d are not over", len(began), len(l.all))
	}
}
