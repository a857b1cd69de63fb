package chain

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// TestBehindIsAskedAgain: nodes behind one endpoint are some blocks apart. An answer from before one that was read is no
// answer; it is asked for three times more before that is said, and not after somebody interrupts.
func TestBehindIsAskedAgain(t *testing.T) {
	for behind, taken := range map[int]bool{0: true, 1: true, 3: true, 4: false, 9: false} {
		synctest.Test(t, func(t *testing.T) {
			var r recorder
			if err := r.reached(100); err != nil {
				t.Fatal(err)
			}
			asked := 0
			read := func() ([]Confirmed, uint64, error) {
				asked++
				if asked <= behind {
					return nil, 99, nil
				}
				return []Confirmed{{}}, 100, nil
			}
			views, head, err := r.fresh(t.Context(), read)
			switch {
			case taken && (err != nil || head != 100 || len(views) != 1 || asked != behind+1):
				t.Errorf("%d answers from before: block %d, %d views, %v, asked %d times", behind, head, len(views), err, asked)
			case !taken && (!errors.Is(err, ErrBehind) || views != nil || asked != 4):
				t.Errorf("%d answers from before: %d views, %v, asked %d times", behind, len(views), err, asked)
			}
			asked = 0
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if _, _, err := r.fresh(ctx, read); behind > 0 && (!errors.Is(err, ErrBehind) || asked != 1) {
				t.Errorf("interrupted: %v, asked %d times", err, asked)
			}
		})
	}
}
