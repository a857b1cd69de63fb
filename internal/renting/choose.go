package renting

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk/renter"
)

// unfinished are the rentals that something is left to do for, those on one channel alone where it is named.
func unfinished(all []renter.State, channel common.Hash) []renter.State {
	return slices.DeleteFunc(slices.Clone(all), func(s renter.State) bool {
		return s.Phase == renter.PhaseClosed || channel != (common.Hash{}) && s.Channel != channel
	})
}

// promised reports whether a rental has no more than a deposit that was signed, and that may never be sent.
func promised(s renter.State) bool { return s.Phase == renter.PhaseOpening && !s.Until.IsZero() }

// choose is the rental that --resume goes on with: the only one, or the only one that holds a deposit. Of several none is taken
// without a word: the others' deposits would lie where nobody looks.
func choose(open []renter.State, database string) (renter.State, error) {
	holding := slices.DeleteFunc(slices.Clone(open), promised)
	switch {
	case len(open) == 0:
		return renter.State{}, fmt.Errorf("no unfinished rental in %s", redact.Database(database))
	case len(open) == 1:
		return open[0], nil
	case len(holding) == 1:
		return holding[0], nil
	}
	var channels strings.Builder
	for _, s := range open {
		fmt.Fprintf(&channels, "\n  %s  %s  %s", s.Channel, s.Phase, s.URL)
	}
	return renter.State{}, fmt.Errorf("%d unfinished rentals in %s: say with --channel which one to go on with, or give --leave:%s", len(open), redact.Database(database), &channels)
}

// noteOthers says what else is unfinished, beside the rental that is gone on with.
func noteOthers(open []renter.State, chosen common.Hash) {
	for _, s := range open {
		switch {
		case s.Channel == chosen:
		case promised(s):
			fmt.Printf("note: the deposit that was signed for channel %s may be sent until %s; --leave watches it and gets it back\n",
				s.Channel, s.Until.Format(time.TimeOnly))
		default:
			fmt.Printf("note: the rental on channel %s is unfinished too\n", s.Channel)
		}
	}
}
