package x402client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/internal/ticks"
	"github.com/gpupay/gpupay/sdk/units"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// Rental is GPU time of a provider of this project that is paid over x402, one window after the other: each tick is
// asked for and paid, and returns when it was metered and its record was checked. One goroutine at a time may use it.
type Rental struct {
	x     *Client
	peer  peer.Peer
	gpus  int
	offer wire.SignedOffer
	price metering.Price
	id    common.Hash // of the channel; zero before the first tick
}

// Tick is one window of GPU time, metered, charged and checked.
type Tick struct {
	Channel common.Hash
	Lease   common.Hash
	Devices []string
	Access  json.RawMessage // how the GPUs are reached; from a stranger
	State   string          // of the lease, as the provider says
	Charged uint256.Int     // for this tick, base units
	Record  metering.SignedRecord
}

// Rent prepares to rent GPUs of a provider of this project by ticks. It checks the provider's offer and moves no money.
func (x *Client) Rent(ctx context.Context, url string, gpus int) (*Rental, error) {
	return x.RentClass(ctx, url, "", gpus)
}

// RentClass is Rent of GPUs of a class, by the provider's name of it: see renter.Options.Class.
func (x *Client) RentClass(ctx context.Context, url, class string, gpus int) (*Rental, error) {
	if gpus < 1 {
		return nil, errors.New("renter: GPUs must be above zero")
	}
	p, err := peer.New(x.w.HTTP, url)
	if err != nil {
		return nil, err
	}
	p.Class = class
	t := &Rental{x: x, peer: p, gpus: gpus}
	return t, t.agree(ctx)
}

// agree reads the provider's offer. A lease keeps the one that it began under.
func (t *Rental) agree(ctx context.Context) error {
	document, err := t.peer.Offer(ctx)
	if err != nil {
		return err
	}
	offer, err := wire.ParseOffer(document)
	if err != nil {
		return fmt.Errorf("provider %s: %w: %w", t.peer.Base, peer.ErrOffer, err)
	}
	return t.agreeOn(ctx, offer)
}

// agreeOn holds an offer to the caps and to what a renter who is paid for by ticks can bear, and goes by it from here on.
func (t *Rental) agreeOn(ctx context.Context, offer wire.SignedOffer) (err error) {
	if !offer.NamesMeter() {
		return fmt.Errorf("provider %s: %w: it names no metering key, which ticks need", t.peer.Base, peer.ErrOffer)
	}
	if offer.Share != nil {
		return fmt.Errorf("provider %s: %w: its devices are shared by slots, and ticks pay for whole ones: nothing was signed", t.peer.Base, peer.ErrOffer)
	}
	if err := t.peer.Sells(offer.Offer); err != nil {
		return err
	}
	if err := t.x.w.OnChain(ctx, offer.ChainID); err != nil {
		return fmt.Errorf("provider %s: %w", t.peer.Base, err)
	}
	if offer.ExpiredAt(t.x.w.Now()) {
		return fmt.Errorf("provider %s: %w: it expired at %s", t.peer.Base, peer.ErrOffer, time.Unix(offer.Expires, 0).UTC().Format(time.RFC3339))
	}
	if t.price, err = t.x.w.CheckPrice(offer.Offer); err != nil {
		return fmt.Errorf("provider %s: %w", t.peer.Base, err)
	}
	if late := time.Duration(offer.MaxGap) * time.Millisecond; late > wire.MaxGapOfTicks {
		return fmt.Errorf("provider %s: %w: its readings may be %s late, paid by ticks at most %s is taken: nothing was signed", t.peer.Base, peer.ErrOffer, late, wire.MaxGapOfTicks)
	}
	t.offer, t.peer.Class = offer, offer.ClassID()
	return nil
}

// Channel is the one that the ticks are paid from; zero before the first was asked for.
func (t *Rental) Channel() common.Hash { return t.id }

func (t *Rental) url() string { return t.peer.Base + t.peer.TickPath(t.gpus) }

// Tick pays for the next window, waits until it was metered, and checks what the provider says of it: the record must
// be signed by the metering key of the offer, its price arithmetic must hold, the charge must be what it adds, and no
// more GPU time may be in it than passed here. What does not hold is a *Dispute, and nothing more is paid. A tick whose
// answer got lost is not paid again: the next call gets it. ErrLostAnswer says that the provider counts it as charged
// and shows no record: each further call asks for the same tick and signs nothing, until it is answered, was claimed on
// the chain, or Close or Leave gave it up.
func (t *Rental) Tick(ctx context.Context) (Tick, error) {
	b, err := t.request(ctx)
	if err != nil {
		return Tick{}, err
	}
	release, err := b.takeTurn(ctx)
	if err != nil {
		return Tick{}, err
	}
	defer release()
	if err := b.load(ctx); err != nil {
		return Tick{}, err
	}
	t.id = b.id
	b.account.Mark(b.own)
	resp, err := t.resumePending(ctx, b)
	if resp == nil && err == nil {
		resp, err = b.pay(ctx)
	}
	if err != nil {
		return Tick{}, err
	}
	defer resp.Body.Close()
	return t.answered(ctx, b, resp)
}

// request is the request for a tick, with the offer of x402 that pays it.
func (t *Rental) request(ctx context.Context) (*payment, error) {
	if t.offer.ExpiredAt(t.x.w.Now()) { // no lease may begin under it
		if err := t.agree(ctx); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.url(), nil)
	if err != nil {
		return nil, err
	}
	a := &request{req: req}
	resp, err := a.send(t.x.options.Transport, "")
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", peer.ErrUnreachable, t.peer.Base, err)
	}
	p, err := required(resp)
	if err != nil {
		return nil, err
	}
	if p == nil {
		defer resp.Body.Close()
		return nil, fmt.Errorf("provider %s: asked for a tick, it answered: %w", t.peer.Base, wire.ParseProblem(resp))
	}
	most, err := t.price.Charge(uint64(t.gpus) * uint64(ticks.MaxTick))
	if err != nil {
		return nil, err
	}
	most.AddUint64(&most, 1) // providers ask for one more, which they never charge
	b, err := t.x.choose(ctx, a, *p, u256.Min(t.x.maxPrice, most))
	if err != nil {
		return nil, err
	}
	if b.terms.Payee != common.Address(t.offer.Payee) {
		return nil, fmt.Errorf("provider %s: %w: x402 pays %s, the offer is of %s", t.peer.Base, peer.ErrOffer, b.terms.Payee, t.offer.Payee)
	}
	b.tick, b.gpus, b.hourly = t.url(), t.gpus, units.Hourly(t.price)
	return b, nil
}

// storePending puts a tick's payment on disk before it is sent, and what else is signed where ticks are paid too.
func (b *payment) storePending(ctx context.Context, p signedPayment) error {
	if b.tick == "" {
		if !b.account.Ticked {
			return nil
		}
		b.account.Plain = u256.Max(b.account.Plain, p.most)
		return b.save(ctx)
	}
	clock := b.x.w.Clock
	b.account.Tick = &ticks.Pending{
		URL: b.tick, Header: p.header, Key: b.key, Base: b.account.Charged, Most: p.most, Prior: b.prior, Asked: clock.Now(), Boot: clock.BootID(),
		GPUs: b.gpus, Hourly: b.hourly,
	}
	return b.save(ctx)
}

// resumePending asks again for a tick whose record was never seen; nil if there is none
// or it was not charged and the provider does not answer for it any more.
func (t *Rental) resumePending(ctx context.Context, b *payment) (*http.Response, error) {
	p, lost := b.account.Tick, false
	if p != nil {
		lost = b.account.Lost == p.Most
	}
	switch {
	case p == nil:
		return nil, nil
	case p.URL == b.tick:
	case lost && p.GPUs == b.gpus && peer.ClassIn(p.URL) == peer.ClassIn(b.tick): // at another address of the site, whose word it is that it was charged: here it is asked for in its place
	case lost:
		return nil, fmt.Errorf("%s is asked for: %w", p.URL, b.lostTick())
	default: // for another number of GPUs, or of another class: what it can have cost grows with time
		b.account.GiveUp()
		return nil, nil
	}
	known, prior := b.account.Charged, b.prior
	b.account.Charged, b.most, b.prior, b.key, b.resent = p.Base, p.Most, p.Prior, p.Key, true
	resp, _, err := b.deliver(ctx, p.Header)
	if err != nil {
		return nil, err
	}
	again, err := b.answered(ctx, resp, signedPayment{header: p.Header, most: p.Most})
	later := resp.StatusCode >= http.StatusInternalServerError || resp.StatusCode == http.StatusTooManyRequests
	switch {
	case err == nil && b.booked:
		if !lost {
			b.account.Charged = u256.Max(b.account.Charged, known) // and something else since
		}
		return resp, nil
	case errors.Is(err, ErrLostAnswer), err == nil && !again && lost && !later:
		drainBody(resp)
		b.account.Charged = u256.Max(b.account.Charged, known)
		return nil, errors.Join(b.lostTick(), b.giveUp(ctx))
	case err != nil:
		drainBody(resp)
		return nil, err
	case !again && later:
		b.account.Charged = known
		return resp, nil
	}
	drainBody(resp)
	b.account.Tick, b.prior, b.resent = nil, u256.Max(prior, b.prior), false
	return nil, b.save(ctx)
}

// giveUp forgets a tick that was charged and not answered once the chain shows that its own voucher was claimed: then
// an honest provider answers for it no more, since anybody can read that, and another one has the money.
func (b *ledger) giveUp(ctx context.Context) error {
	_, on, err := b.observe(ctx)
	if err == nil && (on.Settled.Gt(&b.account.Tick.Prior) || !b.account.Charged.Gt(&on.Settled)) {
		b.account.Tick = nil
	}
	return errors.Join(err, b.save(ctx))
}

// answered reads a tick's answer and holds it to all that is known.
func (t *Rental) answered(ctx context.Context, b *payment, resp *http.Response) (Tick, error) {
	if resp.StatusCode != http.StatusOK {
		return Tick{}, b.failed(ctx, resp)
	}
	document, err := io.ReadAll(io.LimitReader(resp.Body, peer.MaxAnswer+1))
	if err != nil {
		return Tick{}, fmt.Errorf("channel %s: %w: the tick's answer broke off: ask again and it is not paid again: %w", b.id, peer.ErrUnreachable, err)
	}
	onDisk := b.account.Spans
	tick, rec, err := t.check(ctx, b, document)
	var v *ticks.Violation
	if errors.As(err, &v) {
		return Tick{}, b.dispute(ctx, v.Unwrap(), document)
	}
	if err != nil {
		return Tick{}, err
	}
	b.ticks().Answered()
	if err := b.x.accounts().Accept(ctx, &b.account, rec); err != nil {
		b.x.w.Billed.Keep(b.terms.Payee, b.id, onDisk)
		return tick, err
	}
	return tick, nil
}

// failed is a tick that was answered by an error. One with a receipt is the answer, and asking for it again gets no
// other: what it charged, it charged for nothing.
func (b *payment) failed(ctx context.Context, resp *http.Response) error {
	err := fmt.Errorf("channel %s: no tick: %w", b.id, wire.ParseProblem(resp))
	if !b.booked {
		return err
	}
	if !b.charge.IsZero() {
		return b.disputeHeader(ctx, fmt.Errorf("%w: %s was charged for a tick that was answered by %s", peer.ErrProtocol, b.charge.Dec(), resp.Status), resp.Header, x402.HeaderResponse)
	}
	b.account.Tick = nil
	return errors.Join(err, b.save(ctx))
}

// Run pays tick after tick and hands each to seen, until ctx ends or something stops it for good. The tick that runs
// when ctx ends is seen to its end: it is paid. A provider that cannot be reached is asked again for as long as the
// renter's Patience lasts. A tick that was charged and not answered (ErrLostAnswer) ends it: nothing is paid twice
// unless it is called again.
func (t *Rental) Run(ctx context.Context, seen func(Tick)) error {
	heard := time.Now()
	for ctx.Err() == nil {
		tick, err := t.finish(ctx)
		switch {
		case err == nil:
			heard = time.Now()
			seen(tick)
			continue
		case !t.transient(err):
			return err
		case time.Since(heard) > t.x.w.Patience:
			return fmt.Errorf("%w: no tick for %s: %w", peer.ErrSilent, t.x.w.Patience, err)
		}
		if err := chain.Pause(ctx, t.x.w.Poll); err != nil {
			return nil
		}
	}
	return nil
}

// finish is a Tick that the end of ctx does not interrupt.
func (t *Rental) finish(ctx context.Context) (Tick, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), peer.ChainTimeout)
	defer cancel()
	return t.Tick(ctx)
}

// transient reports what the next try may not meet.
func (t *Rental) transient(err error) bool {
	var d *wallet.Dispute
	var capped *channel.CapError
	var problem *wire.Problem
	switch {
	case errors.As(err, &d), errors.As(err, &capped), errors.Is(err, ErrNotOffered), errors.Is(err, wallet.ErrDeposit), errors.Is(err, wallet.ErrBalance), errors.Is(err, channel.ErrClosing):
		return false
	case errors.As(err, &problem):
		return problem.Status >= 500 || problem.Status == http.StatusTooManyRequests || problem.Status == http.StatusPaymentRequired
	}
	return errors.Is(err, peer.ErrUnreachable) || errors.Is(err, chain.ErrUnreachable)
}

// Close ends the lease by taking back all that was not charged.
func (t *Rental) Close(ctx context.Context) (Refund, error) {
	return t.x.Refund(ctx, t.url(), "")
}

// Records returns the usage records that were checked for ticks of a channel.
func (x *Client) Records(ctx context.Context, channelID common.Hash) ([]metering.SignedRecord, error) {
	return x.accounts().Checked(ctx, channelID)
}
