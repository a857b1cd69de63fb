package chain

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/fault"
)

// What a Sender does where its fields are zero.
const (
	defaultPoll     = 2 * time.Second
	defaultStuck    = time.Minute      // a few blocks anywhere; the money at stake is a fee bump
	defaultResend   = 20 * time.Second // nodes drop transactions without a word
	defaultFinality = 32               // blocks: an epoch of Ethereum
	nonceTries      = 100              // each lost to another process that used the nonce
	defaultTimeout  = time.Minute      // an endpoint that takes longer is as good as down
)

// A Sender puts the transactions of one key onto the chain and keeps them there. Every transaction is on disk before it
// is broadcast; it is broadcast again when a node dropped it, replaced at a higher fee when it is stuck, sent anew when a
// re-org undid it, and resumed after a restart. Fields are set before first use. One key belongs to one Sender, or to
// several over one database of which one runs and the others follow.
type Sender struct {
	Backend Backend
	Key     channel.Signer
	Store   *Store

	Poll     time.Duration // how often to look; 0: 2 s
	Stuck    time.Duration // how long a version may wait before its fee is raised; 0: 1 min
	Resend   time.Duration // how often an unmined transaction is broadcast again; 0: 20 s
	Timeout  time.Duration // of one look at the chain, or one Submit; 0: 1 min
	Unseen   time.Duration // how far apart looks are for what a transaction did whose receipt does not come; 0: 15 s
	Finality uint64        // blocks after which a mined transaction is left alone; 0: 32
	// MaxFee is the most that any version offers for a unit of gas, in wei; nil: the chain's of DefaultMaxFee. Of it a tenth
	// at most, or 50 gwei where that is more, goes to the block's builder, whatever an endpoint suggests.
	MaxFee *big.Int
	// Follow leaves the outbox to another process on the same database that has a
	// Sender of the same key and runs it: this one submits and waits.
	Follow bool
	Marks  Marks // of the nonces that were signed for; nil: the database alone remembers them
	Log    *slog.Logger
	Now    func() time.Time

	once  sync.Once
	built *parts
	mu    sync.Mutex         // guards early
	early map[TxID]time.Time // whose stamp is ahead of the clock, and when that was seen
}

// outgoing is what it takes to send a version of a transaction.
type outgoing struct {
	*account
	prices  *pricing
	waits   *waits
	signing *signing
}

// The parts of a Sender. Each calls only those above it, and all of them read the account.
type parts struct {
	outgoing
	sequence  *sequence
	strangers *strangers
	steps     *steps
}

// parts puts the parts together, once, by the fields as they are at first use.
func (s *Sender) parts() *parts {
	s.once.Do(func() {
		a := &account{backend: s.Backend, key: s.Key, store: s.Store, marks: s.Marks, log: s.Log, now: s.Now,
			poll: cmp.Or(s.Poll, defaultPoll), patience: cmp.Or(s.Stuck, defaultStuck), finality: cmp.Or(s.Finality, uint64(defaultFinality))}
		if a.log == nil {
			a.log = slog.New(slog.DiscardHandler)
		}
		if a.now == nil {
			a.now = time.Now
		}
		o := outgoing{account: a, prices: &pricing{account: a, limit: s.MaxFee}, waits: &waits{account: a}}
		o.signing = &signing{account: a, waits: o.waits}
		sequence, strangers := &sequence{account: a, signing: o.signing}, &strangers{outgoing: o}
		s.built = &parts{o, sequence, strangers, &steps{outgoing: o, strangers: strangers, replacing: &replacing{o},
			losses: &losses{outgoing: o, sequence: sequence}, follow: s.Follow,
			resend: cmp.Or(s.Resend, defaultResend), timeout: cmp.Or(s.Timeout, defaultTimeout)}}
	})
	return s.built
}

// A Result is a transaction that was mined and did what it was sent for.
type Result struct {
	ID      TxID
	Hash    common.Hash
	Receipt *types.Receipt
	Cost    *big.Int // wei, gas and a rollup's charge for data
}

// Reverted is a transaction that did nothing: it was mined and only cost gas, or another one took its nonce and the contract
// refuses it since. That is final, not pending.
type Reverted struct {
	Call   Call
	Hash   common.Hash // zero: it was never mined
	Reason error       // as far as it can be found out afterwards
}

func (r *Reverted) Error() string {
	if r.Hash == (common.Hash{}) {
		return fmt.Sprintf("chain: %s was not mined and is given up: %v", r.Call, r.Reason)
	}
	return fmt.Sprintf("chain: %s was mined in %s and reverted: %v", r.Call, r.Hash, r.Reason)
}

func (r *Reverted) Unwrap() error { return r.Reason }

// Address is who pays the gas.
func (s *Sender) Address() common.Address { return s.Key.Address() }

// Submit runs the call without sending it, then writes it to the outbox and broadcasts it. An error means that nothing
// was written and nothing will be sent: a *Revert if the contract refuses the call now, ErrFunds if the gas cannot be
// paid, a *TooDear if it takes more than the call allows, ErrTooLarge if it is more than one transaction may have. With an id, the transaction will be sent, now or, if the endpoint fails at this moment, later: do not submit the
// call again.
func (s *Sender) Submit(ctx context.Context, call Call) (TxID, error) {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(s.Timeout, defaultTimeout))
	defer cancel()
	p := s.parts()
	chain, err := p.chainID(ctx)
	if err != nil {
		return "", err
	}
	gas, fees, err := p.prices.terms(ctx, call)
	if err != nil {
		return "", err
	}
	tx, err := p.sequence.enqueue(ctx, chain, call, gas, fees)
	if err != nil {
		return "", err
	}
	fault.Sent(string(call.Kind), fault.TxStored)
	if err := p.signing.broadcast(ctx, tx.Attempts[0]); err != nil {
		p.log.Warn("transaction is on disk and will be broadcast later", "tx", tx.ID, "call", call.String(), "err", err)
	}
	fault.Sent(string(call.Kind), fault.TxBroadcast)
	return tx.ID, nil
}

// lag bounds how long a node may be behind another one of the same endpoint.
const lag = 15 * time.Second

// SubmitAfter is Submit for a call that needs what this sender's last transaction did, such as an approval: nodes behind one
// endpoint are some blocks apart, so that a refusal, and a node that does not know the block, are asked again for a while.
func (s *Sender) SubmitAfter(ctx context.Context, call Call) (TxID, error) {
	p := s.parts()
	limit := p.now().Add(max(lag, 3*p.poll))
	pace := Backoff{Least: min(p.poll, time.Second), Most: 3 * time.Second}
	for {
		id, err := s.Submit(ctx, call)
		var refused *Revert
		if err == nil || !errors.As(err, &refused) && !isBehind(err) || p.now().After(limit) {
			return id, err
		}
		if Pause(ctx, pace.Next()) != nil {
			return "", err
		}
	}
}

// Wait returns when the transaction has the given number of confirmations (1: it is in the newest block). A transaction
// that reverted is a *Reverted error. Failures of the endpoint are waited out until the context ends.
func (s *Sender) Wait(ctx context.Context, id TxID, confirmations uint64) (*Result, error) {
	p, pace := s.parts(), Backoff{}
	for {
		wait := p.poll
		failed := p.steps.step(ctx)
		result, err := s.result(ctx, id, max(confirmations, 1))
		var reverted *Reverted
		switch {
		case err == nil && result != nil:
			return result, nil
		case errors.As(err, &reverted) || errors.Is(err, errNoTx):
			return nil, err
		}
		if failed = errors.Join(failed, err); failed != nil {
			wait = max(wait, pace.Next())
			p.log.Warn("waiting for a transaction", "tx", id, "err", failed, "retry", wait)
		} else {
			pace.Reset()
		}
		if err := Pause(ctx, wait); err != nil {
			return nil, fmt.Errorf("chain: waiting for transaction %s: %w", id, err)
		}
	}
}

// result is nil while the transaction has not the confirmations.
func (s *Sender) result(ctx context.Context, id TxID, confirmations uint64) (*Result, error) {
	tx, err := s.Store.Get(ctx, id)
	if err != nil || tx.State == Pending {
		return nil, err
	}
	if tx.Hash == (common.Hash{}) {
		return nil, &Reverted{Call: tx.Call, Reason: errLost}
	}
	said, err := two(ctx, s.Backend, func(ctx context.Context, b Backend) (uint64, error) { return b.BlockNumber(ctx) })
	if err != nil {
		return nil, err
	}
	_, head := bounds(said, cmp.Compare[uint64]) // of the one that is further: the other may stand still
	if head+1 < tx.Block+confirmations {
		return nil, nil
	}
	receipt, err := Receipt(ctx, s.Backend, tx.Hash)
	if errors.Is(err, ethereum.NotFound) {
		return nil, nil // undone meanwhile: the next step sends it again
	}
	if err != nil {
		return nil, err
	}
	if receipt.BlockNumber.Uint64()+confirmations > head+1 {
		return nil, nil
	}
	if tx.wasFilled() {
		return nil, &Reverted{Call: tx.Call, Reason: tx.whyFilled()}
	}
	if receipt.Status != types.ReceiptStatusSuccessful {
		return nil, &Reverted{Call: tx.Call, Hash: tx.Hash, Reason: s.reason(ctx, tx, receipt)}
	}
	return &Result{ID: id, Hash: tx.Hash, Receipt: receipt, Cost: tx.Cost}, nil
}

// Stands reports whether a mined transaction is in the chain now: a re-org may have undone it, of which the outbox hears with its
// next step.
func (s *Sender) Stands(ctx context.Context, tx Tx) (bool, error) {
	if tx.State != Mined {
		return tx.State == Final, nil
	}
	_, err := Receipt(ctx, s.Backend, tx.Hash)
	if errors.Is(err, ethereum.NotFound) {
		return false, nil
	}
	return err == nil, err
}

// reason runs a reverted call again on the state it was mined onto. That state may have been another at its place in the
// block, so the answer is a help and no proof.
func (s *Sender) reason(ctx context.Context, tx Tx, receipt *types.Receipt) error {
	if receipt.GasUsed >= tx.Gas {
		return errors.New("out of gas")
	}
	msg := ethereum.CallMsg{From: s.Address(), To: &tx.Call.To, Data: tx.Call.Data, Gas: tx.Gas}
	if _, err := s.Backend.CallContract(ctx, msg, receipt.BlockNumber); err != nil {
		return decode(err)
	}
	return errors.New("the reason is gone: the same call succeeds now")
}

// Find lists the transactions about a channel, oldest first: those of some kinds, or all if none is named. After a restart
// it tells what was already sent.
func (s *Sender) Find(ctx context.Context, channel common.Hash, kinds ...Kind) ([]Tx, error) {
	return s.Store.about(ctx, channel, kinds)
}

// InForce reports whether a transaction did what it is for, or is about to: one that another key has in flight has nobody
// who sends it again.
func (s *Sender) InForce(tx Tx) bool {
	return tx.Succeeded || tx.State == Pending && tx.Sender == s.Address()
}

// Sent finds the oldest transaction in force of a kind about a channel: one is enough, whatever became of who asked for it,
// and a second would only cost gas. With data, it is one of that calldata. "" if there is none.
func (s *Sender) Sent(ctx context.Context, channel common.Hash, kind Kind, data []byte) (TxID, error) {
	all, err := s.Find(ctx, channel, kind)
	for _, tx := range all {
		if s.InForce(tx) && (data == nil || bytes.Equal(tx.Call.Data, data)) {
			return tx.ID, nil
		}
	}
	return "", err
}

// InFlight lists the transactions that are on disk and not mined, lowest nonce first.
func (s *Sender) InFlight(ctx context.Context) ([]Tx, error) {
	chain, err := s.parts().chainID(ctx)
	if err != nil {
		return nil, err
	}
	open, err := s.Store.open(ctx, chain, s.Address())
	if err != nil {
		return nil, err
	}
	var flying []Tx
	for _, tx := range open {
		if tx.State == Pending {
			flying = append(flying, tx)
		}
	}
	return flying, nil
}

// GasSpent is what all transactions of this key cost so far, in wei.
func (s *Sender) GasSpent(ctx context.Context) (*big.Int, error) {
	chain, err := s.parts().chainID(ctx)
	if err != nil {
		return nil, err
	}
	return s.Store.gas(ctx, chain, s.Address())
}

// Run works the outbox until the context ends: it is what makes a submitted transaction certain. Failures of the
// endpoint are logged and retried with growing, jittered pauses; Run returns only the context's error.
func (s *Sender) Run(ctx context.Context) error {
	p, pace := s.parts(), Backoff{}
	for {
		wait := p.poll
		if err := p.steps.step(ctx); err != nil {
			wait = max(wait, pace.Next())
			p.log.Warn("outbox", "sender", s.Address(), "err", err, "retry", wait)
		} else {
			pace.Reset()
		}
		if err := Pause(ctx, wait); err != nil {
			return err
		}
	}
}

// Sync looks now at everything that is not final, so that what the outbox says is what the chain says: after a re-org, a
// transaction that was mined is in flight again.
func (s *Sender) Sync(ctx context.Context) error { return s.parts().steps.sync(ctx) }
