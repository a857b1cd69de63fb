package chain

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
)

// absentLooks is how many looks, each at a newer block, must find no trace of a transaction before it counts as lost.
const absentLooks = 3

// errLost is why a transaction whose nonce another one used was given up.
var errLost = errors.New("another transaction of this key took its nonce, and the contract refuses it now")

// An absence is how long no look has found any version of a transaction whose nonce is used up.
type absence struct {
	looks int
	last  sight // of the newest look
	since time.Time
	told  bool // that nothing can be done about it now
}

// losses are transactions that cannot be mined any more as they were sent: their nonce is used up by another, or no endpoint comes
// near it. It is decided here when that is certain, and what is sent instead. The one who steps calls it.
type losses struct {
	outgoing
	sequence *sequence
	absences map[TxID]*absence
}

// displaced: as it seems, another transaction of this key, not sent from here, used up the nonce, deep enough that this
// will stay. A node that does not show ours may only be behind with its index, and a copy would move the money twice: so
// absence must hold over several blocks and some time, no version may be known by its hash, the block that used the nonce
// must show another transaction, and the contract must still take the call.
func (l *losses) displaced(ctx context.Context, tx Tx, g glance) error {
	known, err := l.known(ctx, tx)
	if err != nil {
		return err
	}
	if known {
		l.found(tx.ID)
		return nil
	}
	a := l.absent(tx, g)
	if a.looks < absentLooks || l.waits.waited(tx, a.since) < l.patience {
		return nil
	}
	if by, err := l.usedBy(ctx, tx.Nonce, g); err != nil || tx.has(by) {
		l.puzzled(tx, a, by, err)
		return nil
	}
	if tx.Call.Kind == Fill || tx.gaveWay(tx.newest().Signed) { // whoever used the nonce did what it was for
		return l.giveUp(ctx, tx)
	}
	err = simulate(ctx, l.backend, l.address(), tx.Call)
	var refused *Revert
	if errors.As(err, &refused) {
		l.log.Warn("another program uses this key: its transaction took a nonce of ours, and the contract refuses ours now: it is given up",
			"tx", tx.ID, "call", tx.Call.String(), "nonce", tx.Nonce, "reason", refused)
		return l.giveUp(ctx, tx)
	}
	if err != nil {
		return err
	}
	return l.renumber(ctx, tx, g)
}

// puzzled says once that a transaction cannot be found, though nothing says that it is lost: it is waited for.
func (l *losses) puzzled(tx Tx, a *absence, by common.Hash, err error) {
	if a.told {
		return
	}
	a.told = true
	if err != nil {
		l.log.Warn("a transaction is not to be found though its nonce is used; it is not sent again before it is known what used the nonce: use an endpoint that keeps older state",
			"tx", tx.ID, "call", tx.Call.String(), "nonce", tx.Nonce, "err", err)
		return
	}
	l.log.Warn("the endpoint does not show the receipt of a transaction that is in a block: use another endpoint, or wait until it has indexed it",
		"tx", tx.ID, "call", tx.Call.String(), "nonce", tx.Nonce, "hash", by)
}

// has reports whether a hash is of one of the transaction's versions.
func (tx Tx) has(hash common.Hash) bool {
	return slices.ContainsFunc(tx.Attempts, func(a Attempt) bool { return a.Signed.Hash() == hash })
}

// usedBy finds the transaction that used up a nonce: in the block at which the count of transactions passed it.
func (l *losses) usedBy(ctx context.Context, nonce uint64, g glance) (common.Hash, error) {
	counted := func(block uint64) (uint64, error) {
		return l.backend.NonceAt(ctx, l.address(), new(big.Int).SetUint64(block))
	}
	high := g.head.older // the nonce is used there
	var low uint64       // and not there
	for back := 2 * l.finality; ; back *= 2 {
		low = high - min(high, back)
		n, err := counted(low)
		if err != nil {
			return common.Hash{}, err
		}
		if n <= nonce {
			break
		}
		if high = low; low == 0 {
			return common.Hash{}, fmt.Errorf("nonce %d of %s was used before the first block", nonce, l.address())
		}
	}
	for high-low > 1 {
		middle := low + (high-low)/2
		n, err := counted(middle)
		if err != nil {
			return common.Hash{}, err
		}
		if n <= nonce {
			low = middle
		} else {
			high = middle
		}
	}
	return l.inBlock(ctx, high, nonce)
}

// inBlock finds a transaction of ours by its nonce in a block.
func (l *losses) inBlock(ctx context.Context, number, nonce uint64) (common.Hash, error) {
	sent, err := transactions(ctx, l.backend, new(big.Int).SetUint64(number))
	if err != nil {
		return common.Hash{}, err
	}
	for _, tx := range sent {
		if tx.From == l.address() && uint64(tx.Nonce) == nonce {
			return tx.Hash, nil
		}
	}
	return common.Hash{}, fmt.Errorf("block %d has no transaction %d of %s, though it was counted there", number, nonce, l.address())
}

// A sent transaction is what of a block's transaction says whose it is. Other fields are left alone: rollups have types of
// transactions that not every client knows.
type sent struct {
	Hash  common.Hash    `json:"hash"`
	From  common.Address `json:"from"`
	Nonce hexutil.Uint64 `json:"nonce"`
}

// transactions lists what a block holds.
func transactions(ctx context.Context, backend Backend, number *big.Int) ([]sent, error) {
	if reader, ok := backend.(interface {
		transactions(context.Context, *big.Int) ([]sent, error)
	}); ok {
		return reader.transactions(ctx, number)
	}
	block, err := backend.BlockByNumber(ctx, number)
	if err != nil {
		return nil, err
	}
	var list []sent
	for _, tx := range block.Transactions() {
		from, err := types.Sender(types.LatestSignerForChainID(tx.ChainId()), tx)
		if err != nil {
			continue // of a type that keys like ours do not sign
		}
		list = append(list, sent{tx.Hash(), from, hexutil.Uint64(tx.Nonce())})
	}
	return list, nil
}

// strayed: an endpoint gave a transaction a nonce so far ahead that it cannot be mined before all between are paid for. Once
// that holds over several blocks and some time it is signed anew under the next nonce.
func (l *losses) strayed(ctx context.Context, tx Tx, g glance) error {
	a := l.absent(tx, g)
	if a.looks < absentLooks || l.now().Sub(a.since) < l.patience {
		return nil
	}
	f, err := l.prices.feesAt(ctx, g.head)
	if err != nil {
		return err
	}
	if err := l.signing.submitting.Enter(ctx); err != nil {
		return err
	}
	defer l.signing.submitting.Leave()
	l.log.Warn("an endpoint gave a transaction a nonce that is far ahead of the chain's: it is signed anew under the next one",
		"tx", tx.ID, "call", tx.Call.String(), "nonce", tx.Nonce, "new", g.mined)
	return l.reissue(ctx, tx, g.mined, f)
}

// known reports whether the node has any version of a transaction, mined or waiting.
func (l *losses) known(ctx context.Context, tx Tx) (bool, error) {
	for _, a := range tx.Attempts {
		_, _, err := l.backend.TransactionByHash(ctx, a.Signed.Hash())
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, ethereum.NotFound) {
			return false, err
		}
	}
	return false, nil
}

// found ends the absence of a transaction.
func (l *losses) found(id TxID) { delete(l.absences, id) }

func (l *losses) absent(tx Tx, g glance) *absence {
	a := l.absences[tx.ID]
	if a == nil {
		if l.absences == nil {
			l.absences = make(map[TxID]*absence)
		}
		a = &absence{looks: 1, last: g.head, since: l.now()}
		l.absences[tx.ID] = a
	}
	if g.head.beyond(a.last.number, a.last.older) {
		a.looks, a.last = a.looks+1, g.head
	}
	return a
}

// giveUp ends a transaction that was never mined. A Fill has done what it was for.
func (l *losses) giveUp(ctx context.Context, tx Tx) error {
	l.found(tx.ID)
	tx.State, tx.Cost, tx.Succeeded = Final, new(big.Int), tx.Call.Kind == Fill
	tx.Hash, tx.Block, tx.BlockHash = common.Hash{}, 0, common.Hash{}
	return l.store.record(ctx, tx)
}

// renumber sends a lost transaction anew under another nonce.
func (l *losses) renumber(ctx context.Context, tx Tx, g glance) error {
	f, err := l.prices.feesAt(ctx, g.head)
	if err != nil {
		return err
	}
	if f, err = l.prices.payable(ctx, tx.Call, tx.Gas, f); err != nil {
		return err
	}
	if err := l.signing.submitting.Enter(ctx); err != nil {
		return err
	}
	defer l.signing.submitting.Leave()
	next, err := l.sequence.nonce(ctx, tx.Chain)
	if err != nil {
		return err
	}
	l.log.Warn("another program uses this key: its transaction took a nonce of ours", "tx", tx.ID, "call", tx.Call.String(), "nonce", tx.Nonce, "new", next)
	return l.reissue(ctx, tx, next, f)
}

// reissue signs a transaction under another nonce and sends that. The caller holds submitting.
func (l *losses) reissue(ctx context.Context, tx Tx, nonce uint64, f fees) error {
	tx.Nonce = nonce
	f.data = tx.DataFee
	signed, err := l.signing.sign(ctx, tx, f.within(tx))
	if err != nil {
		return err
	}
	attempt := Attempt{Signed: signed, CreatedAt: l.now()}
	if err := l.store.renumber(ctx, tx, nonce, attempt); err != nil {
		return err
	}
	l.found(tx.ID)
	l.waits.born(signed.Hash(), f.head)
	return l.signing.broadcast(ctx, attempt)
}

// cancel keeps the copy of a transaction from being mined: the original, under its earlier nonce, was mined after all. The
// copy's nonce is used up by paying ourselves nothing, at a fee that replaces it.
func (l *losses) cancel(ctx context.Context, tx *Tx, nonce uint64, g glance) error {
	later, copied := tx.Nonce, tx.newest().Signed
	now, err := l.prices.feesAt(ctx, g.head)
	if err != nil {
		return err
	}
	f, _ := now.bump(copied)
	fill := Tx{ID: newTxID(), Chain: tx.Chain, Sender: tx.Sender, Nonce: later, Gas: fillGas, State: Pending, CreatedAt: l.now(),
		Call: Call{Kind: Fill, To: l.address(), Channels: tx.Call.Channels}}
	signed, err := l.signing.sign(ctx, fill, f)
	if err != nil {
		return err
	}
	fill.Attempts = []Attempt{{Signed: signed, CreatedAt: l.now()}}
	l.log.Warn("a transaction that seemed lost was mined after all: its copy is cancelled", "tx", tx.ID, "call", tx.Call.String(), "nonce", nonce, "copy_nonce", later)
	if err := l.store.restore(ctx, *tx, nonce, fill); err != nil {
		return err
	}
	tx.Nonce = nonce
	l.waits.born(signed.Hash(), g.head)
	return l.signing.broadcast(ctx, fill.Attempts[0])
}

// Passed reports whether a transaction that no sender looks after any more, as its key was exchanged, was mined or never will
// be: its account has used all of its nonces, in a block with the wanted confirmations and by the word of two endpoints where
// there are two.
func Passed(ctx context.Context, backend Backend, tx Tx, confirmations uint64) (bool, error) {
	last := tx.Nonce
	for _, a := range tx.Attempts {
		last = max(last, a.Signed.Nonce())
	}
	said, err := two(ctx, backend, func(ctx context.Context, b Backend) (uint64, error) {
		head, err := b.BlockNumber(ctx)
		if err != nil || head+1 < confirmations {
			return 0, err
		}
		return b.NonceAt(ctx, tx.Sender, new(big.Int).SetUint64(head+1-max(1, confirmations)))
	})
	if err != nil {
		return false, Unread("the nonce of "+tx.Sender.String(), err)
	}
	return !slices.ContainsFunc(said, func(s statement[uint64]) bool { return s.say <= last }), nil
}
