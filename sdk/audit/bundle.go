package audit

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/exactjson"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/merkle"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Kind is what a bundle calls itself, so that a file says what it is.
const Kind = "gpupay bundle"

// The sides that keep a bundle.
const (
	KeptByPayee = "payee"
	KeptByPayer = "payer"
)

// Bundle is everything one side kept about a channel: what was offered, used,
// signed for and paid. It holds no secret, and Verify needs nothing else,
// so that a payer, a payee and anybody they argue before can check it alone.
type Bundle struct {
	Kind    string      `json:"kind"`
	Version int         `json:"version"` // 1
	Keeper  string      `json:"keeper"`  // whose database it comes from: KeptByPayee or KeptByPayer
	Channel common.Hash `json:"channel"`
	Terms   wire.Terms  `json:"terms"`
	X402    *X402       `json:"x402,omitempty"` // of a channel of x402; nil: it is one of our own escrow

	Deposit wire.Amount `json:"deposit"` // base units, as the keeper last saw it on the chain
	Settled wire.Amount `json:"settled"` // base units, likewise
	Prepaid wire.Amount `json:"prepaid"` // base units that the payer was willing to sign for ahead of records; only it knows

	Leases       []Lease       `json:"leases"`       // in the order in which they ran
	Vouchers     []Voucher     `json:"vouchers"`     // oldest first; a database keeps only the newest, which replaces all before it
	Transactions []Transaction `json:"transactions"` // the keeper's own about this channel, oldest first
	Evidence     []Evidence    `json:"evidence,omitempty"`
}

// X402 is what a channel of x402 has in its terms beside the others.
type X402 struct {
	ReceiverAuthorizer wire.Address `json:"receiverAuthorizer"`
	WithdrawDelay      uint64       `json:"withdrawDelay"` // seconds
}

// terms are the channel's terms, of whichever scheme.
func (b *Bundle) terms() channel.Terms {
	t := b.Terms.Channel()
	if b.X402 != nil {
		t.Scheme, t.PayeeAuthorizer, t.WithdrawDelay = channel.BatchSettlement, common.Address(b.X402.ReceiverAuthorizer), b.X402.WithdrawDelay
	}
	return t
}

// Lease is one lease with its usage records, in order, each with the
// evidence that it hashes.
type Lease struct {
	ID         common.Hash             `json:"id"`
	Offer      json.RawMessage         `json:"offer"` // as it was published, its signature inside
	Devices    []string                `json:"devices"`
	OwedBefore wire.Amount             `json:"owedBefore"`        // base units the channel owed when the lease began
	Binding    *wire.MeterBinding      `json:"binding,omitempty"` // whose key signs the records; nil: the one that the offer names
	Records    []metering.SignedRecord `json:"records"`
	Proofs     []Proof                 `json:"proofs,omitempty"` // of samples, where somebody asked for some
}

// Proof shows one reading that a record was counted from.
type Proof struct {
	Sequence uint64       `json:"sequence,string"` // of the record
	Proof    merkle.Proof `json:"proof"`
}

// Voucher is a payer's signed word for a cumulative amount.
type Voucher struct {
	Cumulative wire.Amount `json:"cumulative"` // base units
	Signature  wire.Bytes  `json:"signature"`
}

// Transaction is one that the keeper sent about the channel.
type Transaction struct {
	Kind      chain.Kind  `json:"kind"`
	Hash      common.Hash `json:"hash"` // zero while it is not mined
	Block     uint64      `json:"block"`
	Succeeded bool        `json:"succeeded"`
}

// Evidence is something that the payer was sent and refused.
type Evidence struct {
	Reason   string    `json:"reason"`
	At       time.Time `json:"at"`
	Document string    `json:"document"` // as it came
}

// Parse reads an exported bundle. It checks the form and nothing else.
func Parse(document []byte) (*Bundle, error) {
	var b Bundle
	if err := exactjson.Unmarshal(document, &b); err != nil {
		return nil, fmt.Errorf("bundle does not parse: %w", err)
	}
	if b.Kind != Kind || b.Version != 1 {
		return nil, fmt.Errorf("this is %.40q version %d, a bundle is %q version 1", b.Kind, b.Version, Kind)
	}
	return &b, nil
}

func New(ctx context.Context, txs *chain.Store, keeper string, t channel.Terms) (*Bundle, error) {
	b := &Bundle{
		Kind: Kind, Version: 1, Keeper: keeper, Channel: t.ID(), Terms: wire.NewTerms(t),
		Leases: []Lease{}, Vouchers: []Voucher{}, Transactions: []Transaction{},
	}
	if t.Scheme == channel.BatchSettlement {
		b.X402 = &X402{ReceiverAuthorizer: wire.Address(t.PayeeAuthorizer), WithdrawDelay: t.WithdrawDelay}
	}
	sent, err := (&chain.Sender{Store: txs}).Find(ctx, t.ID())
	for _, tx := range sent {
		b.Transactions = append(b.Transactions, Transaction{Kind: tx.Call.Kind, Hash: tx.Hash, Block: tx.Block, Succeeded: tx.Succeeded})
	}
	return b, err
}
