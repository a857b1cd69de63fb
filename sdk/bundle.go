package sdk

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/exactjson"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
)

// BundleKind is what a bundle calls itself, so that a file says what it is.
const BundleKind = "gpupay bundle"

// The sides that keep a bundle.
const (
	KeptByPayee = "payee"
	KeptByPayer = "payer"
)

// Bundle is everything one side kept about a channel: what was offered, used,
// signed for and paid. It holds no secret, and VerifyBundle needs nothing else,
// so that a payer, a payee and anybody they argue before can check it alone.
type Bundle struct {
	Kind    string      `json:"kind"`
	Version int         `json:"version"` // 1
	Keeper  string      `json:"keeper"`  // whose database it comes from: KeptByPayee or KeptByPayer
	Channel common.Hash `json:"channel"`
	Terms   wire.Terms  `json:"terms"`
	X402    *BundleX402 `json:"x402,omitempty"` // of a channel of x402; nil: it is one of our own escrow

	Deposit wire.Amount `json:"deposit"` // base units, as the keeper last saw it on the chain
	Settled wire.Amount `json:"settled"` // base units, likewise
	Prepaid wire.Amount `json:"prepaid"` // base units that the payer was willing to sign for ahead of records; only it knows

	Leases       []BundleLease       `json:"leases"`       // in the order in which they ran
	Vouchers     []BundleVoucher     `json:"vouchers"`     // oldest first; a database keeps only the newest, which replaces all before it
	Transactions []BundleTransaction `json:"transactions"` // the keeper's own about this channel, oldest first
	Evidence     []BundleEvidence    `json:"evidence,omitempty"`
}

// BundleX402 is what a channel of x402 has in its terms beside the others.
type BundleX402 struct {
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

// BundleLease is one lease with its usage records, in order, each with the
// evidence that it hashes.
type BundleLease struct {
	ID         common.Hash             `json:"id"`
	Offer      json.RawMessage         `json:"offer"` // as it was published, its signature inside
	Devices    []string                `json:"devices"`
	OwedBefore wire.Amount             `json:"owedBefore"`        // base units the channel owed when the lease began
	Binding    *wire.MeterBinding      `json:"binding,omitempty"` // whose key signs the records; nil: the one that the offer names
	Records    []metering.SignedRecord `json:"records"`
	Proofs     []BundleProof           `json:"proofs,omitempty"` // of samples, where somebody asked for some
}

// BundleProof shows one reading that a record was counted from.
type BundleProof struct {
	Sequence uint64         `json:"sequence,string"` // of the record
	Proof    metering.Proof `json:"proof"`
}

// BundleVoucher is a payer's signed word for a cumulative amount.
type BundleVoucher struct {
	Cumulative wire.Amount `json:"cumulative"` // base units
	Signature  wire.Bytes  `json:"signature"`
}

// BundleTransaction is one that the keeper sent about the channel.
type BundleTransaction struct {
	Kind      chain.Kind  `json:"kind"`
	Hash      common.Hash `json:"hash"` // zero while it is not mined
	Block     uint64      `json:"block"`
	Succeeded bool        `json:"succeeded"`
}

// BundleEvidence is something that the payer was sent and refused.
type BundleEvidence struct {
	Reason   string    `json:"reason"`
	At       time.Time `json:"at"`
	Document string    `json:"document"` // as it came
}

// ParseBundle reads an exported bundle. It checks the form and nothing else.
func ParseBundle(document []byte) (*Bundle, error) {
	var b Bundle
	if err := exactjson.Unmarshal(document, &b); err != nil {
		return nil, fmt.Errorf("bundle does not parse: %w", err)
	}
	if b.Kind != BundleKind || b.Version != 1 {
		return nil, fmt.Errorf("this is %.40q version %d, a bundle is %q version 1", b.Kind, b.Version, BundleKind)
	}
	return &b, nil
}

func newBundle(ctx context.Context, txs *chain.Store, keeper string, t channel.Terms) (*Bundle, error) {
	b := &Bundle{
		Kind: BundleKind, Version: 1, Keeper: keeper, Channel: t.ID(), Terms: wire.NewTerms(t),
		Leases: []BundleLease{}, Vouchers: []BundleVoucher{}, Transactions: []BundleTransaction{},
	}
	if t.Scheme == channel.BatchSettlement {
		b.X402 = &BundleX402{ReceiverAuthorizer: wire.Address(t.PayeeAuthorizer), WithdrawDelay: t.WithdrawDelay}
	}
	sent, err := (&chain.Sender{Store: txs}).Find(ctx, t.ID())
	for _, tx := range sent {
		b.Transactions = append(b.Transactions, BundleTransaction{Kind: tx.Call.Kind, Hash: tx.Hash, Block: tx.Block, Succeeded: tx.Succeeded})
	}
	return b, err
}
