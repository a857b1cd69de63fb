package chain

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/sdk/internal/pace"
)

// maxFill bounds how many nonces one step fills, and maxGap how many are filled at all; fillGas is what using one up takes. A
// nonce above maxNonce is no account's.
const (
	maxFill  = 16
	maxGap   = 128
	fillGas  = 21_000
	maxNonce = 1 << 32
)

// steps follows what is in the outbox on the chain, one look after the other, until it is final: receipts, re-orgs, gaps before a
// nonce. What has to be replaced or is lost it hands on.
type steps struct {
	outgoing
	strangers *strangers
	replacing *replacing
	losses    *losses

	follow   bool // another process steps
	resend   time.Duration
	timeout  time.Duration // of one look
	stepping pace.Turn     // held by the one who steps; it guards what is below
	stepped  time.Time
	head     common.Hash // of the last step
	gap      gap         // before what is open
	troubles pace.Troubles[TxID]
}

// A glance is what one step reads of the chain before it looks at single transactions.
type glance struct {
	head  sight
	moved bool     // the head is another one than at the last step
	mined uint64   // nonces below this one are used up, as of the head: the least that an endpoint says
	most  uint64   // and the most
	said  []uint64 // by each
	deep  uint64   // the same as mined, as of Finality blocks ago

	until  time.Time // the look has to end then
	untold bool      // the node cannot say yet what became of some transaction: it is asked again, though no block comes

	waiting bool   // whether a transaction without a budget is in flight
	lastOwn uint64 // the highest nonce of one
}

// step is sync, but callers of Wait and Run share one per poll.
func (s *steps) step(ctx context.Context) error {
	if s.follow {
		return nil
	}
	return s.turn(ctx, s.poll/2)
}

// sync is a look now.
func (s *steps) sync(ctx context.Context) error { return s.turn(ctx, 0) }

// turn is a look where the last one was so long ago.
func (s *steps) turn(ctx context.Context, apart time.Duration) error {
	if err := s.stepping.Enter(ctx); err != nil {
		return err
	}
	defer s.stepping.Leave()
	if since := s.now().Sub(s.stepped); since >= 0 && since < apart {
		return nil
	}
	return s.pass(ctx)
}

// pass looks at everything that is not final, for who holds stepping. What keeps one transaction from being looked at, or sent on,
// keeps none of the others: each is money that cannot wait for another's receipt.
func (s *steps) pass(caller context.Context) error {
	ctx, cancel := context.WithTimeout(caller, s.timeout)
	defer cancel()
	chain, err := s.chainID(ctx)
	if err != nil {
		return err
	}
	if err := s.strangers.reclaim(ctx, chain); err != nil {
		return err
	}
	open, err := s.store.open(ctx, chain, s.address())
	if err != nil || len(open) == 0 {
		return err
	}
	g, err := s.look(ctx, chain)
	if err != nil {
		return err
	}
	g.until = time.Now().Add(s.timeout)
	g.lastOwn, g.waiting = lastOwn(open)
	s.waits.forget(open)
	if err := s.fill(ctx, chain, open, g); err != nil {
		return err
	}
	s.troubles.Keep(func(id TxID) bool { return slices.ContainsFunc(open, func(tx Tx) bool { return tx.ID == id }) })
	for _, tx := range open {
		if !g.moved && tx.State != Pending && s.troubles.Why(tx.ID) == nil || s.troubles.Rests(tx.ID) {
			continue
		}
		err := s.advance(ctx, tx, &g)
		if caller.Err() != nil {
			return fmt.Errorf("chain: %s: %w", tx.Call, caller.Err())
		} else if retry := s.troubles.Note(tx.ID, err); err != nil {
			s.log.Warn("what became of a transaction is not known, or it cannot be sent on: it alone waits",
				"tx", tx.ID, "call", tx.Call.String(), "err", err, "retry", retry)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("chain: %s: %w", tx.Call, ctx.Err())
		}
	}
	if s.stepped = s.now(); !g.untold {
		s.head = g.head.hash
	}
	return nil
}

// advance brings one transaction further: it is mined, final, undone, displaced, stuck, or dropped.
func (s *steps) advance(ctx context.Context, tx Tx, g *glance) error {
	found, err := s.find(ctx, tx, *g)
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
	return s.losses.displaced(ctx, tx, *g)
}

// A finding is what the chain says of a transaction's versions.
type finding struct {
	version *types.Transaction
	receipt *types.Receipt // nil: no version is known to be mined
	data    *big.Int       // wei, charged for data beside the gas; nil: none
	unsure  bool           // the node cannot say yet of some version
}

// fewReceipts is how many a look asks for under a nonce that no endpoint calls used, and mostReceipts how many in all.
const fewReceipts, mostReceipts = 3, 64

// sought are the versions whose receipts a look asks for: the one that was mined, the newest, and others, in turn where there are
// many.
func (tx Tx) sought(most uint64) []Attempt {
	var list []Attempt
	for _, a := range slices.Backward(tx.Attempts) {
		if a.Signed.Nonce() < most || tx.State == Mined || len(list) < fewReceipts {
			list = append(list, a)
		}
	}
	if at := slices.IndexFunc(list, func(a Attempt) bool { return a.Signed.Hash() == tx.Hash }); at > 0 {
		list[0], list[at] = list[at], list[0]
	}
	if len(list) > mostReceipts {
		rest := list[fewReceipts:]
		rand.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	}
	return list[:min(len(list), mostReceipts)]
}

// find looks which version was mined, if any was: those under an earlier nonce as well. Of two nonces the first counts. It takes no
// more than a part of the time that is left to the look: the other transactions are looked at, too.
func (s *steps) find(ctx context.Context, tx Tx, g glance) (found finding, failed error) {
	ctx, cancel := context.WithTimeout(ctx, time.Until(g.until)/4)
	defer cancel()
	for _, a := range tx.sought(g.most) {
		if found.receipt != nil && found.version.Nonce() == a.Signed.Nonce() {
			continue // of one nonce no second version can be mined
		}
		hash := a.Signed.Hash()
		receipt, data, err := charged(ctx, s.backend, hash)
		switch {
		case errors.Is(err, ErrIndexing):
			found.unsure = true
		case errors.Is(err, ethereum.NotFound):
		case err != nil:
			failed = fmt.Errorf("reading the receipt of %s: %w", hash, err) // another version may be the one
		default:
			if found.receipt != nil {
				s.log.Error("a transaction was mined under two nonces: what it moves has moved twice",
					"tx", tx.ID, "call", tx.Call.String(), "hash", hash, "again", found.receipt.TxHash)
			}
			if failed = nil; found.receipt == nil || a.Signed.Nonce() < found.version.Nonce() {
				found.receipt, found.data, found.version = receipt, data, a.Signed
			}
		}
	}
	return found, failed
}

func (s *steps) mined(ctx context.Context, tx Tx, found finding, g *glance) error {
	s.losses.found(tx.ID)
	receipt := found.receipt
	if found.version.Nonce() != tx.Nonce {
		if err := s.losses.cancel(ctx, &tx, found.version.Nonce(), *g); err != nil {
			return err
		}
	}
	block := receipt.BlockNumber.Uint64()
	g.untold = g.untold || found.version.Nonce() >= g.mined // the receipt is of another branch than the head, or of a later block
	final := block+s.finality <= g.head.older && s.agreed(ctx, tx, receipt)
	if tx.State == Mined && tx.BlockHash == receipt.BlockHash && !final {
		return nil
	}
	if tx.BlockHash != receipt.BlockHash {
		s.log.Info("transaction mined", "tx", tx.ID, "call", tx.Call.String(), "hash", receipt.TxHash, "block", block, "status", receipt.Status)
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
	err = s.store.record(ctx, tx)
	fault.Sent(string(tx.Call.Kind), fault.TxMined)
	return err
}

// agreed reports whether a second endpoint, where there is one, has the receipt too: what is final is not looked at again.
func (s *steps) agreed(ctx context.Context, tx Tx, receipt *types.Receipt) bool {
	if _, more := several(s.backend); !more {
		return true
	}
	said, err := two(ctx, s.backend, func(ctx context.Context, b Backend) (*types.Receipt, error) {
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
			contradict(s.backend, fmt.Sprintf("%s, transaction %s", tx.Call, receipt.TxHash), fmt.Sprintf("one has it in block %s with status %d", receipt.BlockHash, receipt.Status),
				fmt.Sprintf("%s in block %s with status %d", other.by, other.say.BlockHash, other.say.Status))
			return false
		}
	}
	return true
}

// cost is what a mined transaction took from its sender, in wei. Where the receipt does not say the price, it follows from
// the block's base fee.
func (s *steps) cost(ctx context.Context, found finding) (*big.Int, error) {
	price := found.receipt.EffectiveGasPrice
	if price == nil {
		said, err := two(ctx, s.backend, func(ctx context.Context, b Backend) (*types.Header, error) {
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
func (s *steps) missing(ctx context.Context, tx Tx, found finding, g *glance) error {
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
func (s *steps) undone(ctx context.Context, tx Tx) error {
	s.log.Warn("a re-org undid a transaction; sending it again", "tx", tx.ID, "call", tx.Call.String(), "hash", tx.Hash, "block", tx.Block)
	if err := s.pend(ctx, tx); err != nil {
		return err
	}
	return s.signing.broadcast(ctx, tx.newest())
}

func (s *steps) pend(ctx context.Context, tx Tx) error {
	tx.State, tx.Cost, tx.Succeeded, tx.RanOut = Pending, new(big.Int), false, false
	return s.store.record(ctx, tx)
}

// push broadcasts a transaction that is not mined: for the first time, again, at a higher fee, or at a lower one where nobody takes it.
func (s *steps) push(ctx context.Context, tx Tx, g glance) error {
	if tx.Nonce <= g.most+maxGap { // see strayed
		s.losses.found(tx.ID)
	}
	newest := tx.newest()
	passed := s.waits.passedOver(tx, newest.Signed, g)
	if newest.SentAt.IsZero() {
		return s.signing.broadcast(ctx, newest)
	}
	if newest.Answer.Never() {
		if done, err := s.replacing.relent(ctx, tx, newest, g); done || err != nil {
			return err
		}
	} else if passed && s.replacing.stuck(tx, newest, g) {
		if done, err := s.replacing.replace(ctx, tx, newest, g); done || err != nil {
			return err
		}
	}
	if s.waits.waited(tx, newest.SentAt) >= s.resend {
		return s.signing.again(ctx, tx, newest)
	}
	return nil
}

// fill repairs a gap before the lowest open nonce, which nothing behind it can pass: a transaction we took for final that
// the chain forgot is sent again, and a nonce that nobody knows is used up by paying ourselves nothing. What an endpoint has on its
// way for the gap, and what only one of two denies to be a gap, is waited for as long as a fee may be stuck, and no longer.
func (s *steps) fill(ctx context.Context, chain uint64, open []Tx, g glance) error {
	at := slices.IndexFunc(open, func(tx Tx) bool { return tx.Nonce >= g.mined })
	if at < 0 || open[at].State != Pending || open[at].Nonce == g.mined {
		return nil
	}
	first := open[at].Nonce
	if first > g.most+maxGap {
		return s.losses.strayed(ctx, open[at], g)
	}
	from, waited := g.mined, s.gap.lasts(s.now(), g.mined, s.patience)
	if !waited {
		from = g.most
		seen, _, err := s.shown(ctx)
		if err != nil || from >= first || seen > g.mined {
			return err // another one says that it is none, or has something for it
		}
	}
	f, err := s.prices.feesAt(ctx, g.head)
	if err != nil {
		return err
	}
	if err := s.signing.submitting.Enter(ctx); err != nil {
		return err
	}
	defer s.signing.submitting.Leave()
	for nonce := from; nonce < first && nonce < from+maxFill; nonce++ {
		known, err := s.store.reopen(ctx, chain, s.address(), nonce)
		if err != nil {
			return err
		}
		s.log.Warn("repairing a nonce gap", "sender", s.address(), "nonce", nonce, "known", known)
		if known {
			continue // the next step broadcasts it
		}
		if err := s.signing.useUp(ctx, chain, nonce, f); err != nil {
			return err
		}
	}
	return nil
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

// A view of the key is what one endpoint says of its nonces.
type keyView struct {
	head  *types.Header
	mined uint64
	deep  uint64 // as of Finality blocks ago
	shown bool   // whether the endpoint keeps state that old
}

// look reads what one step goes by. Of what two endpoints say of the key's nonces the least counts, and no less than what the
// outbox knows to be final, where the other one grants that: to send again what is mined costs nothing, and to take for mined
// what is not has it never sent.
func (s *steps) look(ctx context.Context, chain uint64) (glance, error) {
	said, err := two(ctx, s.backend, func(ctx context.Context, b Backend) (v keyView, err error) {
		if v.head, err = headWithFee(ctx, b); err != nil {
			return v, Unread("the newest block", err)
		}
		if v.mined, err = b.NonceAt(ctx, s.address(), v.head.Number); err != nil {
			return v, fmt.Errorf("chain: reading the nonce of %s: %w", s.address(), err)
		}
		back := new(big.Int).SetUint64(min(s.finality, v.head.Number.Uint64()))
		v.deep, err = b.NonceAt(ctx, s.address(), back.Sub(v.head.Number, back))
		if err != nil && isTransport(err) {
			return v, fmt.Errorf("chain: reading the nonce of %s: %w", s.address(), err)
		}
		if v.shown = err == nil; !v.shown { // a node that keeps no state that old: nothing counts as lost by its word
			s.log.Debug("the nonce is not known that far back", "blocks", s.finality, "err", err)
		}
		return v, nil
	})
	if err != nil {
		return glance{}, err
	}
	newerFirst(said, func(v keyView) uint64 { return v.head.Number.Uint64() })
	return s.glance(ctx, chain, said)
}

func (s *steps) glance(ctx context.Context, chain uint64, said []statement[keyView]) (glance, error) {
	var heads []*types.Header
	var deep []uint64
	g := glance{mined: said[0].say.mined, most: said[0].say.mined}
	for _, by := range said {
		heads, g.said = append(heads, by.say.head), append(g.said, by.say.mined)
		g.mined, g.most = min(g.mined, by.say.mined), max(g.most, by.say.mined)
		if by.say.shown {
			deep = append(deep, by.say.deep)
		}
	}
	if len(deep) > 0 {
		g.deep = slices.Min(deep)
	}
	g.head = sightOf(heads)
	g.moved = g.head.hash != s.head
	if g.mined == g.most {
		return g, nil
	}
	final, err := s.store.nextFinal(ctx, chain, s.address())
	g.mined = max(g.mined, min(final, g.most))
	return g, err
}

// Untold is why the last look could not say what became of a transaction about a channel, or could not send it on; nil: it could.
func (s *Sender) Untold(ctx context.Context, channel common.Hash) error {
	sent, err := s.Find(ctx, channel)
	for _, tx := range sent {
		if why := s.parts().steps.troubles.Why(tx.ID); why != nil {
			err = errors.Join(err, fmt.Errorf("%s (transaction %s): %w", tx.Call, tx.ID, why))
		}
	}
	return err
}
