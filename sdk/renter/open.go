package renter

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/internal/boundlog"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	"github.com/gpupay/gpupay/sdk/units"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Options say what to rent and how to pay. They are kept with the rental.
type Options struct {
	// GPUs is how many; 1 if zero.
	GPUs int `json:"gpus"`
	// Deposit is in units of the token; what the provider suggests if empty.
	Deposit string `json:"deposit"`
	// TopUp is added whenever the deposit runs low, within the caps; never if empty.
	TopUp string `json:"topUp"`
	// PayEvery is the time between vouchers; 1 min if zero, sooner when half of the provider's credit is used.
	PayEvery time.Duration `json:"payEvery"`
	// Prepay is the GPU time that is paid ahead of the records at most; none if zero.
	Prepay time.Duration `json:"prepay"`
	// Gasless has the provider send the deposit even if we have native coin.
	Gasless bool `json:"gasless"`
	// For is how long it is meant to last, for who resumes it; nothing ends it then. Not said if zero.
	For time.Duration `json:"for"`
	// Class is the kind of GPUs, by the provider's name of it, such as "h100": an offer of others is refused, and so is what is billed
	// for others. Not asked for if empty, where the provider has one kind.
	Class string `json:"class,omitempty"`
	// Share rents a share of GPUs by slots: requests are sent through Rental.Transport and billed one by one, and GPUs is what the
	// offer says that each uses. Without it an offer of shared GPUs is refused, and with it any other.
	Share bool `json:"share,omitempty"`
}

// Rent opens a channel with a provider and starts a lease on it. It sends the
// deposit itself if it has native coin, and else signs an authorization that
// the provider sends. The rental is paid for only while Run runs.
//
// If it fails after the channel was put on disk, the error names the channel:
// Resume goes on with it, or finds out that it was never funded.
func (r *Client) Rent(ctx context.Context, url string, options Options) (*Rental, error) {
	if err := options.check(r.w.Token.Decimals); err != nil {
		return nil, err
	}
	q, err := r.quote(ctx, url, options.GPUs, options.Class)
	if err != nil {
		return nil, err
	}
	return r.rent(ctx, q, options)
}

// Accept is Rent at the price of a Quote that was looked at, of one GPU or of a share: what the provider asks since then is not agreed to.
// The quote is this client's, and stands for some minutes.
func (r *Client) Accept(ctx context.Context, q Quote, options Options) (*Rental, error) {
	if err := options.check(r.w.Token.Decimals); err != nil {
		return nil, err
	}
	if q.escrow == nil || options.GPUs != q.GPUs || options.Class != q.class {
		return nil, fmt.Errorf("renter: the quote is of %d GPUs of class %q, and not of %d of class %q", q.GPUs, q.class, options.GPUs, options.Class)
	}
	return r.rent(ctx, q, options)
}

func (o *Options) check(decimals uint8) error {
	o.GPUs = cmp.Or(o.GPUs, 1)
	o.PayEvery = cmp.Or(o.PayEvery, time.Minute)
	if o.GPUs < 1 || o.PayEvery < 0 || o.Prepay < 0 {
		return errors.New("renter: GPUs, PayEvery and Prepay must not be negative")
	}
	for _, amount := range []struct{ name, text string }{{"Deposit", o.Deposit}, {"TopUp", o.TopUp}} {
		if _, err := units.Parse(cmp.Or(amount.text, "0"), decimals); err != nil {
			return fmt.Errorf("renter: %s: %w", amount.name, err)
		}
	}
	return nil
}

func (r *Client) rent(ctx context.Context, q Quote, options Options) (_ *Rental, err error) {
	if q.GPUs, err = q.shared(options.Share, options.GPUs); err != nil {
		return nil, err
	}
	options.GPUs = q.GPUs
	if err := errors.Join(q.available(), q.escrow.CheckClock(ctx, r.w.ClockOff)); err != nil {
		return nil, err
	}
	if err := r.w.Vet(ctx, common.Address(q.Offer.Payee), peer.SiteOf(q.URL)); err != nil {
		return nil, fmt.Errorf("provider %s: no deposit is made: %w", q.URL, err)
	}
	deposit, err := r.deposit(ctx, q, options)
	if err != nil {
		return nil, err
	}
	l, err := r.prepare(ctx, q, options, deposit)
	if err != nil {
		return nil, err
	}
	if err := l.open(ctx, &q.challenge); err != nil {
		return nil, l.openFailed(ctx, "resume it to go on", err)
	}
	return l, nil
}

// openFailed says what can be done about an open that failed, and of its deposit whether it may still be sent: the provider may
// have sent it and refused the lease.
func (l *Rental) openFailed(ctx context.Context, again string, cause error) error {
	l.lease.Detach()
	if l.lease.Row.Until() != 0 {
		if _, err := l.lease.Look(ctx, l.c.w.Confirmations); err == nil {
			cause = errors.Join(cause, l.lease.Save(ctx))
		}
	}
	return fmt.Errorf("channel %s: opening it failed; %s, or leave it to get back what it holds%s: %w", l.lease.ID, again, l.lease.Row.GoodUntil(), cause)
}

// deposit is how much to put into the channel, within the caps.
func (r *Client) deposit(ctx context.Context, q Quote, options Options) (uint256.Int, error) {
	least, err := q.least()
	if err != nil {
		return least, err
	}
	deposit := u256.Max(q.SuggestedDeposit, least)
	if options.Deposit != "" {
		if deposit, err = units.Parse(options.Deposit, r.w.Token.Decimals); err != nil {
			return deposit, err
		}
	}
	room, cap, err := r.payer(q.escrow).Room(ctx, channel.Terms{Payee: common.Address(q.Offer.Payee), Token: r.w.Token.Address})
	if err != nil {
		return deposit, err
	}
	if options.Deposit == "" {
		deposit = u256.Min(deposit, room)
	}
	if deposit.Gt(&room) {
		return deposit, fmt.Errorf("%w: it is %s, %s leaves room for %s: deposit less, raise the cap, or get back what lies in other channels",
			wallet.ErrDeposit, r.w.Format(deposit), wallet.CapField(cap), r.w.Format(room))
	}
	if !deposit.IsZero() && !deposit.Lt(&least) {
		return deposit, nil
	}
	if options.Deposit == "" && room.Lt(&least) {
		return deposit, fmt.Errorf("%w: %s leaves room for %s, %d GPU(s) of this provider take at least %s: raise the cap, or get back what lies in other channels",
			wallet.ErrDeposit, wallet.CapField(cap), r.w.Format(room), q.GPUs, r.w.Format(least))
	}
	return deposit, fmt.Errorf("%w: it is %s, %d GPU(s) of this provider take at least %s: deposit more", wallet.ErrDeposit, r.w.Format(deposit), q.GPUs, r.w.Format(least))
}

// least is the smallest deposit that a lease begins with: the provider's, or what a
// record of each GPU may be for.
func (q Quote) least() (uint256.Int, error) {
	first, err := wire.MinLease(q.Price, q.GPUs, time.Duration(q.Offer.RecordEvery)*time.Millisecond, time.Duration(q.Offer.Tick)*time.Millisecond)
	return u256.Max(first, q.MinDeposit), err
}

// worthTopUp refuses top-ups that the provider would not send.
func (r *Client) worthTopUp(o wire.Offer, options Options, funding string) error {
	if options.TopUp == "" {
		return nil
	}
	step, err := units.Parse(options.TopUp, r.w.Token.Decimals)
	if least := rental.LeastTopUp(o, funding); err == nil && step.Lt(&least) {
		err = fmt.Errorf("%w: TopUp is %s, this provider sends none under %s: add more at a time, or none", wallet.ErrDeposit, r.w.Format(step), r.w.Format(least))
	}
	return err
}

// prepare chooses the way to fund, makes sure that it can work, and puts the
// rental and its channel on disk. Nothing is signed yet.
func (r *Client) prepare(ctx context.Context, q Quote, options Options, deposit uint256.Int) (*Rental, error) {
	balance, err := r.w.Token.Balance(ctx, r.Address())
	if err != nil {
		return nil, err
	}
	if balance.Lt(&deposit) {
		return nil, fmt.Errorf("%w: %s has %s, the deposit is %s", wallet.ErrBalance, r.Address(), r.w.Format(balance), r.w.Format(deposit))
	}
	funding, err := r.funding(ctx, q, options)
	if err != nil {
		return nil, err
	}
	if err := r.worthTopUp(q.Offer.Offer, options, funding); err != nil {
		return nil, err
	}
	sponsored, err := r.sponsored(ctx, q)
	if err != nil {
		return nil, err
	}
	var salt common.Hash        // tells a payer's channels with one payee apart: eight bytes do, and are cheaper to settle than 32
	_, _ = rand.Read(salt[24:]) // never fails
	row := rental.Row{
		URL: q.URL, Sponsored: sponsored, Offer: q.Offer.Document, GPUs: options.GPUs, Options: rental.Options(options), Deposit: deposit, Phase: rental.PhaseOpening,
		Made: r.w.Now().Unix(),
		Terms: channel.Terms{
			ChainID: q.escrow.ChainID(), Escrow: q.escrow.Address(), Payer: r.Address(),
			Payee: common.Address(q.Offer.Payee), Token: r.w.Token.Address, Salt: salt,
		},
		Funding: &wire.Payload{Action: wire.ActionOpen, Type: funding},
	}
	if delta := q.request.MethodDetails.MinVoucherDelta; delta != nil {
		row.MinDelta = delta.Int
	}
	l, err := r.rental(ctx, row, q.escrow)
	if err != nil {
		return nil, err
	}
	if err := r.store.Create(ctx, row); err != nil {
		return nil, err
	}
	fault.Point(fault.RentalStored)
	return l, l.lease.Payer.Open(ctx, row.Terms, deposit)
}

// funding is how the deposit gets onto the chain: by our own transaction if we
// can pay for it, else by the provider's.
func (r *Client) funding(ctx context.Context, q Quote, options Options) (string, error) {
	own, err := r.w.HasGas(ctx)
	if err != nil {
		return "", err
	}
	if own && !options.Gasless {
		return wire.TypeHash, nil
	}
	if !q.Gasless {
		return "", fmt.Errorf("%w: %s has none and this provider does not send deposits for others: send it some", wallet.ErrNoGas, r.Address())
	}
	able, err := r.sponsored(ctx, q)
	if err != nil {
		return "", err
	}
	if !able {
		return "", fmt.Errorf("%w: token %s has no ERC-3009, so nobody can send the deposit for %s: send it some native coin", wallet.ErrNoGas, r.w.Token.Address, r.Address())
	}
	return wire.TypeAuthorization, nil
}

// sponsored reports whether the provider can send what we only sign.
func (r *Client) sponsored(ctx context.Context, q Quote) (bool, error) {
	if !q.Gasless {
		return false, nil
	}
	return r.w.Token.SupportsAuthorization(ctx)
}

// open funds the channel if it is not, and starts the lease. It may run again
// after a crash at any point: the authorization and the transaction that it
// sends again are the ones that it sent before.
func (l *Rental) open(ctx context.Context, first *wire.Challenge) error {
	if err := l.lease.Payer.Open(ctx, l.lease.Row.Terms, l.lease.Row.Deposit); err != nil {
		return err // idempotent: a crash may have come before it
	}
	fault.Point(fault.ChannelStored)
	if l.lease.Row.Funding.ChannelID != l.lease.ID {
		if first == nil { // taken up again: the chain, the price and the room before the money
			known, err := l.lease.Foreign(ctx)
			if err != nil || known {
				return err
			}
			if err := l.c.w.Vet(ctx, l.lease.Row.Terms.Payee, peer.SiteOf(l.lease.Row.URL)); err != nil {
				return fmt.Errorf("provider %s: no deposit is made: %w", l.lease.Row.URL, err)
			}
			if first, err = l.requote(ctx); err != nil {
				return err
			}
		}
	}
	if err := l.lease.Fund(ctx); err != nil {
		return err
	}
	fault.Point(fault.FundingStored)
	return l.start(ctx, first)
}

// start hands the signed open to the provider and takes the lease. The answer
// may get lost: the proof lets the same open attach to what it started.
func (l *Rental) start(ctx context.Context, first *wire.Challenge) error {
	if first == nil {
		var err error
		if first, err = l.requote(ctx); err != nil {
			return err
		}
	}
	initial, err := l.initial(ctx)
	if err != nil {
		return err
	}
	voucher, err := l.lease.Payer.Pay(ctx, l.lease.ID, initial)
	if err != nil {
		return err
	}
	given := l.lease.Row.Give(l.lease.Row.Funding.Authorization)
	if l.lease.Row.Asked == nil {
		now := l.c.w.Clock.Now()
		l.lease.Row.Asked, l.lease.Row.AskedBoot = &now, l.c.w.Clock.BootID()
		given = true
	}
	if given {
		if err := l.lease.Save(ctx); err != nil {
			return err
		}
	}
	fault.Point(fault.LeaseAsked)
	l.lease.Challenge, l.lease.Row.Secret = first, "" // a proof, not a secret, stands beside an open
	payload := *l.lease.Row.Funding
	amount := wire.NewAmount(voucher.Cumulative)
	payload.CumulativeAmount, payload.VoucherSignature = &amount, voucher.Signature
	if payload.Type == wire.TypeHash { // the draft's place for it
		payload.Signature, payload.VoucherSignature = voucher.Signature, nil
	}
	if err := l.lease.Attach(ctx, payload); err != nil {
		return err
	}
	fault.Point(fault.LeaseBegun)
	// What the open's authorization moved is the deposit now, and promised no more: it would count twice.
	if _, err := l.lease.Look(ctx, l.c.w.Confirmations); err != nil {
		boundlog.Warn(l.c.w.Log, "what became of the deposit's authorization is not known yet", l.lease.ID, err)
	}
	if view, err := l.lease.Escrow.View(ctx, l.lease.ID, nil); err == nil {
		view.Deposit = u256.Max(view.Deposit, l.lease.Row.Deposit)
		if _, err := l.lease.Payer.Observe(ctx, l.lease.ID, view); err != nil {
			return err
		}
	}
	return l.lease.Enter(ctx, rental.PhaseRunning)
}

// requote asks for the price again: the offer that the channel was meant for
// may have been replaced, and a lease would start under the new one.
func (l *Rental) requote(ctx context.Context) (*wire.Challenge, error) {
	q, err := l.c.quote(ctx, l.lease.Row.URL, l.lease.Row.GPUs, l.lease.Offer.ClassID())
	if err != nil {
		return nil, err
	}
	if _, err := q.shared(l.lease.Row.Options.Share, q.GPUs); err != nil {
		return nil, err
	}
	if l.lease.Row.Funding.ChannelID != l.lease.ID { // nothing is signed yet
		if err := q.available(); err != nil {
			return nil, err
		}
	}
	if q.Offer.Hash == l.lease.Offer.Hash || l.lease.Row.Lease != (common.Hash{}) {
		return &q.challenge, nil // a lease that began keeps its offer
	}
	if err := q.pays(l.lease.Terms); err != nil {
		return nil, err
	}
	if l.lease.Row.Asked != nil {
		// The answer got lost, and with it whether a lease began. If one did, it is under the offer that was asked for.
		l.lease.Row.PastOffers = append(l.lease.Row.PastOffers, l.lease.Row.Offer)
	}
	if err := l.lease.Agree(q.Offer); err != nil {
		return nil, err
	}
	return &q.challenge, l.lease.Save(ctx)
}

// initial is what the open's own voucher is for: the prepayment, no record
// having been seen, and what was signed before a crash if that is more.
func (l *Rental) initial(ctx context.Context) (uint256.Int, error) {
	ahead, err := l.lease.Price.Charge(uint64(l.lease.Row.Options.Prepay))
	if err != nil {
		return ahead, err
	}
	paid, err := l.lease.Payer.State(ctx, l.lease.ID)
	if err != nil {
		return ahead, err
	}
	if ahead = u256.Min(ahead, l.lease.Row.Deposit); ahead.Lt(&paid.Signed) {
		return paid.Signed, nil
	}
	return ahead, nil
}
