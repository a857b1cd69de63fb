package chain

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"math/rand/v2"
	"sync"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/gpupay/gpupay/internal/eip712"
	"github.com/gpupay/gpupay/sdk/internal/pace"
	"github.com/gpupay/gpupay/sdk/internal/refusal"
)

// signing makes the versions of transactions and hands them to the node: each is on disk, and its nonce in the marks, before
// anybody else has it. Which nonce, and at what fee, is for its callers to say.
type signing struct {
	*account
	waits      *waits
	submitting pace.Turn              // held from choosing a nonce until its transaction is in the outbox: one nonce at a time
	mu         sync.Mutex             // guards refusals
	refusals   map[common.Hash]string // by version, what the node said last
}

func (s *signing) write(ctx context.Context, chain, nonce uint64, call Call, gas uint64, f fees) (Tx, error) {
	tx := Tx{ID: newTxID(), Chain: chain, Sender: s.address(), Nonce: nonce, Call: call, Gas: gas, State: Pending, Most: mostOf(call, gas, f), DataFee: f.data, CreatedAt: s.now()}
	if call.Guard != nil { // before its nonce is marked as signed for, too
		if err := s.store.db.Update(ctx, call.allowed); err != nil {
			return Tx{}, err
		}
	}
	signed, err := s.sign(ctx, tx, f)
	if err != nil {
		return Tx{}, err
	}
	tx.Attempts = []Attempt{{Signed: signed, CreatedAt: s.now()}}
	if err := s.store.insert(ctx, tx); err != nil {
		return Tx{}, err
	}
	s.waits.born(signed.Hash(), f.head)
	s.log.Info("transaction queued", "tx", tx.ID, "call", call.String(), "nonce", nonce, "hash", signed.Hash())
	return tx, nil
}

func (s *signing) sign(ctx context.Context, tx Tx, f fees) (*types.Transaction, error) {
	if s.marks != nil {
		if err := s.marks.RaiseNonce(ctx, s.address(), tx.Chain, tx.Nonce); err != nil {
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

func (s *signing) seal(ctx context.Context, inner *types.DynamicFeeTx) (*types.Transaction, error) {
	signer, unsigned := types.LatestSignerForChainID(inner.ChainID), types.NewTx(inner)
	signature, err := s.key.Sign(ctx, signer.Hash(unsigned))
	if err != nil {
		return nil, fmt.Errorf("%s cannot sign: %w", s.address(), err)
	}
	if len(signature) != eip712.SignatureLength || signature[64] < 27 {
		return nil, fmt.Errorf("the signer of %s gave a signature that is not 65 bytes with v 27 or 28", s.address())
	}
	raw := append([]byte(nil), signature...)
	raw[64] -= 27
	return unsigned.WithSignature(signer, raw)
}

// broadcast hands a version to the node and remembers when, and what it answered. A node that refuses it may know it already, or
// know better: what became of it is read from the chain, not from the refusal, which is said once. The refusal says whether
// somebody may have the version (relent).
func (s *signing) broadcast(ctx context.Context, a Attempt) error {
	answer, err := refusal.Taken, s.backend.SendTransaction(ctx, a.Signed)
	if err != nil && isTransport(err) {
		failed := fmt.Errorf("%w: broadcasting %s: %w", ErrUnreachable, a.Signed.Hash(), err)
		if a.Answer.Refused() { // this time it may have been taken
			failed = errors.Join(failed, s.store.sent(context.WithoutCancel(ctx), a.Signed.Hash(), a.SentAt, refusal.Unheard))
		}
		return failed
	}
	if err != nil {
		answer = s.refusal(a.Signed, err)
	}
	return s.store.sent(ctx, a.Signed.Hash(), s.now(), answer)
}

// again broadcasts what waits of a transaction: the newest version and, where that one is refused, those that somebody may have, or
// of which nothing was heard; where there are many, one of the others, too: what is asked may have come down to it. Any of them may
// be mined, and only one.
func (s *signing) again(ctx context.Context, tx Tx, newest Attempt) error {
	err, turn := s.broadcast(ctx, newest), -1
	if len(tx.Attempts) >= maxVersions {
		turn = rand.IntN(len(tx.Attempts))
	}
	for i, a := range tx.Attempts {
		if newest.Answer.Refused() && a.Signed.Nonce() == tx.Nonce && (i == turn || !a.Answer.Refused()) {
			err = errors.Join(err, s.broadcast(ctx, a))
		}
	}
	return err
}

// refusal says why a node does not take a version, and what to do: once at warn level for each reason.
func (s *signing) refusal(tx *types.Transaction, err error) refusal.Answer {
	text, level := line(err.Error()), slog.LevelWarn
	texts := []string{err.Error()}
	if several, ok := err.(interface{ Unwrap() []error }); ok { // see Endpoints.SendTransaction
		texts = nil
		for _, one := range several.Unwrap() {
			texts = append(texts, one.Error())
		}
	}
	answer, advice := refusal.All(texts)
	s.mu.Lock()
	if s.refusals == nil || len(s.refusals) >= maxAges {
		s.refusals = make(map[common.Hash]string)
	}
	if answer == refusal.Taken || s.refusals[tx.Hash()] == text {
		level = slog.LevelDebug
	}
	s.refusals[tx.Hash()] = text
	s.mu.Unlock()
	s.log.Log(context.Background(), level, "the node refuses a transaction; it is tried again", "sender", s.address(), "nonce", tx.Nonce(),
		"hash", tx.Hash(), "reason", text, "do", advice)
	return answer
}

// useUp sends what does nothing but use a nonce up. The caller holds submitting.
func (s *signing) useUp(ctx context.Context, chain, nonce uint64, f fees) error {
	tx, err := s.write(ctx, chain, nonce, Call{Kind: Fill, To: s.address()}, fillGas, f)
	if err != nil {
		return err
	}
	return s.broadcast(ctx, tx.Attempts[0])
}
