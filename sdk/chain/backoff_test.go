package chain_test

import (
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/chain"
)

func TestBackoffGrowsIsBoundedAndJitters(t *testing.T) {
	b := chain.Backoff{Least: 100 * time.Millisecond, Most: time.Second}
	seen := make(map[time.Duration]bool)
	for i := range 200 {
		step := min(100*time.Millisecond<<min(i, 10), time.Second)
		d := b.Next()
		if d < step/2 || d > step {
			t.Fatalf("pause %d is %s, want %s to %s", i, d, step/2, step)
		}
		seen[d] = true
	}
	if len(seen) < 100 {
		t.Errorf("only %d different pauses of 200", len(seen))
	}
	b.Reset()
	if d := b.Next(); d > 100*time.Millisecond {
		t.Errorf("after a success: %s", d)
	}
	var zero chain.Backoff
	if d := zero.Next(); d < 500*time.Millisecond || d > time.Second {
		t.Errorf("zero value: %s", d)
	}
}
