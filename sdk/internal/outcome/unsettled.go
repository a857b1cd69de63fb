package outcome

import (
	"errors"
	"fmt"
	"slices"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/chain"
)

// Unsettled is the error of one channel that something kept from being settled. What settles many joins those of each.
type Unsettled struct {
	Channel common.Hash
	Err     error
}

func (e *Unsettled) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("channel %s is not settled", e.Channel)
	}
	return fmt.Sprintf("channel %s is not settled: %v", e.Channel, e.Err)
}

func (e *Unsettled) Unwrap() error { return e.Err }

// Refused reports whether an error says that the contract refuses to settle this channel. What it refuses of others, settled or paid
// out beside it, is in a joined error, too, and says nothing of this one; nor does a transaction that was given up, or reverted
// for a reason that is not known any more: the next try says more.
func Refused(err error, id common.Hash) bool {
	var own *Unsettled
	var revert *chain.Revert
	return errors.As(About(err, id), &own) && errors.As(own, &revert)
}

// About is what an error says of a channel or of none: without what it says of others. nil: nothing.
func About(err error, id common.Hash) error {
	var inner []error
	switch e := err.(type) {
	case nil:
		return nil
	case *Unsettled:
		if e.Channel != id {
			return nil
		}
		if ofOthers(e.Err, id) {
			return &Unsettled{id, About(e.Err, id)}
		}
		return err
	case interface{ Unwrap() []error }:
		inner = e.Unwrap()
	case interface{ Unwrap() error }:
		inner = []error{e.Unwrap()}
	}
	if !ofOthers(err, id) {
		return err
	}
	var kept error
	for _, part := range inner {
		kept = errors.Join(kept, About(part, id))
	}
	return kept
}

// ofOthers reports whether an error says something of another channel.
func ofOthers(err error, id common.Hash) bool {
	switch e := err.(type) {
	case *Unsettled:
		return e.Channel != id || ofOthers(e.Err, id)
	case interface{ Unwrap() []error }:
		return slices.ContainsFunc(e.Unwrap(), func(part error) bool { return ofOthers(part, id) })
	case interface{ Unwrap() error }:
		return ofOthers(e.Unwrap(), id)
	}
	return false
}
