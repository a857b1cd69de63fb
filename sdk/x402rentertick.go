package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
)

// X402Rental is GPU time of a provider of this project that is paid over x402,
// one window after the other: each tick is asked for and paid, and returns when
// it was metered and its record was checked. One goroutine at a time may use it.
type X402Rental struct {
	x     *X402Client
	peer  peer
	gpus  int
	offer wire.SignedOffer
	price metering.Price
	id    common.Hash // of the channel; zero before the first tick
}

// X402Tick is one window of GPU time, metered, charged and checked.
type X402Tick struct {
	Channel common.Hash
	Lease   common.Hash
	Devices []string
	Access  json.RawMessage // how the GPUs are reached; from a stranger
	State   string          // of the lease, as the provider says
	Charged uint256.Int     // for this tick, base units
	Record  metering.SignedRecord
}

// pendingTick is a tick that was asked for: its payment is sent again as it is
// until its record was seen, and the provider answers with what it had answered.
type pendingTick struct {
	URL    string      `json:"url"`
	Header string      `json:"header"`
	Base   uint256.Int `json:"base"` // charged before it
	Most   uint256.Int `json:"most"` // what its voucher is for

	Asked metering.Instant `json:"asked"` // on our clocks: its lease began no earlier
	Boot  string           `json:"boot"`
}

// ticking is a lease that is paid by ticks, as a checker must remember it.
type ticking struct {
	Lease      common.Hash           `json:"lease"`
	Offer      json.RawMessage       `json:"offer"`
	Devices    []string              `json:"devices"`
	OwedBefore uint256.Int           `json:"owedBefore"`
	Checker    metering.CheckerState `json:"checker"`
}

// tickTolerance is by how much a provider's clock may run ahead of ours in a
// lease that is paid by ticks. Our clock starts before the provider's, so that
// nothing that travels is in it, and a provider that begins a lease at every tick
// gains it at every tick.
const tickTolerance = 250 * time.Millisecond

// maxTick is the GPU time that one tick may cost at the offer's price, on each
// GPU: what a provider could claim for a tick that it never served.
const maxTick = time.Minute

// Rent prepares to rent GPUs of a provider of this project by ticks. It checks
// the provider's offer and moves no money.
func (x *X402Client) Rent(ctx context.Context, url string, gpus int) (*X402Rental, error) {
	if gpus < 1 {
		return nil, errors.New("renter: GPUs must be above zero")
	}
	p, err := x.r.peer(url)
	if err != nil {
		return nil, err
	}
	t := &X402Rental{x: x, peer: p, gpus: gpus}
	return t, t.agree(ctx)
}

// agree reads the provider's offer. A lease keeps the one that it began under.
func (t *X402Rental) agree(ctx context.Context) error {
	document, err := t.peer.offer(ctx)
	if err != nil {
		return err
	}
	offer, err := wire.ParseOffer(document)
	if err != nil {
		return fmt.Errorf("provider %s: %w: %w", t.peer.base, ErrOffer, err)
	}
	if offer.ChainID != t.x.r.chainID {
		return fmt.Errorf("provider %s: %w: it is paid on chain %d, this renter's endpoint serves %d", t.peer.base, chain.ErrChainID, offer.ChainID, t.x.r.chainID)
	}
	if t.price, err = t.x.r.checkPrice(offer.Offer); err != nil {
		return fmt.Errorf("provider %s: %w", t.peer.base, err)
	}
	t.offer = offer
	return nil
}

func (t *X402Rental) url() string { return t.peer.base + "/tick?gpus=" + strconv.Itoa(t.gpus) }

// Tick pays for the next window, waits until it was metered, and checks what the
// provider says of it: the record must be signed by the metering key of the
// offer, its price arithmetic must hold, the charge must be what it adds, and no
// more GPU time may be in it than passed here. What does not hold is a *Dispute,
// and nothing more is paid. A tick whose answer got lost is not paid again: the
// next call gets it.
func (t *X402Rental) Tick(ctx context.Context) (X402Tick, error) {
	b, err := t.ask(ctx)
	if err != nil {
		return X402Tick{}, err
	}
	release, err := t.x.queue(ctx, b.id)
	if err != nil {
		return X402Tick{}, err
	}
	defer release()
	if err := b.load(ctx); err != nil {
		return X402Tick{}, err
	}
	t.id = b.id
	resp, err := t.pending(ctx, b)
	if resp == nil && err == nil {
		resp, err = b.pay(ctx)
	}
	if err != nil {
		return X402Tick{}, err
	}
	defer resp.Body.Close()
	return t.answered(ctx, b, resp)
}

// ask is the request for a tick, with the offer of x402 that pays it.
func (t *X402Rental) ask(ctx context.Context) (*buying, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.url(), nil)
	if err != nil {
		return nil, err
	}
	a := &ask{req: req}
	resp, err := a.send(t.x.options.Transport, "")
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrGone, t.peer.base, err)
	}
	p, err := required(resp)
	if err != nil {
		return nil, err
	}
	if p == nil {
		defer resp.Body.Close()
		return nil, fmt.Errorf("provider %s: asked for a tick, it answered: %w", t.peer.base, shownProblem(resp))
	}
	most, err := t.price.Charge(uint64(t.gpus) * uint64(maxTick))
	if err != nil {
		return nil, err
	}
	most.AddUint64(&most, 1) // providers ask for one more, which they never charge
	b, err := t.x.choose(a, *p, lesser(t.x.maxPrice, most))
	if err != nil {
		return nil, err
	}
	if b.terms.Payee != common.Address(t.offer.Payee) {
		return nil, fmt.Errorf("provider %s: %w: x402 pays %s, the offer is of %s", t.peer.base, ErrOffer, b.terms.Payee, t.offer.Payee)
	}
	b.tick = t.url()
	return b, nil
}

// pend puts a tick's payment on disk before it is sent.
func (b *buying) pend(ctx context.Context, p signed) error {
	if b.tick == "" {
		return nil
	}
	clock := b.x.r.config.Clock
	b.slate.Tick = &pendingTick{
		URL: b.tick, Header: p.header, Base: b.slate.Charged, Most: p.most, Asked: clock.Now(), Boot: clock.BootID(),
	}
	return b.x.slates().save(ctx, b.slate)
}

// pending asks again for a tick whose record was never seen; nil if there is none
// or the provider does not answer for it any more.
func (t *X402Rental) pending(ctx context.Context, b *buying) (*http.Response, error) {
	p := b.slate.Tick
	if p == nil || p.URL != b.tick {
		return nil, nil
	}
	known := b.slate.Charged
	b.slate.Charged, b.most = p.Base, p.Most
	resp, _, err := b.deliver(ctx, p.Header)
	if err != nil {
		return nil, err
	}
	again, err := b.answered(ctx, resp, signed{header: p.Header, most: p.Most})
	if err == nil && b.booked {
		return resp, nil
	}
	drop(resp)
	if err != nil {
		return nil, err
	}
	if !again && b.slate.Charged == p.Base && known.Gt(&p.Base) {
		b.slate.Charged = known // what was booked before stays booked
	}
	b.slate.Tick = nil
	return nil, b.x.slates().save(ctx, b.slate)
}

// answered reads a tick's answer and holds it to all that is known.
func (t *X402Rental) answered(ctx context.Context, b *buying, resp *http.Response) (X402Tick, error) {
	if resp.StatusCode != http.StatusOK {
		return X402Tick{}, fmt.Errorf("channel %s: no tick: %w", b.id, shownProblem(resp))
	}
	document, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return X402Tick{}, fmt.Errorf("channel %s: %w: the tick's answer broke off: ask again and it is not paid again: %w", b.id, ErrGone, err)
	}
	tick, rec, err := t.check(ctx, b, document)
	var lie *lie
	if errors.As(err, &lie) {
		return X402Tick{}, b.distrust(ctx, lie.error, document)
	}
	if err != nil {
		return X402Tick{}, err
	}
	b.slate.Tick = nil
	return tick, b.x.slates().accept(ctx, b.slate, rec)
}

// lie is what a provider is caught at, as opposed to what fails here.
type lie struct{ error }

func (l *lie) Unwrap() error { return l.error }

func caught(format string, args ...any) error { return &lie{fmt.Errorf(format, args...)} }

// check holds a tick to the receipt, the offer, our clock and the record before.
func (t *X402Rental) check(ctx context.Context, b *buying, document []byte) (X402Tick, *metering.SignedRecord, error) {
	var said x402Tick
	if len(document) > maxAnswer || json.Unmarshal(document, &said) != nil || said.Record == nil {
		return X402Tick{}, nil, caught("%w: a tick was charged and its record is not there", ErrGarbage)
	}
	rec := said.Record
	if rec.LeaseID != said.LeaseID || said.ChannelID != b.id || !b.booked {
		return X402Tick{}, nil, caught("%w: the answer, its record and its receipt are about different things", ErrGarbage)
	}
	lease, err := t.lease(ctx, b, said)
	if err != nil {
		return X402Tick{}, nil, err
	}
	if err := b.follow(lease, *rec); err != nil {
		return X402Tick{}, nil, err
	}
	var owed uint256.Int
	if base := b.slate.Tick.Base; rec.Owed.Gt(&base) {
		owed.Sub(&rec.Owed, &base)
	}
	if owed != b.charge || said.Charged.Int != b.charge {
		return X402Tick{}, nil, caught("%w: charged %s, its record adds %s", ErrOvercharged, b.charge.Dec(), owed.Dec())
	}
	b.slate.Ticking = lease
	return X402Tick{
		Channel: b.id, Lease: said.LeaseID, Devices: lease.Devices, Access: said.Access, State: printable(said.State), Charged: b.charge, Record: *rec,
	}, rec, nil
}

// lease is the one that a tick is of: ours, or one that has just begun.
func (t *X402Rental) lease(ctx context.Context, b *buying, said x402Tick) (*ticking, error) {
	if l := b.slate.Ticking; l != nil && l.Lease == said.LeaseID {
		kept := *l
		return &kept, nil
	}
	if said.OfferHash != t.offer.Hash {
		if err := t.agree(ctx); err != nil {
			return nil, err
		}
	}
	if said.OfferHash != t.offer.Hash {
		return nil, caught("%w: the lease is under offer %s, the provider's is %s", ErrOffer, said.OfferHash, t.offer.Hash)
	}
	if len(said.Devices) != t.gpus {
		return nil, caught("%w: %d in the lease, %d were paid", metering.ErrDevices, len(said.Devices), t.gpus)
	}
	for _, uuid := range said.Devices {
		if uuid == "" || uuid != printable(uuid) {
			return nil, caught("%w: a device is called %.60q", ErrGarbage, uuid)
		}
	}
	p := b.slate.Tick
	if said.Record.OwedBefore.Gt(&p.Base) {
		return nil, caught("%w: the lease begins with %s owed, %s was charged", ErrDemand, said.Record.OwedBefore.Dec(), p.Base.Dec())
	}
	start, err := t.startOf(b.slate, *said.Record)
	if err != nil {
		return nil, err
	}
	return &ticking{
		Lease: said.LeaseID, Offer: t.offer.Document, Devices: said.Devices, OwedBefore: said.Record.OwedBefore,
		Checker: metering.CheckerState{BootID: p.Boot, Start: start, Owed: said.Record.OwedBefore},
	}, nil
}

// startOf is where our clock starts for a lease: when it was asked for. One that
// ran before, as for a renter that lost its database, began so much earlier as
// its record says, and may only have cost for that what was charged already.
func (t *X402Rental) startOf(s slate, rec metering.SignedRecord) (metering.Instant, error) {
	p := s.Tick
	start := p.Asked
	added := uint64(max(0, rec.Evidence.Nanos))
	if added > rec.Nanos {
		return start, caught("%w: %d ns are new of %d", metering.ErrBackwards, added, rec.Nanos)
	}
	earlier, err := t.price.Charge(rec.Nanos - added)
	if err != nil {
		return start, err
	}
	if earlier.Add(&earlier, &rec.OwedBefore); earlier.Gt(&p.Base) {
		return start, caught("%w: %s owed before this tick, %s was charged", ErrDemand, earlier.Dec(), p.Base.Dec())
	}
	var ran int64
	for _, d := range rec.Evidence.Devices {
		ran = max(ran, d.Total-d.Nanos.Allocated)
		if s.Found { // it may be the copy of an answer from before
			ran = max(ran, p.Asked.Wall-d.From.Wall)
		}
	}
	start.Boot, start.Mono, start.Wall = start.Boot-ran, start.Mono-ran, start.Wall-ran
	return start, nil
}

// follow checks a record and remembers it in lease.
func (b *buying) follow(lease *ticking, rec metering.SignedRecord) error {
	offer, err := wire.ParseOffer(lease.Offer)
	if err != nil {
		return fmt.Errorf("channel %s: its offer on disk does not parse; restore the database from its backup: %w", b.id, err)
	}
	unit, err := metering.ParseUnit(offer.Unit)
	if err != nil {
		return err
	}
	state, err := bridge(lease.Checker, rec)
	if err != nil {
		return &lie{err}
	}
	checker, err := metering.ResumeChecker(metering.CheckerConfig{
		Key: common.Address(offer.Meter), Tolerance: min(tickTolerance, b.x.r.config.Tolerance), Clock: b.x.r.config.Clock,
		Lease: metering.Lease{
			ID: lease.Lease, ChannelID: b.id, OfferHash: offer.Hash, ChainID: b.terms.ChainID, Escrow: b.terms.Escrow,
			Price: metering.Price{Amount: offer.Amount.Int, Unit: unit}, OwedBefore: lease.OwedBefore, Devices: lease.Devices,
			MaxGap: time.Duration(offer.MaxGap) * time.Millisecond,
		},
	}, state)
	if err != nil {
		return &lie{fmt.Errorf("%w: %w", ErrGarbage, err)}
	}
	if err := checker.Check(rec); err != nil {
		return &lie{err}
	}
	lease.Checker = checker.State()
	return nil
}

// bridge goes over records that were never shown: a provider states what it
// metered when it suspends a lease, and no tick carries that. What they can cost
// stays bounded, since a record's time is counted from the lease's beginning: it
// may not fall, and not run ahead of our clock.
func bridge(s metering.CheckerState, rec metering.SignedRecord) (metering.CheckerState, error) {
	if rec.Sequence <= s.Sequence+1 {
		return s, nil
	}
	added := uint64(max(0, rec.Evidence.Nanos))
	if added > rec.Nanos || rec.Nanos-added < s.Nanos {
		return s, fmt.Errorf("lease %s, record %d: %w: %d ns, of which %d are new, after %d", rec.LeaseID, rec.Sequence, metering.ErrBackwards, rec.Nanos, added, s.Nanos)
	}
	last := s.Devices
	s.Sequence, s.Last, s.Nanos, s.Devices = rec.Sequence-1, rec.Previous, rec.Nanos-added, nil
	for _, d := range rec.Evidence.Devices {
		from := metering.CheckedDevice{UUID: d.Device.UUID, Total: d.Total - d.Nanos.Allocated}
		for _, before := range last {
			if before.UUID != from.UUID {
				continue
			}
			if from.Total < before.Total {
				return s, fmt.Errorf("lease %s, record %d: %w: %s shows time from %d ns, an earlier record went to %d", rec.LeaseID, rec.Sequence, metering.ErrBackwards, from.UUID, from.Total, before.Total)
			}
			from.BootID, from.Mono = before.BootID, before.Mono
		}
		s.Devices = append(s.Devices, from)
	}
	return s, nil
}

// Run pays tick after tick and hands each to seen, until ctx ends or something
// stops it for good. The tick that runs when ctx ends is seen to its end: it is
// paid. A provider that cannot be reached is asked again for as long as the
// renter's Patience lasts.
func (t *X402Rental) Run(ctx context.Context, seen func(X402Tick)) error {
	heard := time.Now()
	for ctx.Err() == nil {
		tick, err := t.finish(ctx)
		switch {
		case err == nil:
			heard = time.Now()
			seen(tick)
			continue
		case !t.passing(err):
			return err
		case time.Since(heard) > t.x.r.config.Patience:
			return fmt.Errorf("%w: no tick for %s: %w", ErrSilent, t.x.r.config.Patience, err)
		}
		if err := chain.Pause(ctx, t.x.r.config.Poll); err != nil {
			return nil
		}
	}
	return nil
}

// finish is a Tick that the end of ctx does not interrupt.
func (t *X402Rental) finish(ctx context.Context) (X402Tick, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), chainTimeout)
	defer cancel()
	return t.Tick(ctx)
}

// passing reports what the next try may not meet.
func (t *X402Rental) passing(err error) bool {
	var d *Dispute
	var capped *channel.CapError
	var problem *wire.Problem
	switch {
	case errors.As(err, &d), errors.As(err, &capped), errors.Is(err, ErrNotOffered), errors.Is(err, ErrDeposit), errors.Is(err, ErrBalance), errors.Is(err, channel.ErrClosing):
		return false
	case errors.As(err, &problem):
		return problem.Status >= 500 || problem.Status == http.StatusTooManyRequests || problem.Status == http.StatusPaymentRequired
	}
	return errors.Is(err, ErrGone) || errors.Is(err, ErrLostAnswer) || errors.Is(err, chain.ErrUnreachable)
}

// Close ends the lease by taking back all that was not charged.
func (t *X402Rental) Close(ctx context.Context) (X402Refund, error) {
	return t.x.Refund(ctx, t.url(), "")
}

// Records returns the usage records that were checked for ticks of a channel.
func (x *X402Client) Records(ctx context.Context, channelID common.Hash) ([]metering.SignedRecord, error) {
	return x.slates().records(ctx, channelID)
}
