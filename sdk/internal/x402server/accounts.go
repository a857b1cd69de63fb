package x402server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/admit"
	"github.com/gpupay/gpupay/sdk/internal/outcome"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// Accounts knows the channels of x402: what each was charged and may be, what the chain says of it, and what of its
// vouchers everybody can read. It begins and ends no lease.
type Accounts struct {
	DB       *store.DB
	Book     *channel.Payee // of x402's channels
	Journal  Journal
	Contract *chain.BatchSettlement
	Sender   *chain.Sender
	Limiter  *admit.Limiter
	Whole    func(context.Context) error // fails while transactions may be missing in the outbox
	Looked   Looks
	Log      *slog.Logger

	Key           common.Address // that is paid
	PastKeys      []channel.Signer
	Token         common.Address
	Name, Version string // of the token's EIP-712 domain
	Confirmations uint64
	Poll          time.Duration

	Prices        []metering.Price // of all classes
	MinDeposit    uint256.Int      // base units
	LeastRefund   uint256.Int      // base units that a part must have
	Window, Slack time.Duration    // of GPU time that a request pays for, and that a lease goes on after it
	MaxTimeout    time.Duration    // of a deposit's authorization
	WithdrawDelay time.Duration
}

// PastOffer is an offer as it was made with a past key; ok is false if the address is of none.
func (a *Accounts) PastOffer(offer x402.Requirements, payee wire.Address) (past x402.Requirements, ok bool) {
	offer.PayTo, offer.Extra.ReceiverAuthorizer = payee, payee
	return offer, channel.SignerOf(a.PastKeys, common.Address(payee)) != nil
}

// Ceiling is what a request asks for that may use so much time of so many GPUs:
// the price, and one base unit that is never charged (see Supersede).
func (a *Accounts) Ceiling(price metering.Price, gpus int, wall time.Duration) (uint256.Int, error) {
	slack, err := price.Charge(uint64(gpus) * uint64(a.Slack))
	if err == nil && slack.IsZero() {
		err = errors.New("provider: X402: the price of X402.Slack is less than one base unit of the token")
	}
	if err != nil {
		return slack, err
	}
	most, err := price.Charge(uint64(gpus) * uint64(wall))
	most.AddUint64(&most, 1)
	return most, err
}

// NewRoute is what a request for /tick or /lease is paid as, under an offer.
func (a *Accounts) NewRoute(kind string, offer wire.SignedOffer, gpus int) (Route, error) {
	return a.RouteOf(kind, offer, gpus, a.Window+a.Slack)
}

// RouteOf is what a request is paid as that may use so much time.
func (a *Accounts) RouteOf(kind string, offer wire.SignedOffer, gpus int, wall time.Duration) (Route, error) {
	price, err := offer.Price()
	if err != nil {
		return Route{}, err
	}
	if offer.Share != nil {
		return Route{}, wire.NotServed.With("GPUs of this class are shared by slots, which are paid by sessions here, and not by x402")
	}
	most, err := a.Ceiling(price, gpus, wall)
	return Route{Kind: kind, Class: offer.ClassID(), Price: price, GPUs: gpus, Most: most}, err
}

// SlotRoute is what a request is paid as that holds a slot of the offer's GPUs for so long at most.
func (a *Accounts) SlotRoute(offer wire.SignedOffer, wall time.Duration) (Route, error) {
	price, err := offer.Price()
	if err != nil {
		return Route{}, err
	}
	if offer.Share == nil {
		return Route{}, wire.NotServed.With("GPUs of this class are not shared by slots")
	}
	share := metering.Share{GPUs: offer.Share.GPUs, Slots: offer.Share.Slots}
	route := Route{Kind: KindMetered, Class: offer.ClassID(), Price: price, GPUs: int(share.GPUs), Share: share}
	route.Most, err = route.cost(wall)
	route.Most.AddUint64(&route.Most, 1)
	return route, err
}

// Offered is what a client must accept for a route. It is the same in every
// answer: clients echo it, and what differs is refused.
func (a *Accounts) Offered(route Route) x402.Requirements {
	least := wire.NewAmount(a.MinDeposit)
	us := wire.Address(a.Key)
	return x402.Requirements{
		Network: x402.Network(a.Contract.ChainID()), Amount: wire.NewAmount(route.Most), Asset: wire.Address(a.Token), PayTo: us,
		MaxTimeoutSeconds: uint64(a.MaxTimeout / time.Second),
		Extra: x402.Extra{
			Name: a.Name, Version: a.Version, AssetTransferMethod: x402.TransferERC3009,
			ReceiverAuthorizer: us, WithdrawDelay: uint64(a.WithdrawDelay / time.Second), MinDeposit: &least,
		},
	}
}

// Find returns the channel that a payment is from, as we know it or, of one that we do not know, as the chain does.
func (a *Accounts) Find(ctx context.Context, r *PaidRequest) (Account, error) {
	s, err := a.Book.State(ctx, r.ID)
	switch {
	case err == nil:
		if s, err = a.look(ctx, s); err != nil {
			return Account{}, err
		}
		return a.Account(ctx, s)
	case !errors.Is(err, channel.ErrUnknown):
		return Account{}, err
	case !a.Limiter.Challenge(r.Request): // it costs a question to the chain
		return Account{}, wire.TooMany.With("too many requests for channels that are not known here: wait a second")
	}
	views, _, err := a.Contract.Confirmed(ctx, []common.Hash{r.ID}, a.Confirmations)
	if err != nil {
		return Account{}, err
	}
	if views[0].View.Deposit.IsZero() {
		return Account{State: channel.State{ID: r.ID, Terms: r.Terms, Status: channel.Open}}, nil
	}
	if s, err = a.look(ctx, channel.State{ID: r.ID, Terms: r.Terms}); err != nil {
		return Account{}, err
	}
	return a.Account(ctx, s)
}

// Account is a known channel with what x402 counts as charged. What the chain has
// claimed was charged once, whether or not we remember it.
func (a *Accounts) Account(ctx context.Context, s channel.State) (Account, error) {
	if s.Settled.Gt(&s.Spent) {
		var err error
		if s, err = a.Book.Charge(ctx, s.ID, s.Settled); err != nil {
			return Account{}, err
		}
	}
	note, err := a.Journal.Balance(ctx, s.ID)
	t := Account{State: s, Balance: note, Charged: u256.Min(s.Spent, note.Reserved), Known: true}
	for _, more := range []uint256.Int{note.Prepaid, s.Settled} {
		if more.Gt(&t.Charged) {
			t.Charged = more
		}
	}
	return t, err
}

// StillFits reports whether a voucher over what its client was told pays for a window of what is charged by now: a
// lease that used its slack up meanwhile is charged for that with this request, within its amount.
func (a *Accounts) StillFits(ctx context.Context, r *PaidRequest, tab Account) (bool, error) {
	base := r.Based()
	if !r.Told || r.Route.Kind == KindMetered || !base.Lt(&tab.Charged) || base.Lt(&tab.Settled) {
		return false, nil
	}
	if r.Paid.Payload.Type != x402.TypeRefund {
		cost, err := r.Route.Price.Charge(uint64(r.Route.GPUs) * uint64(a.Window))
		if cost.Add(&cost, &tab.Charged); err != nil || !cost.Lt(&r.Voucher.Cumulative) {
			return false, err
		}
	}
	public, err := a.Disclosed(ctx, tab, r.Voucher.Cumulative)
	return !public, err
}

// Confirmed reads a channel from the chain and records what it says.
func (a *Accounts) Confirmed(ctx context.Context, terms channel.Terms) (s channel.State, pending bool, err error) {
	err = a.Contract.Record(func() error {
		views, _, err := a.Contract.Fresh(ctx, []common.Hash{terms.ID()}, a.Confirmations)
		if err != nil {
			return err
		}
		pending = views[0].Pending()
		s, err = a.Book.Register(ctx, terms, views[0].View)
		return err
	})
	return s, pending, err
}

// Pause waits between two looks at something.
func (a *Accounts) Pause(ctx context.Context) error { return chain.Pause(ctx, a.Poll) }

// BooksOf are a request's: what is written to them counts only while the request has its turn among the gateways. One
// that was stopped for longer than its claim lasts would write, and serve, beside those that came after it.
func (a *Accounts) BooksOf(r *PaidRequest) (db *store.DB, book *channel.Payee, notes Journal) {
	if r.Claim == nil {
		return a.DB, a.Book, a.Journal
	}
	db = a.DB.Guard(r.Claim.Check)
	guarded := *a.Book
	guarded.Store = db.Payee()
	return db, &guarded, Journal{DB: db}
}

// JournalOf are the notes among a request's books.
func (a *Accounts) JournalOf(r *PaidRequest) Journal {
	_, _, notes := a.BooksOf(r)
	return notes
}

// Advance is what is charged for a request before it is served: enough for so
// much time after what was used, and less than its voucher is over.
func (a *Accounts) Advance(tab Account, route Route, ahead time.Duration) (uint256.Int, error) {
	cost, err := route.cost(ahead)
	charged := tab.Spent
	charged.Add(&charged, &cost)
	most := tab.Charged
	most.Add(&most, &route.Most)
	most.SubUint64(&most, 1)
	switch {
	case charged.Gt(&most):
		return most, err
	case charged.Lt(&tab.Charged):
		return tab.Charged, err
	}
	return charged, err
}

// RefreshNonce remembers the refund nonce, which receipts show.
func (a *Accounts) RefreshNonce(ctx context.Context, r *PaidRequest, s channel.State) error {
	on, err := a.Contract.State(ctx, s.ID)
	if err != nil {
		return err
	}
	return a.JournalOf(r).setNonce(ctx, s.ID, on.RefundNonce)
}

// Mined waits for a transaction. Its error is code where that reverted, and outcome.ErrUnseen where its receipt does not come.
func (a *Accounts) Mined(ctx context.Context, tx chain.TxID, code x402.Code) (*chain.Result, error) {
	result, err := outcome.Wait(ctx, a.Sender, tx, a.Confirmations, nil)
	var reverted *chain.Reverted
	if errors.As(err, &reverted) && !errors.Is(err, chain.ErrGaveWay) {
		err = fmt.Errorf("%w: transaction %s was mined and reverted", code, reverted.Hash)
	}
	return result, err
}

// Refused is the error of a transaction that was not sent: code where the contract refuses it.
func Refused(err error, code x402.Code) error {
	var revert *chain.Revert
	if errors.As(err, &revert) {
		return fmt.Errorf("%w: %s", code, revert.Refusal())
	}
	return err
}

// Looks are the channels that were read from the chain since the program began, and the blocks with a refund after
// which one was. Its database may be one from a backup, which does not know what was claimed since: nothing is served
// from a channel, nor given back, before it was read once, however long the watcher takes to its first look and at
// whichever gateway that is. It keeps 32 bytes of each channel that was used.
type Looks struct{ done sync.Map }

// Has reports whether a channel, or a block, was looked at.
func (l *Looks) Has(id common.Hash) bool {
	_, ok := l.done.Load(id)
	return ok
}

// Add notes that it was.
func (l *Looks) Add(id common.Hash) { l.done.Store(id, struct{}{}) }

// lookTimeout bounds a reading of the chain that a request waits for.
const lookTimeout = 15 * time.Second

// look is a channel of our books as the chain has it, if it was not read since the
// program began. It takes lookTimeout at most, and then the request is refused.
func (a *Accounts) look(ctx context.Context, s channel.State) (channel.State, error) {
	if a.Looked.Has(s.ID) {
		return s, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	if err := a.Whole(ctx); err != nil { // a refund may be among what it does not know
		return s, err
	}
	s, _, err := a.Confirmed(ctx, s.Terms)
	if err != nil {
		return s, fmt.Errorf("channel %s: nothing is served before it was read from the chain once: %w", s.ID, err)
	}
	a.Looked.Add(s.ID)
	return s, nil
}

// A voucher that was put into a transaction can be read by anybody, so it shows
// nothing about who sends it. Nothing is served, given back or repeated for one.

// lookBack is how many of a channel's transactions are read at a time.
const lookBack = 4

// Disclosed reports whether a voucher of this amount, at least what was charged, was put into a transaction of ours. What
// claims carry only grows, so the newest are enough.
func (a *Accounts) Disclosed(ctx context.Context, tab Account, amount uint256.Int) (bool, error) {
	for skip := 0; ; skip += lookBack {
		calls, err := a.Sender.Newest(ctx, tab.ID, lookBack, skip, chain.Claim, chain.Refund)
		if err != nil {
			return false, err
		}
		for _, call := range calls {
			shown, ok, err := a.Contract.Disclosed(call, tab.ID)
			switch {
			case err != nil:
				return false, err
			case !ok: // a refund with nothing to claim
			case shown == amount:
				return true, nil
			case shown.Lt(&amount):
				return false, nil
			}
		}
		if len(calls) < lookBack {
			return false, nil
		}
	}
}

// Supersede raises what was charged by one base unit, which is credit for the next request, so that the next voucher is
// one that only the payer can make. The base unit is there: a request is never charged all that its voucher is over.
// Where it was used up so already, the payer makes the next payment or withdraws.
func (a *Accounts) Supersede(ctx context.Context, r *PaidRequest, tab Account) (Account, error) {
	if !tab.Charged.Lt(&tab.Accepted) {
		return tab, fmt.Errorf("%w: the voucher is public, and channel %s has no base unit left to outdate it by: pay a request, or withdraw", x402.CodeVoucherSignature, tab.ID)
	}
	tab.Charged.AddUint64(&tab.Charged, 1)
	return tab, a.JournalOf(r).Prepay(ctx, tab.ID, tab.Charged)
}

// A lease is charged whole base units, and each metered request is a lease of its own. What rounding leaves of one is
// carried to the next, so that time costs the same in many requests as in one: a payer pays for no more than was
// metered, and pieces that are worth less than a base unit are not free.

// Carry adds what a final record leaves uncharged to what its channel's leases before left, and charges what that makes
// in whole base units, as far as it is reserved: no client is charged more than it signed for. It returns what the
// channel is charged now, cumulative. It runs in the record's transaction, behind the charge that the record states.
func (a *Accounts) Carry(tx *sqlx.Tx, price metering.Price, rec metering.SignedRecord) (uint256.Int, error) {
	charged := rec.Owed
	parts, reserved, err := a.Journal.carried(tx, rec.ChannelID)
	if err != nil {
		return charged, err
	}
	left, err := price.Fraction(rec.Nanos)
	if err != nil {
		return charged, err
	}
	for parts += left; parts >= metering.Fractions && charged.Lt(&reserved); parts -= metering.Fractions {
		charged.AddUint64(&charged, 1)
	}
	if err := a.Journal.setCarried(tx, rec.ChannelID, parts); err != nil || charged == rec.Owed {
		return charged, err
	}
	return charged, a.DB.Charge(context.Background(), tx, rec.ChannelID, charged)
}

// A payer's voucher is for what it was told as charged, its base, and the price of the request. Nobody was ever told
// more than the newest voucher is for. So a base above that shows that these books are old ones, of a backup, and what
// they forgot: the payer says that it was charged so much. It is asked to sign for it once more, less a few base units,
// so that neither a voucher that can be read from the chain nor one that is sent again charges anything; then it is
// charged.

// maxRebate bounds the base units by which a payer that is asked again is asked for
// less; an eighth of the request's price bounds them too.
const maxRebate = 64

// Behind is what a payer of whose base these books are behind is asked to sign for next: nil if they are not.
func (a *Accounts) Behind(ctx context.Context, r *PaidRequest, tab Account) (*Resync, error) {
	base := r.Based()
	if !tab.Known || !base.Gt(&tab.Accepted) || base.Gt(&tab.Deposit) {
		return nil, nil
	}
	less, err := rebate(r.Route.Most)
	if err != nil {
		return nil, err
	}
	base.Sub(&base, less) // a base is above an eighth of a price
	if !base.Gt(&tab.Charged) {
		return nil, nil
	}
	tab.Charged, tab.Accepted, tab.Signature = base, r.Voucher.Cumulative, r.Voucher.Signature
	expect := r.Voucher.Cumulative
	expect.Sub(&expect, less)
	a.Log.Warn("the books of a channel are behind its payer's voucher: its database is an old one", "channel", r.ID, "signed", base.Dec())
	err = a.JournalOf(r).assert(ctx, r.ID, base)
	return &Resync{Account: tab, Expect: expect, Got: r.Voucher.Cumulative}, err
}

// rebate is from 2 base units on, at random, where the price allows it: vouchers that
// differ by one are public where one was superseded.
func rebate(price uint256.Int) (*uint256.Int, error) {
	span := price.Rsh(&price, 3)
	if !span.IsUint64() || span.Uint64() > maxRebate {
		span.SetUint64(maxRebate)
	}
	if span.Uint64() < 2 {
		return uint256.NewInt(1), nil
	}
	n, err := rand.Int(rand.Reader, new(big.Int).SetUint64(span.Uint64()-1))
	if err != nil {
		return nil, err
	}
	return uint256.NewInt(2 + n.Uint64()), nil
}
