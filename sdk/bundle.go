package sdk

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/exactjson"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/database"
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

// Export returns what this provider kept about a channel.
func (p *Provider) Export(ctx context.Context, channelID common.Hash) (*Bundle, error) {
	return exportPayee(ctx, p.db, p.sender.Store, channelID)
}

// Export returns what this renter kept about a channel.
func (r *Renter) Export(ctx context.Context, channelID common.Hash) (*Bundle, error) {
	return exportPayer(ctx, r.db, r.sender.Store, channelID)
}

// ExportFile returns what a provider's or a renter's database kept about a
// channel, or about the channel of a lease; with the zero id about its only
// channel, or a renter's newest. The program that owns the database may run meanwhile.
func ExportFile(ctx context.Context, path string, id common.Hash) (*Bundle, error) {
	db, err := database.Read(ctx, path, map[string]fs.FS{"provider": providerMigrations, "renter": renterMigrations, "x402": x402Migrations})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	txs, err := chain.OpenStore(ctx, db)
	if err != nil {
		return nil, err
	}
	if channelID, ok := channelOf(ctx, db, id); ok {
		id = channelID
	}
	if id == (common.Hash{}) {
		if id, err = unnamed(ctx, db); err != nil {
			return nil, fmt.Errorf("database %s: %w", db.Path(), err)
		}
	}
	b, err := exportPayee(ctx, db, txs, id)
	if errors.Is(err, channel.ErrUnknown) {
		b, err = exportPayer(ctx, db, txs, id)
	}
	if errors.Is(err, channel.ErrUnknown) {
		return nil, fmt.Errorf("database %s knows no channel or lease %s: %w", db.Path(), id, channel.ErrUnknown)
	}
	return b, err
}

// maxNamed bounds the channels that an error names.
const maxNamed = 20

// unnamed is the channel that an export is of where nobody names one: the only one, or a renter's newest.
func unnamed(ctx context.Context, db *store.DB) (common.Hash, error) {
	payee, err := db.Payee().List(ctx)
	payer, more := db.Payer().List(ctx)
	if err := errors.Join(err, more); err != nil {
		return common.Hash{}, err
	}
	switch {
	case len(payee)+len(payer) == 0:
		return common.Hash{}, fmt.Errorf("%w: it knows no channel", channel.ErrUnknown)
	case len(payee) == 0:
		return newestOf(ctx, rentalStore{db}, payer)
	case len(payee)+len(payer) == 1:
		return payee[0].ID, nil
	}
	var ids []common.Hash
	for _, s := range payee[:min(len(payee), maxNamed)] {
		ids = append(ids, s.ID)
	}
	return common.Hash{}, fmt.Errorf("it knows %d channels; name one of them: %s", len(payee)+len(payer), ids)
}

// newestOf is the channel whose rental was made last; one of x402, which is of no rental, counts by when it changed last.
func newestOf(ctx context.Context, rentals rentalStore, channels []channel.PayerState) (common.Hash, error) {
	made := make(map[common.Hash]int64)
	if len(channels) > 1 {
		rows, err := rentals.list(ctx, "")
		if err != nil {
			return common.Hash{}, err
		}
		for _, row := range rows {
			made[row.Terms.ID()] = row.Made
		}
	}
	newest := slices.MaxFunc(channels, func(a, b channel.PayerState) int {
		since := func(s channel.PayerState) int64 { return cmp.Or(made[s.ID], s.UpdatedAt.Unix()) }
		return cmp.Or(cmp.Compare(since(a), since(b)), a.UpdatedAt.Compare(b.UpdatedAt))
	})
	return newest.ID, nil
}

// channelOf finds the channel of a lease in either side's tables; those of the
// other side do not exist.
func channelOf(ctx context.Context, db *store.DB, lease common.Hash) (common.Hash, bool) {
	for _, query := range []string{`SELECT channel FROM leases WHERE id = ?`, `SELECT channel FROM rental_records WHERE lease = ? LIMIT 1`,
		`SELECT channel FROM x402_records WHERE lease = ? LIMIT 1`} {
		var id string
		if db.View().GetContext(ctx, &id, db.View().Rebind(query), lease.Hex()) == nil {
			return common.HexToHash(id), true
		}
	}
	return common.Hash{}, false
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

func exportPayee(ctx context.Context, db *store.DB, txs *chain.Store, id common.Hash) (*Bundle, error) {
	s, err := db.Payee().Load(ctx, id)
	if err != nil {
		return nil, err
	}
	b, err := newBundle(ctx, txs, KeptByPayee, s.Terms)
	if err != nil {
		return nil, err
	}
	b.Deposit, b.Settled = wire.NewAmount(s.Deposit), wire.NewAmount(s.Settled)
	if len(s.Signature) > 0 {
		b.Vouchers = append(b.Vouchers, BundleVoucher{wire.NewAmount(s.Accepted), s.Signature})
	}
	leases := leaseStore{db: db}
	rows, err := leases.ofChannel(ctx, id)
	if err != nil {
		return nil, err
	}
	for _, row := range rows {
		lease, err := leases.export(ctx, row)
		if err != nil {
			return nil, fmt.Errorf("lease %s: %w", row.ID, err)
		}
		b.Leases = append(b.Leases, lease)
	}
	b.Evidence, err = leases.shown(ctx, id)
	return b, err
}

// ofChannel returns the leases of a channel in the order in which they began.
func (s leaseStore) ofChannel(ctx context.Context, channelID common.Hash) ([]leaseRow, error) {
	var rows []leaseRow
	db := s.db.View()
	err := db.SelectContext(ctx, &rows, db.Rebind(`SELECT `+leaseColumns+` FROM leases WHERE channel = ? ORDER BY started_at, id`), channelID.Hex())
	if err != nil {
		return nil, fmt.Errorf("leases of channel %s: %w", channelID, err)
	}
	return rows, nil
}

func (s leaseStore) export(ctx context.Context, row leaseRow) (BundleLease, error) {
	id := common.HexToHash(row.ID)
	offer, err := s.offer(ctx, common.HexToHash(row.Offer))
	if err != nil {
		return BundleLease{}, err
	}
	a, err := row.allocation()
	if err != nil {
		return BundleLease{}, err
	}
	before, err := channel.ParseAmount(row.OwedBefore)
	if err != nil {
		return BundleLease{}, err
	}
	binding, err := row.binding()
	if err != nil {
		return BundleLease{}, err
	}
	lease := BundleLease{ID: id, Offer: offer.Document, Devices: a.Devices, OwedBefore: wire.NewAmount(before), Binding: binding}
	const page = 1000
	for after := uint64(0); ; {
		records, err := s.records(ctx, id, after, page)
		if err != nil {
			return lease, err
		}
		lease.Records = append(lease.Records, records...)
		if len(records) < page {
			return lease, nil
		}
		after = records[page-1].Sequence
	}
}

func exportPayer(ctx context.Context, db *store.DB, txs *chain.Store, id common.Hash) (*Bundle, error) {
	s, err := db.Payer().Load(ctx, id)
	if err != nil {
		return nil, err
	}
	rentals := rentalStore{db}
	var row rentalRow // none of a channel of x402
	if s.Terms.Scheme != channel.BatchSettlement {
		row, err = rentals.load(ctx, id)
	}
	if err != nil {
		return nil, err
	}
	b, err := newBundle(ctx, txs, KeptByPayer, s.Terms)
	if err != nil {
		return nil, err
	}
	b.Deposit, b.Settled = wire.NewAmount(s.Deposit), wire.NewAmount(s.Settled)
	if len(s.Signature) > 0 {
		b.Vouchers = append(b.Vouchers, BundleVoucher{wire.NewAmount(s.Signed), s.Signature})
	}
	if b.X402 != nil {
		err = slates{rentals}.export(ctx, b)
	} else {
		err = row.exportLease(ctx, rentals, b)
	}
	if err != nil {
		return nil, err
	}
	kept, err := rentals.evidence(ctx, id)
	if err != nil {
		return nil, err
	}
	for _, e := range kept {
		b.Evidence = append(b.Evidence, BundleEvidence{Reason: e.Reason, At: e.At.UTC(), Document: redactExport(string(e.Document), row.Secret, string(row.Access))})
	}
	proofs, err := rentals.proofs(ctx, id)
	for _, p := range proofs { // nothing is cut out of one: what a provider calls its secret may be a part of it, and no more
		b.Evidence = append(b.Evidence, BundleEvidence{Reason: EquivocationKind, At: time.UnixMilli(p.At).UTC(), Document: p.Document})
	}
	return b, err
}

// exportLease adds the rental's lease, if it came to one, and what was prepaid.
func (row rentalRow) exportLease(ctx context.Context, rentals rentalStore, b *Bundle) error {
	if row.found() {
		return nil // its lease and what was prepaid went with the database
	}
	offer, err := wire.ParseOffer(row.Offer)
	if err != nil {
		return fmt.Errorf("channel %s: its offer on disk: %w", b.Channel, err)
	}
	price, err := offerPrice(offer.Offer)
	if err != nil {
		return err
	}
	ahead, err := price.Charge(uint64(row.Options.Prepay))
	if err != nil {
		return err
	}
	b.Prepaid = wire.NewAmount(ahead)
	leases := row.Past
	if row.Lease != (common.Hash{}) {
		leases = append(slices.Clone(leases), pastLease{ID: row.Lease, Offer: row.Offer, Devices: row.Devices, OwedBefore: row.OwedBefore, Binding: row.Binding})
	}
	records, err := rentals.records(ctx, b.Channel)
	for _, l := range leases {
		b.Leases = append(b.Leases, BundleLease{
			ID: l.ID, Offer: l.Offer, Devices: l.Devices, OwedBefore: wire.NewAmount(l.OwedBefore), Binding: l.Binding, Records: of(l.ID, records),
		})
	}
	return err
}
