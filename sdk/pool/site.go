package pool

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/route"
	"github.com/gpupay/gpupay/sdk/units"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// How often an offer is fetched, and how long after a failure.
const (
	offerEvery = 5 * time.Minute
	leastPause = 2 * time.Second
	mostPause  = 5 * time.Minute
)

// site is a provider, and the rental at it if there is one.
type site struct {
	p      *Pool
	url    string
	forget context.CancelFunc // ends the watch of its offer; nil: it is no candidate. Pool.mu guards it

	mu      sync.Mutex
	offer   terms // the zero terms: none stands
	lease   *lease
	opening chan struct{} // closed when an opening is over; nil: none goes on
	ending  int           // rentals that are being closed or left
	failed  error         // why none was opened
	fails   int           // in a row
	pause   time.Duration
	retry   time.Time     // when one is opened again
	short   *WalletError  // what is wanting for one; nil: nothing
	silent  error         // why no offer stands
	asked   time.Time     // when the offer was, last
	next    time.Time     // when it is again
	wake    chan struct{} // has it be asked now
}

// terms are what a signed offer says of requests.
type terms struct {
	price route.Nano // of a second in a slot
	slots int
	until time.Time
}

func termsOf(price metering.Price, share metering.Share) (t terms, err error) {
	if err := share.Validate(); err != nil {
		return t, err
	}
	t.slots = int(share.Slots)
	t.price, err = route.SlotSecond(price.Amount, time.Duration(price.Unit.Nanos()), share.GPUs, share.Slots)
	return t, err
}

// watch fetches the offer until the site is no candidate any more.
func (s *site) watch(ctx context.Context) {
	pause := leastPause
	for {
		t, _, err := s.quote(ctx)
		wait := offerEvery
		switch {
		case ctx.Err() != nil:
		case err != nil:
			s.p.log.Warn("no offer of a provider stands: it is asked again", "provider", s.url, "err", err, "retry", pause)
			wait, pause = pause, min(2*pause, mostPause)
		default:
			pause, wait = leastPause, max(leastPause, min(offerEvery, time.Until(t.until)/2))
		}
		s.mu.Lock()
		s.offer, s.silent, s.asked, s.next = t, err, time.Now(), time.Now().Add(wait)
		s.mu.Unlock()
		select {
		case <-s.wake:
		case <-ctx.Done():
			s.mu.Lock()
			s.offer = terms{}
			s.mu.Unlock()
			return
		case <-time.After(wait):
		}
	}
}

// quote is the provider's offer, verified.
func (s *site) quote(ctx context.Context) (t terms, q renter.Quote, err error) {
	if q, err = s.p.client.Quote(ctx, s.url); err != nil {
		return t, q, err
	}
	if q.Offer.Share == nil {
		return t, q, fmt.Errorf("provider %s shares no GPUs: %w", s.url, ErrEndpoint)
	}
	t, err = termsOf(q.Price, metering.Share{GPUs: q.Offer.Share.GPUs, Slots: q.Offer.Share.Slots})
	if err != nil {
		return terms{}, q, fmt.Errorf("provider %s: %w", s.url, err)
	}
	t.until = time.Unix(q.Offer.Expires, 0)
	return t, q, nil
}

// terms are those of the rental that runs, or of the offer that stands.
func (s *site) terms() (terms, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lease != nil {
		return s.lease.terms, true
	}
	stands := s.short == nil && s.offer.slots > 0 && s.p.client.Wallet().Now().Before(s.offer.until) && !time.Now().Before(s.retry)
	return s.offer, stands
}

// acquire is the rental with one more reservation on it, opened if there is none. It refuses a slot-second that costs more than price.
func (s *site) acquire(ctx context.Context, price route.Nano) (*lease, error) {
	tried := false
	for {
		s.mu.Lock()
		if l := s.lease; l != nil {
			if err := s.within(l.terms.price, price); err != nil {
				s.mu.Unlock()
				return nil, err
			}
			l.holds++
			s.mu.Unlock()
			if err := l.ready(ctx); err != nil {
				l.release()
				return nil, err
			}
			return l, nil
		}
		if tried && s.short != nil {
			defer s.mu.Unlock()
			return nil, fmt.Errorf("provider %s: %w", s.url, s.short)
		}
		if err := s.within(s.offer.price, price); tried && err != nil {
			defer s.mu.Unlock()
			return nil, err
		}
		opening := s.opening
		if opening == nil {
			if time.Now().Before(s.retry) {
				defer s.mu.Unlock()
				return nil, fmt.Errorf("provider %s: %w: opening a rental failed, and is tried again in %s: %w", s.url, ErrEndpoint, time.Until(s.retry).Round(time.Millisecond), s.failed)
			}
			opening = make(chan struct{})
			s.opening = opening
			if !s.p.begin(func(ctx context.Context) {
				s.open(ctx, opening, func(ctx context.Context) (*renter.Rental, error) { return s.rent(ctx, price) })
			}) {
				s.opening = nil
				s.mu.Unlock()
				return nil, ErrClosed
			}
		}
		s.mu.Unlock()
		tried = true
		select {
		case <-opening:
		case <-ctx.Done():
			return nil, fmt.Errorf("provider %s: a rental is being opened: %w", s.url, ctx.Err())
		case <-s.p.ctx.Done():
			return nil, ErrClosed
		}
	}
}

// open has a rental begin, or go on, for all that wait for it. It goes on where they give up: a deposit that was begun is not made a
// second time.
func (s *site) open(ctx context.Context, over chan struct{}, begin func(context.Context) (*renter.Rental, error)) {
	rental, err := begin(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	defer close(over)
	s.opening = nil
	if err == nil {
		err = s.run(rental)
	}
	s.short = nil
	if errors.As(err, &s.short) { // no fault of the provider's: it is tried again as soon as the wallet holds enough
		s.failed, s.retry = err, time.Now()
		s.p.log.Warn("no rental was opened", "provider", s.url, "err", err)
		return
	}
	if err != nil && ctx.Err() == nil && !errors.Is(err, errDearer) {
		s.pause = min(max(2*s.pause, leastPause), mostPause)
		s.failed, s.retry, s.fails = err, time.Now().Add(s.pause), s.fails+1
		s.p.log.Warn("no rental was opened", "provider", s.url, "err", err, "retry", s.pause)
		if s.fails >= mostFails {
			s.abandon()
		}
		return
	}
	if err != nil {
		return
	}
	s.pause, s.failed, s.retry, s.fails = 0, nil, time.Time{}, 0
}

// mostFails is how often an opening is tried before its deposit, if one was made, is got back.
const mostFails = 4

// abandon has what a failed opening left be got back, without the provider. The caller holds mu.
func (s *site) abandon() {
	s.fails, s.failed = 0, nil
	s.ending++
	left := func(ctx context.Context) {
		defer s.ended()
		rentals, err := s.p.client.Rentals(ctx)
		if err != nil {
			s.p.log.Warn("whether a failed opening left a deposit is not known: the next start looks again", "provider", s.url, "err", err)
		}
		for _, r := range rentals {
			if base(r.URL) == s.url && r.Share.Shared() && r.Phase == renter.PhaseOpening {
				s.finish(ctx, r.Channel, nil, true)
			}
		}
	}
	if !s.p.begin(left) {
		s.ending--
	}
}

func (s *site) ended() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ending--
}

// rent opens a rental, with the smallest deposit, where a slot-second costs no more than price. One whose opening failed before goes on, and
// is not opened a second time.
func (s *site) rent(ctx context.Context, price route.Nano) (*renter.Rental, error) {
	if s.failed != nil {
		rentals, err := s.p.client.Rentals(ctx)
		if err != nil {
			return nil, err
		}
		for _, r := range rentals {
			if base(r.URL) == s.url && r.Share.Shared() && r.Phase == renter.PhaseOpening {
				rental, err := s.p.client.Resume(ctx, r.Channel)
				if errors.Is(err, renter.ErrNeverFunded) {
					continue
				}
				return rental, err
			}
		}
	}
	t, q, err := s.quote(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.within(t.price, price); err != nil { // before a deposit is made at a price that nobody chose
		s.mu.Lock()
		s.offer = t
		s.mu.Unlock()
		return nil, err
	}
	options := renter.Options{Share: true, Deposit: s.p.deposit, TopUp: s.p.topUp}
	least, step, err := amounts(q)
	if err != nil {
		return nil, fmt.Errorf("provider %s: %w", s.url, err)
	}
	if deposit, err := units.Parse(options.Deposit, q.Decimals); err != nil || deposit.Lt(&least) {
		options.Deposit = units.Format(least, q.Decimals)
	}
	if options.TopUp == "" {
		options.TopUp = units.Format(step, q.Decimals)
	}
	rental, err := s.p.client.Accept(ctx, q, options)
	return rental, s.wantOf(ctx, options.Deposit, err)
}

// What the smallest deposit covers, and a top-up, in time of the provider's GPUs.
const (
	depositLead = time.Minute
	topUpTime   = 5 * time.Minute
)

// amounts are the least deposit of an offer with which no top-up is due at once, and a top-up.
func amounts(q renter.Quote) (deposit, topUp uint256.Int, err error) {
	gpus := uint64(q.Offer.Share.GPUs)
	between := time.Duration(q.Offer.RecordEvery+2*q.Offer.Tick) * time.Millisecond
	lead := min(depositLead*time.Duration(gpus), time.Duration(q.Offer.Credit)*time.Second) // the credit is bounded by renter.Config.MaxCredit
	deposit, err = q.Price.Charge(gpus*uint64(2*between+time.Second) + uint64(lead))
	if err != nil {
		return deposit, topUp, err
	}
	deposit = u256.Max(deposit, q.MinDeposit)
	topUp, err = q.Price.Charge(gpus * uint64(topUpTime))
	if q.Offer.MinTopUp != nil {
		topUp = u256.Max(topUp, q.Offer.MinTopUp.Int)
	}
	return deposit, topUp, err
}

// run pays for a rental until it ends; one above the cap of now, which an earlier process began under a higher one, is closed, and not asked.
// The caller holds mu.
func (s *site) run(rental *renter.Rental) error {
	shown := rental.Snapshot()
	t, err := termsOf(shown.Price, shown.Share)
	if err != nil {
		return fmt.Errorf("channel %s: %w", rental.ID(), err)
	}
	l := &lease{site: s, rental: rental, terms: t, used: time.Now(), over: make(chan struct{}), aside: make(map[string]bool)}
	if !s.p.begin(l.keep) {
		return ErrClosed
	}
	dear := s.p.client.Wallet().CheckCap(shown.Price)
	if s.lease == nil && dear == nil && !s.p.isClosing() {
		s.lease = l
	} else {
		l.idle = true // another one runs, or none is to: it is closed
	}
	if dear != nil {
		s.p.log.Warn("a rental costs more than is allowed now: it is closed", "provider", s.url, "channel", rental.ID(), "err", dear)
	}
	s.ending++
	return nil
}

// end has the rental be closed.
func (s *site) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lease != nil {
		s.lease.retire()
	}
	if s.failed != nil && s.opening == nil {
		s.abandon()
	}
}

func (s *site) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ending > 0 || s.opening != nil
}

// tend reads the records of the rental, and has it be closed once it is idle.
func (s *site) tend(ctx context.Context) {
	s.mu.Lock()
	l := s.lease
	if l != nil && l.holds == 0 && time.Since(l.used) > s.p.idle {
		s.p.log.Info("nobody uses a rental: it is closed", "provider", s.url, "channel", l.rental.ID())
		l.retire()
	}
	if s.failed != nil && s.opening == nil && time.Since(s.retry) > s.p.idle {
		s.abandon()
	}
	s.mu.Unlock()
	if l != nil {
		s.p.correct(ctx, l.rental)
	}
}

// finish closes a rental and waits for its refund, or leaves its provider where that does not help.
func (s *site) finish(ctx context.Context, id common.Hash, rental *renter.Rental, leave bool) {
	pause, tries := leastPause, 0
	for ctx.Err() == nil {
		var err error
		if rental == nil {
			rental, err = s.p.client.Rental(ctx, id)
		}
		if err == nil {
			var closing renter.Closing
			if leave {
				closing, err = rental.Leave(ctx)
			} else {
				closing, err = rental.Close(ctx)
			}
			if closing.Channel != (common.Hash{}) {
				s.p.log.Info("a rental is over", "provider", s.url, "channel", id, "settled", closing.Settled.Dec(), "refunded", closing.Refunded.Dec(), "err", err)
				s.p.settle(ctx, rental)
				return
			}
		}
		if ctx.Err() != nil {
			return
		}
		if !wallet.StorageFailed(err) { // the next try may pay what was used last, which to leave would not
			tries++
		}
		turned := !leave && (tries >= 3 || alone(err))
		leave = leave || turned
		s.p.log.Warn("a rental is not closed yet", "provider", s.url, "channel", id, "alone", leave, "err", err, "retry", pause)
		if turned {
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, time.Minute)
	}
}

// alone reports an error after which a provider is not asked to close: its deposit is got back without it.
func alone(err error) bool {
	if wallet.StorageFailed(err) {
		return false
	}
	for _, of := range []error{renter.ErrSilent, renter.ErrUnreachable, renter.ErrRefused, renter.ErrProtocol, channel.ErrClosing} {
		if errors.Is(err, of) {
			return true
		}
	}
	return false
}

// lease is a rental that runs. Its site's mu guards what changes.
type lease struct {
	site   *site
	rental *renter.Rental
	terms  terms
	over   chan struct{} // closed when nobody pays any more
	stop   context.CancelFunc
	idle   bool // it is to be closed, or was before it ran
	holds  int
	used   time.Time
	aside  map[string]bool // days and keys for which something is kept aside
}

// keep pays until the lease ends, or is retired, and then gets its deposit back.
func (l *lease) keep(ctx context.Context) {
	s := l.site
	defer s.ended()
	paying, stop := context.WithCancel(ctx)
	defer stop()
	s.mu.Lock()
	if l.stop = stop; l.idle {
		stop()
	}
	s.mu.Unlock()
	err := l.rental.Run(paying)
	s.mu.Lock()
	if s.lease == l {
		s.lease = nil
	}
	s.mu.Unlock()
	close(l.over)
	if err != nil && !errors.Is(err, context.Canceled) {
		s.p.log.Warn("a rental is paid no more", "provider", s.url, "channel", l.rental.ID(), "err", err)
	}
	s.finish(ctx, l.rental.ID(), l.rental, paying.Err() == nil && alone(err))
}

// retire has the rental be closed. The caller holds the site's mu.
func (l *lease) retire() {
	if l.idle = true; l.stop != nil {
		l.stop()
	}
	if l.site.lease == l {
		l.site.lease = nil
	}
}

// ready waits until the lease says where requests go: one that was taken up again is attached to first.
func (l *lease) ready(ctx context.Context) error {
	for end := time.Now().Add(30 * time.Second); ; {
		_, err := l.rental.Endpoint()
		if err == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("provider %s: %w: %w", l.site.url, ErrEndpoint, err)
		}
		select {
		case <-l.over:
			return fmt.Errorf("provider %s: %w: its rental has ended", l.site.url, ErrEndpoint)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// release takes a reservation off it.
func (l *lease) release() {
	l.site.mu.Lock()
	defer l.site.mu.Unlock()
	l.holds--
	l.used = time.Now()
}
