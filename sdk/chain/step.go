package chain

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/gpupay/gpupay/internal/fault"
)

// maxFill bounds how many nonces one step fills.
const maxFill = 16

// Run works the outbox until the context ends: it is what makes a submitted transaction certain. Failures of the
// endpoint are logged and retried with growing, jittered pauses; Run returns only the context's error.
func (s *Sender) Run(ctx context.Context) error {
	var pace Backoff
	for {
		wait := s.poll()
		if err := s.step(ctx); err != nil {
			wait = max(wait, pace.Next())
			s.log().Warn("outbox", "sender", s.Address(), "err", err, "retry", wait)
		} else {
			pace.Reset()
		}
		if err := Pause(ctx, wait); err != nil {
			return err
		}
	}
}

// A glance is what one step reads of the chain before it looks at single transactions.
type glance struct {
	head  *types.Header
	moved bool   // the head is another one than at the last step
	mined uint64 // nonces below this one are used up, as of the head
	deep  uint64 // the same, as of Finality blocks ago
}

// step is Sync, but callers of Wait and Run share one per poll.
func (s *Sender) step(ctx context.Context) error {
	if s.Follow {
		return nil
	}
	s.stepping.Lock()
	defer s.stepping.Unlock()
	if since := s.now().Sub(s.stepped); since >= 0 && since < s.poll()/2 {
		return nil
	}
	return s.sync(ctx)
}

// Sync looks now at everything that is not final, so that what the outbox says is what the chain says: after a re-org, a
// transaction that was mined is in flight again.
func (s *Sender) Sync(ctx context.Context) error {
	s.stepping.Lock()
	defer s.stepping.Unlock()
	return s.sync(ctx)
}

// sync is Sync for who holds stepping.
func (s *Sender) sync(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, either(s.Timeout, defaultTimeout))
	defer cancel()
	chain, err := s.chainID(ctx)
	if err != nil {
		return err
	}
	open, err := s.Store.open(ctx, chain, s.Address())
	if err != nil || len(open) == 0 {
		return err
	}
	g, err := s.look(ctx)
	if err != nil {
		return err
	}
	if err := s.fill(ctx, chain, open, g); err != nil {
		return err
	}
	var failed error
	for _, tx := range open {
		if err := s.advance(ctx, tx, g); err != nil {
			failed = errors.Join(failed, fmt.Errorf("chain: %s: %w", tx.Call, err))
		}
		if failed != nil && isTransport(failed) {
			return failed // the others would fail likewise
		}
	}
	if failed == nil {
		s.head, s.stepped = g.head.Hash(), s.now()
	}
	return failed
}

func (s *Sender) look(ctx context.Context) (glance, error) {
	head, err := s.Backend.HeaderByNumber(ctx, nil)
	if err != nil {
		return glance{}, fmt.Errorf("%w: reading the newest block: %w", ErrUnreachable, err)
	}
	g := glance{head: head, moved: head.Hash() != s.head}
	if g.mined, err = s.Backend.NonceAt(ctx, s.Address(), head.Number); err != nil {
		return glance{}, fmt.Errorf("chain: reading the nonce of %s: %w", s.Address(), err)
	}
	back := new(big.Int).SetUint64(min(s.finality(), head.Number.Uint64()))
	if g.deep, err = s.Backend.NonceAt(ctx, s.Address(), back.Sub(head.Number, back)); err != nil {
		return glance{}, fmt.Errorf("chain: reading the nonce of %s: %w", s.Address(), err)
	}
	return g, nil
}

// advance brings one transaction further: it is mined, final, undone, displaced, stuck, or dropped.
func (s *Sender) advance(ctx context.Context, tx Tx, g glance) error {
	if g.moved || tx.State == Pending {
		receipt, err := s.receipt(ctx, tx)
		if err != nil {
			return err
		}
		if receipt != nil {
			return s.mined(ctx, tx, receipt, g)
		}
		if tx.State == Mined {
			return s.undone(ctx, tx)
		}
	}
	switch {
	case tx.State != Pending:
		return nil
	case tx.Nonce < g.deep:
		return s.displaced(ctx, tx)
	case tx.Nonce < g.mined:
		return nil // somebody's transaction has this nonce, perhaps ours on a node that lags: the next steps tell
	}
	return s.push(ctx, tx, g)
}

// receipt finds which version was mined, if any was.
func (s *Sender) receipt(ctx context.Context, tx Tx) (*types.Receipt, error) {
	for i := len(tx.Attempts) - 1; i >= 0; i-- {
		receipt, err := Receipt(ctx, s.Backend, tx.Attempts[i].Signed.Hash())
		if err == nil {
			return receipt, nil
		}
		if !errors.Is(err, ethereum.NotFound) {
			return nil, fmt.Errorf("reading the receipt of %s: %w", tx.Attempts[i].Signed.Hash(), err)
		}
	}
	return nil, nil
}

func (s *Sender) mined(ctx context.Context, tx Tx, receipt *types.Receipt, g glance) error {
	block := receipt.BlockNumber.Uint64()
	final := block+s.finality() <= g.head.Number.Uint64()
	if tx.State == Mined && tx.BlockHash == receipt.BlockHash && !final {
		return nil
	}
	if tx.BlockHash != receipt.BlockHash {
		s.log().Info("transaction mined", "tx", tx.ID, "call", tx.Call.String(), "hash", receipt.TxHash, "block", block, "status", receipt.Status)
	}
	tx.State = Mined
	if final {
		tx.State = Final
	}
	tx.Hash, tx.Block, tx.BlockHash = receipt.TxHash, block, receipt.BlockHash
	tx.Succeeded = receipt.Status == types.ReceiptStatusSuccessful
	tx.Cost = new(big.Int).SetUint64(receipt.GasUsed)
	if receipt.EffectiveGasPrice != nil {
		tx.Cost.Mul(tx.Cost, receipt.EffectiveGasPrice)
	}
	err := s.Store.record(ctx, tx)
	fault.Sent(string(tx.Call.Kind), fault.TxMined)
	return err
}

// undone: a re-org took a mined transaction out. The very same one is sent again, so it can never count twice.
func (s *Sender) undone(ctx context.Context, tx Tx) error {
	s.log().Warn("a re-org undid a transaction; sending it again", "tx", tx.ID, "call", tx.Call.String(), "hash", tx.Hash, "block", tx.Block)
	tx.State, tx.Cost, tx.Succeeded = Pending, new(big.Int), false
	if err := s.Store.record(ctx, tx); err != nil {
		return err
	}
	return s.broadcast(ctx, tx.Attempts[len(tx.Attempts)-1])
}

// displaced: another transaction of this key, not sent from here, used up the nonce, deep enough that this will stay.
func (s *Sender) displaced(ctx context.Context, tx Tx) error {
	f, err := s.fees(ctx)
	if err != nil {
		return err
	}
	s.submitting.Lock()
	defer s.submitting.Unlock()
	old := tx.Nonce
	if tx.Nonce, err = s.nonce(ctx, tx.Chain); err != nil {
		return err
	}
	signed, err := s.sign(ctx, tx, f)
	if err != nil {
		return err
	}
	s.log().Warn("another program uses this key: its transaction took a nonce of ours", "tx", tx.ID, "call", tx.Call.String(), "nonce", old, "new", tx.Nonce)
	attempt := Attempt{Signed: signed, CreatedAt: s.now()}
	if err := s.Store.renumber(ctx, tx, tx.Nonce, attempt); err != nil {
		return err
	}
	return s.broadcast(ctx, attempt)
}

// push broadcasts a transaction that is not mined: for the first time, again, or at a higher fee.
func (s *Sender) push(ctx context.Context, tx Tx, g glance) error {
	newest := tx.Attempts[len(tx.Attempts)-1]
	if newest.SentAt.IsZero() {
		return s.broadcast(ctx, newest)
	}
	if s.stuck(tx, newest, g) {
		if done, err := s.replace(ctx, tx, newest, g); done || err != nil {
			return err
		}
	}
	if s.now().Sub(newest.SentAt) >= either(s.Resend, defaultResend) {
		return s.broadcast(ctx, newest)
	}
	return nil
}

// stuck: it has waited long enough, and waits for its own fee, not for a transaction before it.
func (s *Sender) stuck(tx Tx, newest Attempt, g glance) bool {
	if s.now().Sub(newest.CreatedAt) < either(s.Stuck, defaultStuck) {
		return false
	}
	return tx.Nonce == g.mined || (g.head.BaseFee != nil && newest.Signed.GasFeeCap().Cmp(g.head.BaseFee) < 0)
}

func (s *Sender) replace(ctx context.Context, tx Tx, newest Attempt, g glance) (bool, error) {
	now, err := s.feesAt(ctx, g.head)
	if err != nil {
		return false, err
	}
	f, allowed := s.bump(newest.Signed, now)
	if !allowed {
		s.log().Warn("transaction is stuck and its fee is at the allowed maximum", "tx", tx.ID, "call", tx.Call.String(), "fee", newest.Signed.GasFeeCap(), "max", s.MaxFee)
		return false, nil
	}
	signed, err := s.sign(ctx, tx, f)
	if err != nil {
		return false, err
	}
	s.log().Info("transaction is stuck; raising its fee", "tx", tx.ID, "call", tx.Call.String(), "nonce", tx.Nonce, "fee", f.cap, "hash", signed.Hash())
	attempt := Attempt{Signed: signed, CreatedAt: s.now()}
	if err := s.Store.attempt(ctx, tx, attempt); err != nil {
		return false, err
	}
	return true, s.broadcast(ctx, attempt)
}

// fill repairs a gap before the lowest open nonce, which nothing behind it can pass: a transaction we took for final that
// the chain forgot is sent again, and a nonce that nobody knows is used up by paying ourselves nothing.
func (s *Sender) fill(ctx context.Context, chain uint64, open []Tx, g glance) error {
	at := slices.IndexFunc(open, func(tx Tx) bool { return tx.Nonce >= g.mined })
	if at < 0 || open[at].State != Pending || open[at].Nonce == g.mined {
		return nil
	}
	first := open[at].Nonce
	if seen, err := s.Backend.PendingNonceAt(ctx, s.Address()); err != nil || seen > g.mined {
		return err // the node has something for the gap: wait for it
	}
	f, err := s.feesAt(ctx, g.head)
	if err != nil {
		return err
	}
	s.submitting.Lock()
	defer s.submitting.Unlock()
	for nonce := g.mined; nonce < first && nonce < g.mined+maxFill; nonce++ {
		known, err := s.Store.reopen(ctx, chain, s.Address(), nonce)
		if err != nil {
			return err
		}
		s.log().Warn("repairing a nonce gap", "sender", s.Address(), "nonce", nonce, "known", known)
		if known {
			continue // the next step broadcasts it
		}
		tx, err := s.write(ctx, chain, nonce, Call{Kind: Fill, To: s.Address()}, 21_000, f)
		if err != nil {
			return err
		}
		if err := s.broadcast(ctx, tx.Attempts[0]); err != nil {
			return err
		}
	}
	return nil
}

func (s *Sender) finality() uint64 { return either(s.Finality, uint64(defaultFinality)) }
