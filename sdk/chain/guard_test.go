package chain_test

import (
	"context"
	"errors"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
)

// noMarks counts the nonces that were signed for.
type noMarks struct{ raised int }

func (m *noMarks) NextNonce(context.Context, common.Address, uint64) (uint64, error) { return 0, nil }

func (m *noMarks) RaiseNonce(context.Context, common.Address, uint64, uint64) error {
	m.raised++
	return nil
}

// TestGuardedCall: a call whose guard fails is neither signed for nor in the outbox, and one whose guard fails only where it is written
// is not in the outbox.
func TestGuardedCall(t *testing.T) {
	w := newWorld(t)
	s := w.sender(t, w.Keys[0])
	marks := &noMarks{}
	s.Marks = marks
	lost := errors.New("lost")
	terms := w.terms(1)
	opening := w.escrow.OpenAuthorizedCall(terms, w.authorize(t, 10, channel.OpenNonce(terms.Payer, terms)))
	for asked := range 3 {
		call, n := opening, 0
		call.Guard = func(*sqlx.Tx) error {
			if n++; n > asked {
				return lost
			}
			return nil
		}
		id, err := s.Submit(t.Context(), call)
		all, failed := s.Find(t.Context(), terms.ID())
		if failed != nil {
			t.Fatal(failed)
		}
		if sent := asked == 2; sent != (err == nil) || sent != (id != "") || !sent && !errors.Is(err, lost) || sent != (len(all) == 1) {
			t.Errorf("its guard held %d times: %q, %v, %d in the outbox", asked, id, err, len(all))
		}
		if marks.raised != asked {
			t.Errorf("its guard held %d times: %d nonces were signed for", asked, marks.raised)
		}
	}
}
