package chain

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/gpupay/gpupay/internal/fault"
)

// maxFill bounds how many nonces one step fills, and maxGap how many are filled at all; fillGas is what using one up takes. A
// nonce above maxNonce is no account's.
const (
	maxFill  = 16
	maxGap   = 128
	fillGas  = 21_000
	maxNonce = 1 << 32
)

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
	head  sight
	moved bool     // the head is another one than at the last step
	mined uint64   // nonces below this one are used up, as of the head: the least that an endpoint says
	most  uint64   // and the most
	said  []uint64 // by each
	deep  uint64   // the same as mined, as of Finality blocks ago

	untold bool // the node cannot say yet what became of some transaction: it is asked again, though no block comes

	waiting bool   // whether a transaction without a budget is in flight
	lastOwn uint64 // the highest nonce of one
}

// step is Sync, but callers of Wait and Run share one per poll.
func (s *Sender) step(ctx context.Context) error {
	if s.Follow {
		return nil
	}
	if err := s.stepping.enter(ctx); err != nil {
		return err
	}
	defer s.stepping.leave()
	if since := s.now().Sub(s.stepped); since >= 0 && since < s.poll()/2 {
		return nil
	}
	return s.sync(ctx)
}

// Sync looks now at everything that is not final, so that what the outbox says is what the chain says: after a re-org, a
// transaction that was mined is in flight again.
func (s *Sender) Sync(ctx context.Context) error {
	if err := s.stepping.enter(ctx); err != nil {
		return err
	}
	defer s.stepping.leave()
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
	if err := s.reclaim(ctx, chain); err != nil {
		return err
	}
	open, err := s.Store.open(ctx, chain, s.Address())
	if err != nil || len(open) == 0 {
		return err
	}
	g, err := s.look(ctx, chain)
	if err != nil {
		return err
	}
	g.lastOwn, g.waiting = lastOwn(open)
	s.forget(open)
	if err := s.fill(ctx, chain, open, g); err != nil {
		return err
	}
	var failed error
	for _, tx := range open {
		if err := s.advance(ctx, tx, &g); err != nil {
			failed = errors.Join(failed, fmt.Errorf("chain: %s: %w", tx.Call, err))
		}
		if failed != nil && isTransport(failed) {
			return failed // the others would fail likewise
		}
	}
	if failed != nil {
		return failed
	}
	if s.stepped = s.now(); !g.untold {
		s.head = g.head.hash
	}
	return nil
}

// advance brings one transaction further: it is mined, final, undone, displaced, stuck, or dropped.
func (s *Sender) advance(ctx context.Context, tx Tx, g *glance) error {
	if !g.moved && tx.State != Pending {
		return nil
	}
	found, err := s.find(ctx, tx)
	g.untold = g.untold || found.unsure
	switch {
	case err != nil:
		return err
	case found.receipt != nil:
		return s.mined(ctx, tx, found, g)
	case tx.State == Mined:
		return s.missing(ctx, tx, found, g)
	case tx.State != Pending:
		return nil
	case tx.Nonce >= g.mined:
		return s.push(ctx, tx, *g)
	case tx.Nonce >= g.deep || found.unsure:
		return nil // somebody's transaction has this nonce, perhaps ours on a node that lags: the next steps tell
	}
	return s.displaced(ctx, tx, *g)
}

// A finding is what the chain says of a transaction's versions.
type finding struct {
	version *types.Transaction
	receipt *types.Receipt // nil: no version is known to be mined
	data    *big.Int       // wei, charged for data beside the gas; nil: none
	unsure  bool           // the node cannot say yet of some version
}

// find looks which version was mined, if any was: those under an earlier nonce as well. Of two nonces the first counts.
func (s *Sender) find(ctx context.Context, tx Tx) (found finding, err error) {
	for _, a := range slices.Backward(tx.Attempts) {
		if found.receipt != nil && found.version.Nonce() == a.Signed.Nonce() {
			continue // of one nonce no second version can be mined
		}
		hash := a.Signed.Hash()
		receipt, data, err := charged(ctx, s.Backend, hash)
		switch {
		case errors.Is(err, ErrIndexing):
			found.unsure = true
		case errors.Is(err, ethereum.NotFound):
		case err != nil:
			return found, fmt.Errorf("reading the receipt of %s: %w", hash, err)
		default:
			if found.receipt != nil {
				s.log().Error("a transaction was mined under two nonces: what it moves has moved twice",
					"tx", tx.ID, "call", tx.Call.String(), "hash", hash, "again", found.receipt.TxHash)
			}
			found.receipt, found.data, found.version = receipt, data, a.Signed
		}
	}
	return found, nil
}

func (s *Sender) mined(ctx context.Context, tx Tx, found finding, g *glance) error {
	delete(s.absences, tx.ID)
	receipt := found.receipt
	if found.version.Nonce() != tx.Nonce {
		if err := s.cancel(ctx, &tx, found.version.Nonce(), *g); err != nil {
			return err
		}
	}
	block := receipt.BlockNumber.Uint64()
	g.untold = g.untold || found.version.Nonce() >= g.mined // the receipt is of another branch than the head, or of a later block
	final := block+s.finality() <= g.head.older && s.agreed(ctx, tx, receipt)
	if tx.State == Mined && tx.BlockHash == receipt.BlockHash && !final {
		return nil
	}
	if tx.BlockHash != receipt.BlockHash {
		s.log().Info("transaction mined", "tx", tx.ID, "call", tx.Call.String(), "hash", receipt.TxHash, "block", block, "status", receipt.Status)
	}
	cost, err := s.cost(ctx, found)
	if err != nil {
		return err
	}
	tx.State = Mined
	if final {
		tx.State = Final
	}
	tx.Hash, tx.Block, tx.BlockHash, tx.Cost = receipt.TxHash, block, receipt.BlockHash, cost
	filled := tx.gaveWay(found.version)
	tx.Succeeded, tx.RanOut = receipt.Status == types.ReceiptStatusSuccessful && !filled, ranOut(found.version, receipt) && !filled
	err = s.Store.record(ctx, tx)
	fault.Sent(string(tx.Call.Kind), fault.TxMined)
	return err
}

// agreed reports whether a second endpoint, where there is one, has the receipt too: what is final is not looked at again.
func (s *Sender) agreed(ctx context.Context, tx Tx, receipt *types.Receipt) bool {
	if _, more := several(s.Backend); !more {
		return true
	}
	said, err := two(ctx, s.Backend, func(ctx context.Context, b Backend) (*types.Receipt, error) {
		r, err := Receipt(ctx, b, receipt.TxHash)
		if errors.Is(err, ethereum.NotFound) {
			return &types.Receipt{}, nil
		}
		return r, err
	})
	if err != nil {
		return false
	}
	for _, other := range said {
		if other.say.BlockHash != receipt.BlockHash || other.say.Status != receipt.Status {
			contradict(s.Backend, fmt.Sprintf("%s, transaction %s", tx.Call, receipt.TxHash), fmt.Sprintf("one has it in block %s with status %d", receipt.BlockHash, receipt.Status),
				fmt.Sprintf("%s in block %s with status %d", other.by, other.say.BlockHash, other.say.Status))
			return false
		}
	}
	return true
}

// cost is what a mined transaction took from its sender, in wei. Where the receipt does not say the price, it follows from
// the block's base fee.
func (s *Sender) cost(ctx context.Context, found finding) (*big.Int, error) {
	price := found.receipt.EffectiveGasPrice
	if price == nil {
		said, err := two(ctx, s.Backend, func(ctx context.Context, b Backend) (*types.Header, error) {
			header, err := b.HeaderByNumber(ctx, found.receipt.BlockNumber)
			if err == nil && header.BaseFee == nil {
				err = &incomplete{"eth_getBlockByNumber", "no baseFeePerGas of block " + found.receipt.BlockNumber.String()}
			}
			return header, err
		})
		if err != nil {
			return nil, fmt.Errorf("the receipt of %s says no price, reading its block: %w", found.receipt.TxHash, err)
		}
		header := said[0].say
		price = smaller(new(big.Int).Add(header.BaseFee, found.version.GasTipCap()), found.version.GasFeeCap())
	}
	cost := new(big.Int).Mul(price, new(big.Int).SetUint64(found.receipt.GasUsed))
	if found.data != nil {
		cost.Add(cost, found.data)
	}
	return cost, nil
}

// missing: nothing shows a transaction that was mined.
func (s *Sender) missing(ctx context.Context, tx Tx, found finding, g *glance) error {
	switch {
	case found.unsure || g.head.older < tx.Block: // a node that is behind does not know it yet
	case tx.Nonce >= g.mined:
		return s.undone(ctx, tx)
	case tx.Nonce >= g.deep: // its nonce is used, most likely by itself
	default:
		return s.pend(ctx, tx)
	}
	g.untold = true
	return nil
}

// undone: a re-org took a mined transaction out. The very same one is sent again, so it can never count twice.
func (s *Sender) undone(ctx context.Context, tx Tx) error {
	s.log().Warn("a re-org undid a transaction; sending it again", "tx", tx.ID, "call", tx.Call.String(), "hash", tx.Hash, "block", tx.Block)
	if err := s.pend(ctx, tx); err != nil {
		return err
	}
	return s.broadcast(ctx, tx.newest())
}

func (s *Sender) pend(ctx context.Context, tx Tx) error {
	tx.State, tx.Cost, tx.Succeeded, tx.RanOut = Pending, new(big.Int), false, false
	return s.Store.record(ctx, tx)
}

// push broadcasts a transaction that is not mined: for the first time, again, or at a higher fee.
func (s *Sender) push(ctx context.Context, tx Tx, g glance) error {
	if tx.Nonce <= g.most+maxGap { // see strayed
		delete(s.absences, tx.ID)
	}
	newest := tx.newest()
	passed := s.passedOver(tx, newest.Signed, g)
	if newest.SentAt.IsZero() {
		return s.broadcast(ctx, newest)
	}
	if passed && s.stuck(tx, newest, g) {
		if done, err := s.replace(ctx, tx, newest, g); done || err != nil {
			return err
		}
	}
	if s.waited(tx, newest.SentAt) >= either(s.Resend, defaultResend) {
		return s.broadcast(ctx, newest)
	}
	return nil
}

// stuck: it has waited long enough, and waits for its own fee, not for a transaction before it.
func (s *Sender) stuck(tx Tx, newest Attempt, g glance) bool {
	if s.waited(tx, newest.CreatedAt) < either(s.Stuck, defaultStuck) {
		return false
	}
	return tx.Nonce == g.mined || slices.Contains(g.said, tx.Nonce) || newest.Signed.GasFeeCap().Cmp(g.head.baseFee) < 0
}

// A stamp is a moment that was written down about a transaction.
type stamp struct {
	tx TxID
	at int64 // unix nanoseconds
}

// waited is how long ago a moment was that was written down about a transaction. One that is still to come, because the
// clock was set back, counts as the first look since: it delays what waits by no more than the wait itself.
func (s *Sender) waited(tx Tx, at time.Time) time.Duration {
	now, key := s.now(), stamp{tx.ID, at.UnixNano()}
	since, ahead := s.ahead[key]
	switch {
	case !ahead && !at.After(now):
		return now.Sub(at)
	case !ahead || since.After(now):
		if s.ahead == nil {
			s.ahead = make(map[stamp]time.Time)
		}
		s.ahead[key] = now
		return 0
	}
	return now.Sub(since)
}

// forget drops what is remembered of transactions that are over.
func (s *Sender) forget(open []Tx) {
	maps.DeleteFunc(s.ahead, func(key stamp, _ time.Time) bool {
		return !slices.ContainsFunc(open, func(tx Tx) bool { return tx.ID == key.tx })
	})
}

// replace signs a version at a higher fee. It reports false where none can be: the transaction goes on waiting as it is.
func (s *Sender) replace(ctx context.Context, tx Tx, newest Attempt, g glance) (bool, error) {
	now, err := s.feesAt(ctx, g.head)
	if err != nil {
		return false, err
	}
	now.data = tx.DataFee
	if tx.gaveWay(newest.Signed) {
		tx = tx.filling()
	}
	f, allowed := now.within(tx).bump(newest.Signed)
	if tx.yields() && (!allowed || f.cap.Cmp(g.head.leastFee) < 0) {
		return s.giveWay(ctx, tx, newest, g, now)
	}
	if !allowed {
		s.log().Warn("transaction is stuck and its fee is at the allowed maximum: wait for the chain's fees to fall, or raise MaxFee",
			"tx", tx.ID, "call", tx.Call.String(), "fee_wei", newest.Signed.GasFeeCap(), "max_fee_wei", now.most)
		return false, nil
	}
	done, err := s.supersede(ctx, tx, g, f)
	if !done && err == nil && tx.yields() {
		return s.giveWay(ctx, tx, newest, g, now)
	}
	return done, err
}

// supersede signs another version of a transaction and broadcasts it. It reports false where that cannot be paid.
func (s *Sender) supersede(ctx context.Context, tx Tx, g glance, f fees) (bool, error) {
	f, err := s.payable(ctx, tx.Call, tx.Gas, f)
	if errors.Is(err, ErrFunds) {
		s.log().Warn("transaction is stuck and a higher fee cannot be paid", "tx", tx.ID, "err", err)
		return false, nil
	} else if err != nil {
		return false, err
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
	s.born(signed.Hash(), g.head)
	return true, s.broadcast(ctx, attempt)
}

// fill repairs a gap before the lowest open nonce, which nothing behind it can pass: a transaction we took for final that
// the chain forgot is sent again, and a nonce that nobody knows is used up by paying ourselves nothing. What an endpoint has on its
// way for the gap, and what only one of two denies to be a gap, is waited for as long as a fee may be stuck, and no longer.
func (s *Sender) fill(ctx context.Context, chain uint64, open []Tx, g glance) error {
	at := slices.IndexFunc(open, func(tx Tx) bool { return tx.Nonce >= g.mined })
	if at < 0 || open[at].State != Pending || open[at].Nonce == g.mined {
		return nil
	}
	first := open[at].Nonce
	if first > g.most+maxGap {
		return s.strayed(ctx, open[at], g)
	}
	from, waited := g.mined, s.gap.lasts(s.now(), g.mined, either(s.Stuck, defaultStuck))
	if !waited {
		from = g.most
		seen, err := s.shown(ctx)
		if err != nil || from >= first || seen > g.mined {
			return err // another one says that it is none, or has something for it
		}
	}
	f, err := s.feesAt(ctx, g.head)
	if err != nil {
		return err
	}
	if err := s.submitting.enter(ctx); err != nil {
		return err
	}
	defer s.submitting.leave()
	for nonce := from; nonce < first && nonce < from+maxFill; nonce++ {
		known, err := s.Store.reopen(ctx, chain, s.Address(), nonce)
		if err != nil {
			return err
		}
		s.log().Warn("repairing a nonce gap", "sender", s.Address(), "nonce", nonce, "known", known)
		if known {
			continue // the next step broadcasts it
		}
		if err := s.useUp(ctx, chain, nonce, f); err != nil {
			return err
		}
	}
	return nil
}

// shown is the first nonce that no endpoint has a transaction for: the least that two say.
func (s *Sender) shown(ctx context.Context) (uint64, error) {
	said, err := two(ctx, s.Backend, func(ctx context.Context, b Backend) (uint64, error) { return b.PendingNonceAt(ctx, s.Address()) })
	if err != nil {
		return 0, Unread("the nonce of "+s.Address().String(), err)
	}
	seen := said[0].say
	for _, by := range said[1:] {
		seen = min(seen, by.say)
	}
	return seen, nil
}

// A gap is since when the same nonce is the next one to be mined.
type gap struct {
	nonce uint64
	since time.Time
}

// lasts reports whether that has been so for as long.
func (p *gap) lasts(now time.Time, nonce uint64, long time.Duration) bool {
	if p.since.IsZero() || p.nonce != nonce || now.Before(p.since) {
		*p = gap{nonce, now}
	}
	return now.Sub(p.since) >= long
}

func (s *Sender) finality() uint64 { return either(s.Finality, uint64(defaultFinality)) }
