// Package ticketscheme is a third scheme, of tests: a ticket is one voucher for the whole sum, up front, and gives GPUs until that is used
// up. It shows what it costs to add a way to be paid, and is in no program.
package ticketscheme

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/keyed"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/scheme"
	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Header carries a ticket in a request as JSON, and in a 402 the offer under which one is taken.
const Header = "Gpu-Ticket"

// Ticket is a voucher and the channel of the escrow that it is signed for, which its payer opened.
type Ticket struct {
	Payer     wire.Address `json:"payer"`
	Salt      common.Hash  `json:"salt"`
	Sum       wire.Amount  `json:"sum"` // base units of all tickets on the channel
	Signature wire.Bytes   `json:"signature"`
}

// Deps is what the scheme needs of the provider that it is mounted on.
type Deps struct {
	Tick, RecordEvery time.Duration
	Confirmations     uint64 // before a deposit counts

	DB     *store.DB
	Store  leasestore.Store
	Escrow *chain.Escrow
	Payee  *channel.Payee
	Starts *keyed.Mutex // one lease start at a time on a channel

	Leases scheme.Leases
	GPUs   scheme.GPUs
	Outbox scheme.Outbox
	Front  scheme.Front
}

// Scheme takes tickets.
type Scheme struct{ Deps }

//go:embed migrations/*.sql
var migrations embed.FS

// New opens the table of the leases that tickets pay.
func New(ctx context.Context, deps Deps) (*Scheme, error) {
	files, err := fs.Sub(migrations, "migrations")
	if err == nil {
		err = deps.DB.Migrate(ctx, "tickets", files)
	}
	return &Scheme{deps}, err
}

// Path is where tickets are posted.
func (d *Scheme) Path() string { return "/ticket" }

// Pays reports whether a request shows a ticket.
func (d *Scheme) Pays(r *http.Request) bool { return r.Header.Get(Header) != "" }

// Offer names the offer that says what a GPU-second costs, and in which contract whom to pay.
func (d *Scheme) Offer(h http.Header, r *http.Request) error {
	offer, err := d.Leases.Of(scheme.ClassOf(r))
	if err == nil {
		h.Set(Header, "offer="+offer.Hash.Hex())
	}
	return err
}

// Takes has a lease that a ticket paid for run on what tickets are signed for.
func (d *Scheme) Takes(l *lease.Lease) (bool, error) {
	var n int
	db := d.DB.View()
	if err := db.Get(&n, db.Rebind(`SELECT COUNT(*) FROM tickets WHERE lease = ?`), l.ID.Hex()); err != nil || n == 0 {
		return false, err
	}
	s, err := d.Payee.State(context.Background(), l.Terms.ID())
	if err == nil {
		l.Prepay(uint64(len(l.Allocation.Devices))*uint64(d.RecordEvery), d.worth(l, s))
	}
	return true, err
}

// Notice tells a lease of tickets that were taken at other gateways.
func (d *Scheme) Notice(ctx context.Context, l *lease.Lease) error {
	if l.Credit.Postpaid() || d.Payee.Domain.Holds(l.Terms) != nil {
		return nil
	}
	s, err := d.Payee.State(ctx, l.Terms.ID())
	if err == nil {
		l.Balance.Reserve(d.worth(l, s))
	}
	return err
}

// worth is what a lease may owe that its channel's tickets pay for: their sum is used up to the last base unit, so that the two ticks that
// every lease keeps free are beside it.
func (d *Scheme) worth(l *lease.Lease, s channel.State) uint256.Int {
	worth := s.Accepted
	if ahead, err := l.Price.Charge(uint64(len(l.Allocation.Devices)) * uint64(2*d.Tick)); err == nil && !ahead.IsZero() {
		worth.Add(&worth, ahead.SubUint64(&ahead, 1))
	}
	return worth
}

// ServePaid begins a lease for a ticket, or has the one go on that runs on its channel.
func (d *Scheme) ServePaid(w http.ResponseWriter, r *http.Request) {
	l, err := d.serve(r)
	if err != nil {
		d.Front.Refuse(w, r, err)
		return
	}
	defer d.Leases.Detach(l)
	serve.JSON(w, http.StatusOK, wire.Lease{LeaseID: l.ID, ChannelID: l.Terms.ID(), OfferHash: l.Offer.Hash, Devices: l.Allocation.Devices,
		OwedBefore: wire.NewAmount(l.OwedBefore), State: string(l.Status.State()), Access: l.Allocation.Access, Binding: l.Binding})
}

func (d *Scheme) serve(r *http.Request) (*lease.Lease, error) {
	var t Ticket
	if err := json.Unmarshal([]byte(r.Header.Get(Header)), &t); err != nil {
		return nil, fmt.Errorf("%w: a ticket: %w", wire.ErrMalformed, err)
	}
	gpus, err := scheme.GPUsOf(r)
	if err != nil {
		return nil, err
	}
	offer, err := d.Leases.Of(scheme.ClassOf(r))
	if err != nil {
		return nil, err
	}
	terms := channel.Terms{ChainID: offer.ChainID, Escrow: common.Address(offer.Escrow), Payer: common.Address(t.Payer),
		Payee: common.Address(offer.Payee), Token: common.Address(offer.Token), Salt: t.Salt}
	voucher := channel.Voucher{ChannelID: terms.ID(), Cumulative: t.Sum.Int, Signature: t.Signature}
	if err := d.Payee.Verify(r.Context(), terms, voucher); err != nil {
		return nil, err
	}
	defer d.Starts.Lock(terms.ID())()
	s, err := d.known(r.Context(), terms)
	if err != nil {
		return nil, err
	}
	l, err := d.Leases.Serving(r.Context(), s)
	if err != nil {
		return nil, err
	}
	if l == nil {
		return d.begin(r.Context(), s, voucher, offer, gpus)
	}
	if _, err := d.take(r.Context(), voucher); err != nil {
		d.Leases.Detach(l)
		return nil, err
	}
	return l, d.Notice(r.Context(), l)
}

// begin keeps GPUs for a ticket, has it on disk, and then begins its lease.
func (d *Scheme) begin(ctx context.Context, s channel.State, voucher channel.Voucher, offer wire.SignedOffer, gpus int) (*lease.Lease, error) {
	price, err := offer.Price()
	if err != nil {
		return nil, err
	}
	least, err := wire.MinLease(price, gpus, d.RecordEvery, d.Tick)
	if err := errors.Join(err, d.Leases.TakesLeases(), d.Outbox.IsWhole(ctx)); err != nil {
		return nil, err
	}
	if least.Add(&least, &s.Spent); voucher.Cumulative.Lt(&least) {
		return nil, wire.PaymentInsufficient.With("a ticket on channel %s for %d GPU(s) is for %s at least", s.ID, gpus, least.Dec())
	}
	seat, err := d.GPUs.Seated(ctx, nil, offer.ClassID(), s.ID, gpus)
	if err != nil {
		return nil, err
	}
	defer seat.Release()
	if s, err = d.take(ctx, voucher); err != nil {
		return nil, err
	}
	begins, carried, err := d.Store.Carry(ctx, s)
	if err != nil {
		return nil, err
	}
	s.Spent = begins
	row := leasestore.Row{ID: seat.Lease.Hex(), Channel: s.ID.Hex(), Offer: offer.Hash.Hex(), GPUs: gpus, Allocation: "{}",
		OwedBefore: begins.Dec(), Carried: int64(carried), State: wire.StateAllocating, StartedAt: time.Now().UnixNano()}
	err = d.DB.Update(ctx, func(tx *sqlx.Tx) error {
		_, err := tx.ExecContext(ctx, tx.Rebind(`INSERT INTO tickets (lease) VALUES (?)`), row.ID)
		return err
	})
	if err != nil {
		return nil, err
	}
	return d.Leases.BeginLease(ctx, row, s, offer, nil)
}

// take counts a ticket, once: after a settlement everybody can read it.
func (d *Scheme) take(ctx context.Context, voucher channel.Voucher) (channel.State, error) {
	receipt, err := d.Payee.Accept(ctx, voucher)
	if err == nil && receipt.Outcome != channel.Accepted {
		err = wire.VerificationFailed.With("the ticket on channel %s was shown before: sign one for a higher sum", voucher.ChannelID)
	}
	if err == nil {
		d.Leases.Paid(receipt.State)
	}
	return receipt.State, err
}

// known returns a channel as it is kept, or takes it up from the chain.
func (d *Scheme) known(ctx context.Context, terms channel.Terms) (s channel.State, err error) {
	if s, err = d.Payee.State(ctx, terms.ID()); !errors.Is(err, channel.ErrUnknown) {
		return s, err
	}
	err = d.Escrow.Record(func() error {
		views, _, err := d.Escrow.Fresh(ctx, []common.Hash{terms.ID()}, d.Confirmations)
		if err == nil && (views[0].View.Deposit.IsZero() || !views[0].View.Settled.IsZero()) {
			err = wire.VerificationFailed.With("channel %s is not open, or was used before and is not known here: open another", terms.ID())
		}
		if err == nil {
			s, err = d.Payee.Register(ctx, terms, views[0].View)
		}
		return err
	})
	return s, err
}
