package channel

import (
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/u256"
)

// Errors a caller can branch on. Each comes wrapped with the channel and the
// figures.
var (
	ErrUnknown        = errors.New("unknown channel")
	ErrFinalized      = errors.New("channel is finalized")
	ErrClosing        = errors.New("channel is closing")
	ErrExceedsDeposit = errors.New("amount exceeds the deposit")
	ErrDelta          = errors.New("amount grows by less than the minimum")
	ErrLower          = errors.New("amount is lower than before")
)

// Status is how far a channel's life has come.
type Status uint8

const (
	// Pending: the payer is about to fund it; the chain has not been seen to hold it.
	Pending Status = iota + 1
	// Open: vouchers count.
	Open
	// Closing: a close was requested; no voucher is made or taken any more, but
	// what was accepted can still be settled.
	Closing
	// Finalized: closed or withdrawn, for ever unless a re-org undoes it.
	Finalized
)

var statusNames = [...]string{"unknown", "pending", "open", "closing", "finalized"}

// String returns the status in one word.
func (s Status) String() string {
	if int(s) >= len(statusNames) {
		return statusNames[0]
	}
	return statusNames[s]
}

// ChainView is a channel as it was read from the chain: absolute figures, never
// differences, so that seeing one twice, or an older one after a re-org, is
// harmless.
type ChainView struct {
	Deposit, Settled uint256.Int // base units
	CloseRequestedAt uint64      // unix seconds; zero: no close is pending
	Finalized        bool
}

func (v ChainView) status() Status {
	switch {
	case v.Finalized:
		return Finalized
	case v.CloseRequestedAt != 0:
		return Closing
	}
	return Open
}

func (v ChainView) validate(id common.Hash) error {
	for _, a := range []uint256.Int{v.Deposit, v.Settled} {
		if err := checkAmount(a); err != nil {
			return fmt.Errorf("channel %s: read from the chain: %w", id, err)
		}
	}
	if v.Settled.Gt(&v.Deposit) {
		return fmt.Errorf("channel %s: read from the chain: %w: settled %s is over the deposit %s",
			id, ErrAmount, v.Settled.Dec(), v.Deposit.Dec())
	}
	return nil
}

// State is a payee's channel. Amounts are cumulative and in base units.
type State struct {
	ID       common.Hash
	Terms    Terms
	Deposit  uint256.Int // confirmed on the chain
	Settled  uint256.Int // paid out by the chain
	Accepted uint256.Int // the newest voucher
	Spent    uint256.Int // charged for service
	// Signature settles Accepted; empty while that is zero.
	Signature        []byte
	Status           Status
	CloseRequestedAt uint64 // unix seconds; zero: no close is pending
	UpdatedAt        time.Time
}

// Payable returns how much of the newest voucher is the payee's, settled or not:
// all of it in Session, where what was paid in advance is paid, and what was
// charged under it in BatchSettlement.
func (s State) Payable() uint256.Int { return s.Terms.Scheme.rules().payable(s) }

// Unsettled returns what the chain would still pay for the newest voucher.
func (s State) Unsettled() uint256.Int { return u256.SaturatingSub(s.Payable(), s.Settled) }

// Available returns what was vouchered and not yet charged: paid in advance.
func (s State) Available() uint256.Int { return u256.SaturatingSub(s.Accepted, s.Spent) }

// Owed returns what was charged and not yet vouchered, nor paid by the chain: the
// credit given. No voucher counts for a channel that is finalized: no block pays it.
func (s State) Owed() uint256.Int {
	owed, unpaid := u256.SaturatingSub(s.Spent, s.Accepted), u256.SaturatingSub(s.Spent, s.Settled)
	if s.Status == Finalized || unpaid.Lt(&owed) {
		return unpaid // of what was charged, or paid by a voucher that these books do not have
	}
	return owed
}

// Behind reports books that a settlement is ahead of: the chain has paid out more
// than any voucher or charge here says. They were restored from before it, or
// somebody settled a voucher that was never shown here. See Payee.CatchUp.
func (s State) Behind() bool { return s.Settled.Gt(&s.Accepted) && s.Settled.Gt(&s.Spent) }

// catchUp charges what the chain has paid out where the books are behind it: a
// voucher for it is public, and was served for once.
func (s *State) catchUp(settled uint256.Int) {
	if settled.Gt(&s.Accepted) && settled.Gt(&s.Spent) {
		s.Spent = settled
	}
}

// Voucher returns the newest voucher, which settles Accepted.
func (s State) Voucher() Voucher {
	return Voucher{ChannelID: s.ID, Cumulative: s.Accepted, Signature: s.Signature}
}

// observe takes the chain's word, whichever way it goes: a re-org may lower the
// deposit and the settled amount and re-open a channel. What was accepted and
// charged is ours and stays.
func (s *State) observe(v ChainView) {
	leaving := s.Status == Closing && !s.CloseRequested()
	s.Deposit, s.Settled = v.Deposit, v.Settled
	s.Status, s.CloseRequestedAt = v.status(), v.CloseRequestedAt
	if leaving && s.Status == Open {
		s.Status = Closing // the chain does not have our close yet
	}
}

// CloseRequested reports whether the payer has asked the chain to close. A channel
// can be Closing without: then the payee's own close is on its way.
func (s State) CloseRequested() bool { return s.CloseRequestedAt != 0 }

// live reports a channel on which no new voucher counts.
func live(id common.Hash, t Terms, s Status) error {
	switch s {
	case Finalized:
		return fmt.Errorf("channel %s: %w: open another", id, ErrFinalized)
	case Closing:
		return fmt.Errorf("channel %s: %w: open another, or %s", id, ErrClosing, t.Scheme.rules().reopen)
	}
	return nil
}
