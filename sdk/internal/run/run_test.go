package run

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
)

// All parts end with the first that does, its error is the one that counts, and nobody goes on before all have ended.
func TestTogether(t *testing.T) {
	failed := errors.New("failed")
	var running atomic.Int64
	part := func(ctx context.Context) error {
		running.Add(1)
		defer running.Add(-1)
		<-ctx.Done()
		return ctx.Err()
	}
	if err := Together(t.Context(), part, func(context.Context) error { return failed }, part); !errors.Is(err, failed) {
		t.Errorf("%v, want what the first to end ended with", err)
	}
	if n := running.Load(); n != 0 {
		t.Errorf("%d parts still run", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Together(ctx, part, part); !errors.Is(err, context.Canceled) || Ended(fmt.Errorf("a part: %w", err)) != nil {
		t.Errorf("told to end: %v", err)
	}
	if Ended(failed) != failed {
		t.Error("a failure counts for nothing")
	}
}
