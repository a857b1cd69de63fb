package chain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
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

	submitting turn // one nonce at a time
	stepping   turn
	stepped    time.Time
	head       common.Hash
	gap        gap                 // before what is open; the one who steps has it
	unseen     gap                 // of what the outbox does not know; the one who steps has it
	doubt      doubt               // submitting guards it
	claims     claims              // of what the outbox does not know
	whole      bool                // nothing can be mined that the outbox does not know; the one who steps has it
	absences   map[TxID]*absence   // the one who steps has it
	ahead      map[stamp]time.Time // moments that were ahead of the clock, and when it was seen; the one who steps has it
	aging      sync.Mutex
	early      map[TxID]time.Time  // whose stamp is ahead of the clock, and when that was seen; aging guards it
	ages       map[common.Hash]age // by version
	refusals   map[common.Hash]string
	identity   sync.Mutex
	chain      uint64
	rollup     *bool // whether the chain charges for data; nil: not asked yet
}

// A turn is a lock that is waited for only as long as a context lasts: who holds it may wait for an endpoint, and an
// interrupt must not wait for that. The zero value is free.
type turn struct {
	once sync.Once
	held chan struct{}
}

func (t *turn) enter(ctx context.Context) error {
	t.once.Do(func() { t.held = make(chan struct{}, 1) })
	select {
	case t.held <- struct{}{}:
		return nil
	default:
	}
	select {
	case t.held <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t *turn) leave() { <-t.held }

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
// paid, a *TooDear if it takes more than the call allows. With an id, the transaction will be sent, now or, if the endpoint fails at this moment, later: do not submit the
// call again.
func (s *Sender) Submit(ctx context.Context, call Call) (TxID, error) {
	ctx, cancel := context.WithTimeout(ctx, either(s.Timeout, defaultTimeout))
	defer cancel()
	chain, err := s.chainID(ctx)
	if err != nil {
		return "", err
	}
	gas, fees, err := s.terms(ctx, call)
	if err != nil {
		return "", err
	}
	tx, err := s.enqueue(ctx, chain, call, gas, fees)
	if err != nil {
		return "", err
	}
	fault.Sent(string(call.Kind), fault.TxStored)
	if err := s.broadcast(ctx, tx.Attempts[0]); err != nil {
		s.log().Warn("transaction is on disk and will be broadcast later", "tx", tx.ID, "call", call.String(), "err", err)
	}
	fault.Sent(string(call.Kind), fault.TxBroadcast)
	return tx.ID, nil
}

// terms are the gas and the fees that a call is sent with: as far as the sender can pay for it, and the call allows, what the
// endpoint asks that asks more, and else what the one asks that asks less.
func (s *Sender) terms(ctx context.Context, call Call) (gas uint64, f fees, err error) {
	gas, enough, err := s.estimate(ctx, call)
	if err != nil {
		return 0, f, err
	}
	if f, err = s.fees(ctx); err != nil {
		return 0, f, err
	}
	if gas > f.head.limit {
		gas = enough
	}
	if gas > f.head.limit { // no block would ever take it
		return 0, f, &incomplete{"eth_estimateGas", fmt.Sprintf("%s takes %d gas, and a block has room for %d", call, gas, f.head.limit)}
	}
	if f.data, f.leastData, err = s.dataFee(ctx, call.Data); err != nil {
		return 0, f, err
	}
	if gas, f, err = f.allowed(call, gas, enough); err != nil {
		return 0, f, err
	}
	offer, err := s.payable(ctx, call, gas, f)
	if errors.Is(err, ErrFunds) && enough < gas {
		gas = enough
		offer, err = s.payable(ctx, call, gas, f)
	}
	return gas, offer, err
}

// lag bounds how long a node may be behind another one of the same endpoint.
const lag = 15 * time.Second

// SubmitAfter is Submit for a call that needs what this sender's last transaction did, such as an approval: nodes behind one
// endpoint are some blocks apart, so that a refusal, and a node that does not know the block, are asked again for a while.
func (s *Sender) SubmitAfter(ctx context.Context, call Call) (TxID, error) {
	limit := s.now().Add(max(lag, 3*s.poll()))
	pace := Backoff{Least: min(s.poll(), time.Second), Most: 3 * time.Second}
	for {
		id, err := s.Submit(ctx, call)
		var refused *Revert
		if err == nil || !errors.As(err, &refused) && !isBehind(err) || s.now().After(limit) {
			return id, err
		}
		if Pause(ctx, pace.Next()) != nil {
			return "", err
		}
	}
}

// enqueue gives the call a nonce, signs it and writes it to the outbox.
func (s *Sender) enqueue(ctx context.Context, chain uint64, call Call, gas uint64, f fees) (Tx, error) {
	if err := s.submitting.enter(ctx); err != nil {
		return Tx{}, err
	}
	defer s.submitting.leave()
	for try := 0; ; try++ {
		nonce, err := s.nonce(ctx, chain)
		if err != nil {
			return Tx{}, err
		}
		tx, err := s.write(ctx, chain, nonce, call, gas, f)
		if try == nonceTries || !store.Conflict(err) {
			return tx, err
		} // another process with this key was faster: the outbox holds each nonce once
	}
}

func (s *Sender) write(ctx context.Context, chain, nonce uint64, call Call, gas uint64, f fees) (Tx, error) {
	tx := Tx{ID: newTxID(), Chain: chain, Sender: s.Address(), Nonce: nonce, Call: call, Gas: gas, State: Pending, Most: mostOf(call, gas, f), DataFee: f.data, CreatedAt: s.now()}
	if call.Guard != nil { // before its nonce is marked as signed for, too
		if err := s.Store.db.Update(ctx, call.allowed); err != nil {
			return Tx{}, err
		}
	}
	signed, err := s.sign(ctx, tx, f)
	if err != nil {
		return Tx{}, err
	}
	tx.Attempts = []Attempt{{Signed: signed, CreatedAt: s.now()}}
	if err := s.Store.insert(ctx, tx); err != nil {
		return Tx{}, err
	}
	s.born(signed.Hash(), f.head)
	s.log().Info("transaction queued", "tx", tx.ID, "call", call.String(), "nonce", nonce, "hash", signed.Hash())
	return tx, nil
}

func (s *Sender) sign(ctx context.Context, tx Tx, f fees) (*types.Transaction, error) {
	if s.Marks != nil {
		if err := s.Marks.RaiseNonce(ctx, s.Address(), tx.Chain, tx.Nonce); err != nil {
			return nil, fmt.Errorf("chain: %s: %w", tx.Call, err)
		}
	}
	signed, err := s.seal(ctx, &types.DynamicFeeTx{
		ChainID: new(big.Int).SetUint64(tx.Chain), Nonce: tx.Nonce, GasTipCap: f.tip, GasFeeCap: f.cap,
		Gas: tx.Gas, To: &tx.Call.To, Value: new(big.Int), Data: tx.Call.Data,
	})
	if err != nil {
		return nil, fmt.Errorf("chain: %s: %w", tx.Call, err)
	}
	return signed, nil
}

func (s *Sender) seal(ctx context.Context, inner *types.DynamicFeeTx) (*types.Transaction, error) {
	signer, unsigned := types.LatestSignerForChainID(inner.ChainID), types.NewTx(inner)
	signature, err := s.Key.Sign(ctx, signer.Hash(unsigned))
	if err != nil {
		return nil, fmt.Errorf("%s cannot sign: %w", s.Address(), err)
	}
	if len(signature) != signatureLength || signature[64] < 27 {
		return nil, fmt.Errorf("the signer of %s gave a signature that is not 65 bytes with v 27 or 28", s.Address())
	}
	raw := append([]byte(nil), signature...)
	raw[64] -= 27
	return unsigned.WithSignature(signer, raw)
}

// broadcast hands a version to the node and remembers when. A node that refuses it may know it already, or know better:
// what became of it is read from the chain, not from the refusal, which is said once.
func (s *Sender) broadcast(ctx context.Context, a Attempt) error {
	err := s.Backend.SendTransaction(ctx, a.Signed)
	if err != nil && isTransport(err) {
		return fmt.Errorf("%w: broadcasting %s: %w", ErrUnreachable, a.Signed.Hash(), err)
	}
	if err != nil {
		s.refusal(a.Signed, err)
	}
	return s.Store.sent(ctx, a.Signed.Hash(), s.now())
}

// refusal says why a node does not take a version, and what to do: once at warn level for each reason.
func (s *Sender) refusal(tx *types.Transaction, err error) {
	text, level := line(err.Error()), slog.LevelWarn
	advice, quiet := adviceOn(text)
	s.aging.Lock()
	if s.refusals == nil || len(s.refusals) >= maxAges {
		s.refusals = make(map[common.Hash]string)
	}
	if quiet || s.refusals[tx.Hash()] == text {
		level = slog.LevelDebug
	}
	s.refusals[tx.Hash()] = text
	s.aging.Unlock()
	s.log().Log(context.Background(), level, "the node refuses a transaction; it is tried again", "sender", s.Address(), "nonce", tx.Nonce(),
		"hash", tx.Hash(), "reason", text, "do", advice)
}

// adviceOn is what to do when a node refuses a transaction with these words. quiet ones are no refusal: the node has it, or
// its nonce is used.
func adviceOn(text string) (advice string, quiet bool) {
	text = strings.ToLower(text)
	for _, known := range []struct {
		words, advice string
		quiet         bool
	}{
		{"already known", "", true}, {"already imported", "", true}, {"known transaction", "", true}, {"alreadyexists", "", true},
		{"nonce too low", "", true}, {"replacement transaction underpriced", "", true},
		{"insufficient funds", "send the sender native coin: it pays for gas and, on a rollup, for data", false},
		{"underpriced", "the node wants a higher fee: it is raised after a while, up to MaxFee; use another endpoint if it asks more than the chain does", false},
		{"tip", "the node wants a higher tip: it is raised after a while, up to MaxFee; use another endpoint if it asks more than the chain does", false},
		{"max fee per gas less than block base fee", "the chain's base fee is above what is offered: it is raised after a while, up to MaxFee", false},
		{"fee cap", "the node bounds what a transaction may pay (geth: --rpc.txfeecap): raise that, or lower MaxFee", false},
		{"gas limit", "the call takes more gas than the chain allows: settle fewer channels at a time", false},
	} {
		if strings.Contains(text, known.words) {
			return known.advice, known.quiet
		}
	}
	return "ask who runs the endpoint, or use another one", false
}

// Wait returns when the transaction has the given number of confirmations (1: it is in the newest block). A transaction
// that reverted is a *Reverted error. Failures of the endpoint are waited out until the context ends.
func (s *Sender) Wait(ctx context.Context, id TxID, confirmations uint64) (*Result, error) {
	var pace Backoff
	for {
		wait := s.poll()
		failed := s.step(ctx)
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
			s.log().Warn("waiting for a transaction", "tx", id, "err", failed, "retry", wait)
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
	tx, err := s.Store.get(ctx, id)
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
	head := said[0].say // of the one that is further: the other may stand still
	for _, by := range said[1:] {
		head = max(head, by.say)
	}
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
		return nil, &Reverted{Call: tx.Call, Reason: ErrGaveWay}
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
	chain, err := s.chainID(ctx)
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
	chain, err := s.chainID(ctx)
	if err != nil {
		return nil, err
	}
	return s.Store.gas(ctx, chain, s.Address())
}

func (s *Sender) chainID(ctx context.Context) (uint64, error) {
	s.identity.Lock()
	defer s.identity.Unlock()
	if s.chain != 0 {
		return s.chain, nil
	}
	id, err := chainID(ctx, s.Backend)
	if err == nil {
		s.chain = id
	}
	return id, err
}

func (s *Sender) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

func (s *Sender) log() *slog.Logger {
	if s.Log != nil {
		return s.Log
	}
	return slog.New(slog.DiscardHandler)
}

func (s *Sender) poll() time.Duration { return either(s.Poll, defaultPoll) }

func either[T comparable](value, fallback T) T {
	var zero T
	if value == zero {
		return fallback
	}
	return value
}
