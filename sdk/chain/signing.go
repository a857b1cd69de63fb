package chain

import (
	"context"
	"fmt"
	"log/slog"
	"math/big"
	"strings"
	"sync"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
)

// signing makes the versions of transactions and hands them to the node: each is on disk, and its nonce in the marks, before
// anybody else has it. Which nonce, and at what fee, is for its callers to say.
type signing struct {
	*account
	waits      *waits
	submitting turn                   // held from choosing a nonce until its transaction is in the outbox: one nonce at a time
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
	if len(signature) != signatureLength || signature[64] < 27 {
		return nil, fmt.Errorf("the signer of %s gave a signature that is not 65 bytes with v 27 or 28", s.address())
	}
	raw := append([]byte(nil), signature...)
	raw[64] -= 27
	return unsigned.WithSignature(signer, raw)
}

// broadcast hands a version to the node and remembers when. A node that refuses it may know it already, or know better:
// what became of it is read from the chain, not from the refusal, which is said once.
func (s *signing) broadcast(ctx context.Context, a Attempt) error {
	err := s.backend.SendTransaction(ctx, a.Signed)
	if err != nil && isTransport(err) {
		return fmt.Errorf("%w: broadcasting %s: %w", ErrUnreachable, a.Signed.Hash(), err)
	}
	if err != nil {
		s.refusal(a.Signed, err)
	}
	return s.store.sent(ctx, a.Signed.Hash(), s.now())
}

// refusal says why a node does not take a version, and what to do: once at warn level for each reason.
func (s *signing) refusal(tx *types.Transaction, err error) {
	text, level := line(err.Error()), slog.LevelWarn
	advice, quiet := adviceOn(text)
	s.mu.Lock()
	if s.refusals == nil || len(s.refusals) >= maxAges {
		s.refusals = make(map[common.Hash]string)
	}
	if quiet || s.refusals[tx.Hash()] == text {
		level = slog.LevelDebug
	}
	s.refusals[tx.Hash()] = text
	s.mu.Unlock()
	s.log.Log(context.Background(), level, "the node refuses a transaction; it is tried again", "sender", s.address(), "nonce", tx.Nonce(),
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

// useUp sends what does nothing but use a nonce up. The caller holds submitting.
func (s *signing) useUp(ctx context.Context, chain, nonce uint64, f fees) error {
	tx, err := s.write(ctx, chain, nonce, Call{Kind: Fill, To: s.address()}, fillGas, f)
	if err != nil {
		return err
	}
	return s.broadcast(ctx, tx.Attempts[0])
}
