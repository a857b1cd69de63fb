package sdk

import (
	"context"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestAllocationThatHangs: an allocation that hangs, and whose release does, is answered when the times of both are up, and it is on
// disk that its lease never began.
func TestAllocationThatHangs(t *testing.T) {
	host := hostGPUs(t, 2)
	command, _ := script(t, "exec sleep 300")
	host.AllocateCommand, host.ReleaseCommand = append(command, "allocate"), append(command[:1:1], "release")
	r := newRig(t, func(c *ProviderConfig) {
		c.Allocator, c.CallTimeout, c.Log = host, time.Second, slog.New(slog.DiscardHandler)
	})
	began := time.Now()
	if resp := r.do("GET", "", r.openCredential(r.payer, r.terms(r.payer.Address(), 1), 300_000, 0)); resp.StatusCode != http.StatusInternalServerError || time.Since(began) > time.Minute {
		t.Errorf("answered with %s after %s", resp.Status, time.Since(began))
	}
	var states []string
	if err := r.provider.db.View().Select(&states, `SELECT state FROM leases`); err != nil || len(states) != 1 || states[0] != wire.StateEnded {
		t.Errorf("its lease is %s, %v", states, err)
	}
}

// hanging is an allocator that panics when it allocates, and whose release takes as long as it may.
type hanging struct{ gpu.Allocator }

func (hanging) Allocate(context.Context, gpu.Request) (gpu.Allocation, error) { panic("on purpose") }
func (hanging) Release(ctx context.Context, _ gpu.Allocation) error {
	<-ctx.Done()
	return ctx.Err()
}

// TestUndoingAPanicEnds: what a panic left half allocated is taken back in as much time as its allocation had.
func TestUndoingAPanicEnds(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := tameAllocator{hanging{}, slog.New(slog.DiscardHandler)}.Allocate(ctx, gpu.Request{GPUs: 1})
		done <- err
	}()
	select {
	case err := <-done:
		if err == nil {
			t.Error("a panic is no error")
		}
	case <-time.After(20 * time.Second):
		t.Error("it is still taken back")
	}
}
