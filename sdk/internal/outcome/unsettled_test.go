package outcome_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/outcome"
)

func unsettled(id common.Hash, err error) error { return &outcome.Unsettled{Channel: id, Err: err} }

// TestRefusedIsOfOneChannel shows that what the contract refuses of another channel, or what a transaction was given up for, is no
// refusal of this one, however the errors are joined.
func TestRefusedIsOfOneChannel(t *testing.T) {
	mine, others := common.Hash{1}, common.Hash{2}
	refusal := error(new(chain.Revert))
	lost := &chain.Reverted{Reason: errors.New("another transaction took its nonce")}
	busy := errors.New("another settlement of it ended meanwhile")
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"nothing":            {nil, false},
		"its own":            {unsettled(mine, refusal), true},
		"its own, mined":     {unsettled(mine, &chain.Reverted{Reason: refusal}), true},
		"its own, beside":    {errors.Join(unsettled(others, busy), fmt.Errorf("settling: %w", unsettled(mine, refusal))), true},
		"given up":           {unsettled(mine, lost), false},
		"another's":          {unsettled(others, refusal), false},
		"another's, beside":  {errors.Join(unsettled(mine, busy), unsettled(others, refusal)), false},
		"another's, as why":  {unsettled(mine, fmt.Errorf("%w: %w", busy, errors.Join(unsettled(others, refusal)))), false},
		"a payout's":         {errors.Join(fmt.Errorf("what was settled is not paid out yet: %w", refusal)), false},
		"a payout's, beside": {errors.Join(unsettled(mine, busy), fmt.Errorf("what was settled is not paid out yet: %w", refusal)), false},
	} {
		if got := outcome.Refused(c.err, mine); got != c.want {
			t.Errorf("%s: refused %t, want %t: %v", name, got, c.want, c.err)
		}
	}
}
