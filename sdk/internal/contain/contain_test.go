package contain

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/gpu"
)

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
		_, err := Allocator{hanging{}, slog.New(slog.DiscardHandler)}.Allocate(ctx, gpu.Request{GPUs: 1})
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
