package chain

import (
	"context"
	"time"

	"github.com/gpupay/gpupay/sdk/internal/pace"
)

// A Backoff paces retries: each pause is twice the one before, up to Most, and a random part of it is left out, so that
// many programs that lost one endpoint do not come back to it at one moment. The zero value begins at 1 s and ends at 30 s.
type Backoff = pace.Backoff

// Pause waits for d or until the context ends, and returns the context's error then.
func Pause(ctx context.Context, d time.Duration) error { return pace.Pause(ctx, d) }
