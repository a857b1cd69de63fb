package sdk

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/wire"
)

// start allocates devices and begins a lease on an open channel. The row is on
// disk before the first command runs, so that a crash in between still
// releases what was allocated.
func (p *Provider) start(ctx context.Context, s channel.State, offer wire.SignedOffer, gpus int) (*lease, string, error) {
	if err := errors.Join(p.canServe(offer, gpus), p.canPay(s, offer, gpus)); err != nil {
		return nil, "", err
	}
	id, secret := randomHash(), randomHash().Hex()[2:]
	row := leaseRow{
		ID: id.Hex(), Channel: s.ID.Hex(), Offer: offer.Hash.Hex(), SecretHash: hashSecret(secret), GPUs: gpus,
		Allocation: "{}", OwedBefore: s.Spent.Dec(), State: string(leaseAllocating), StartedAt: time.Now().UnixNano(),
	}
	if p.replicas != nil {
		row.Owner, row.Term = p.replicas.identity(), 1
	}
	if err := p.store.insert(ctx, row); err != nil {
		if p.replicas != nil && store.Conflict(err) {
			return nil, "", errElsewhere(s.ID)
		}
		return nil, "", err
	}
	fault.Point(fault.LeaseWritten)
	// A renter that hangs up must not leave a half-made allocation behind.
	call, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.config.CallTimeout)
	defer cancel()
	a, err := p.config.Allocator.Allocate(call, AllocationRequest{LeaseID: id, Payer: s.Terms.Payer, GPUs: gpus})
	if err == nil && len(a.Devices) != gpus {
		err = errors.Join(fmt.Errorf("allocator gave %d devices to lease %s, %d were asked for", len(a.Devices), id, gpus),
			p.config.Allocator.Release(call, a))
	}
	if err != nil {
		return nil, "", errors.Join(err, p.store.setState(call, id, row.Term, leaseEnded, "not allocated", time.Now().Unix()))
	}
	fault.Point(fault.LeaseAllocated)
	a.LeaseID = id
	text, err := json.Marshal(a)
	if err == nil {
		err = p.store.activate(call, id, row.Term, string(text))
	}
	if err != nil {
		return nil, "", errors.Join(err, p.config.Allocator.Release(call, a))
	}
	fault.Point(fault.LeaseActivated)
	l, err := p.newLease(s, offer, a, s.Spent, nil, nil)
	if err != nil {
		return nil, "", errors.Join(err, p.config.Allocator.Release(call, a), p.store.setState(call, id, row.Term, leaseEnded, "not started", time.Now().Unix()))
	}
	l.term = row.Term
	if err := p.launch(l, leaseActive, s, nil); err != nil {
		return nil, "", err // the next process takes the lease up
	}
	return l, secret, nil
}

// canServe refuses a lease that could not be begun, before anybody's money
// moves for it.
func (p *Provider) canServe(offer wire.SignedOffer, gpus int) error {
	p.mu.Lock()
	closing := p.closed || p.draining
	p.mu.Unlock()
	if closing {
		return wire.Unavailable.With("this provider takes no new leases")
	}
	if offer.ExpiredAt(time.Now()) {
		return wire.PaymentExpired.With("the offer %s has expired: ask again for the price", offer.Hash)
	}
	if c, ok := p.config.Allocator.(Capacity); ok && c.Free() < gpus {
		return fmt.Errorf("%w: %d wanted, %d free", ErrNoCapacity, gpus, c.Free())
	}
	if least := time.Duration(gpus) * 4 * p.config.Tick; p.config.Credit < least {
		return wire.NoCapacity.With("%d GPUs need a credit of %s, this provider gives %s", gpus, least, p.config.Credit)
	}
	return nil
}

// canPay refuses a lease that would be suspended at once: the deposit must
// have room for one record of every GPU, after what is owed already.
func (p *Provider) canPay(s channel.State, offer wire.SignedOffer, gpus int) error {
	price, err := offerPrice(offer.Offer)
	if err != nil {
		return err
	}
	need, err := price.Charge(uint64(gpus) * uint64(p.config.RecordEvery+4*p.config.Tick))
	if err != nil {
		return err
	}
	need.Add(&need, &s.Spent)
	if need.Gt(&s.Deposit) {
		return wire.InsufficientBalance.With("channel %s holds %s and has spent %s: top it up, or open another", s.ID, s.Deposit.Dec(), s.Spent.Dec())
	}
	return nil
}

func offerPrice(o wire.Offer) (metering.Price, error) {
	unit, err := metering.ParseUnit(o.Unit)
	if err != nil {
		return metering.Price{}, err
	}
	price := metering.Price{Amount: o.Amount.Int, Unit: unit}
	return price, price.Validate()
}

// newLease builds a lease: fresh, or as its last record and the meter's state
// left it.
func (p *Provider) newLease(s channel.State, offer wire.SignedOffer, a Allocation, owedBefore uint256.Int, last *metering.Record, saved *metering.State) (*lease, error) {
	price, err := offerPrice(offer.Offer)
	if err != nil {
		return nil, err
	}
	credit, err := price.Charge(offer.Credit * uint64(time.Second))
	if err != nil {
		return nil, err
	}
	meter, err := p.newMeter(a.Devices, offer.Offer, saved)
	if err != nil {
		return nil, err
	}
	recorder, err := metering.NewRecorder(metering.Lease{
		ID: a.LeaseID, ChannelID: s.ID, OfferHash: offer.Hash, ChainID: s.Terms.ChainID, Escrow: s.Terms.Escrow,
		MaxGap: time.Duration(offer.MaxGap) * time.Millisecond,
		Price:  price, OwedBefore: owedBefore, Devices: a.Devices,
	}, p.config.MeterKey, last)
	if err != nil {
		return nil, err
	}
	return &lease{
		id: a.LeaseID, terms: s.Terms, offer: offer, price: price, credit: credit, allocation: a, owedBefore: owedBefore,
		meter: meter, recorder: recorder,
		stop: make(chan stopRequest), poke: make(chan struct{}, 1), done: make(chan struct{}), changed: make(chan struct{}),
		deps: leaseDeps{
			allocator: p.config.Allocator, source: p.config.Source, clock: p.config.Clock, store: p.store,
			metrics: p.metrics, log: p.config.Log, ended: p.leaseEnded, dropped: p.leaseDropped,
			timing: leaseTiming{tick: p.config.Tick, recordEvery: p.config.RecordEvery,
				suspendTimeout: p.config.SuspendTimeout, callTimeout: p.config.CallTimeout},
		},
	}, nil
}

func (p *Provider) newMeter(devices []string, o wire.Offer, saved *metering.State) (*metering.Meter, error) {
	config := metering.Config{
		Devices: devices,
		Tick:    time.Duration(o.Tick) * time.Millisecond,
		MaxGap:  time.Duration(o.MaxGap) * time.Millisecond,
	}
	if saved != nil {
		return metering.Restore(config, *saved)
	}
	return metering.NewMeter(config)
}

// launch lets a lease run. Its view starts where its last record is.
func (p *Provider) launch(l *lease, state leaseState, s channel.State, last *metering.Record) error {
	l.view = leaseView{state: state, version: 1, stream: l.view.stream, owed: l.owedBefore, accepted: s.Accepted, deposit: s.Deposit}
	if last != nil {
		l.view.sequence, l.view.owed, l.view.nanos = last.Sequence, last.Owed, last.Nanos
	}
	if state == leaseSuspended {
		l.meter.Pause()
		l.view.need = 1
	}
	if !p.begin() {
		return errClosed
	}
	p.mu.Lock()
	p.leases[s.ID] = l
	p.mu.Unlock()
	go func() {
		defer p.wait.Done()
		l.run(p.life)
	}()
	p.config.Log.Info("lease started", "lease", l.id, "channel", s.ID, "payer", s.Terms.Payer, "devices", l.allocation.Devices, "state", string(state))
	return nil
}

// remembered is the lease that the request's secret belongs to, if it is over:
// its records can still be read, and its GPUs no longer be reached.
func (p *Provider) remembered(r *request, s channel.State) (*lease, error) {
	row, ok, err := p.store.newest(r.Context(), s.ID)
	if err != nil || !ok || row.State != string(leaseEnded) || !sameSecret(r.cred.Payload.LeaseSecret, row.SecretHash) {
		return nil, err
	}
	a, err := row.allocation()
	if err != nil {
		return nil, err
	}
	a.Access = json.RawMessage("null")
	before, err := channel.ParseAmount(row.OwedBefore)
	if err != nil {
		return nil, err
	}
	l := &lease{id: a.LeaseID, terms: s.Terms, allocation: a, owedBefore: before, deps: leaseDeps{store: p.store},
		done: make(chan struct{}), changed: make(chan struct{})}
	close(l.done)
	l.offer.Hash = common.HexToHash(row.Offer)
	l.view = leaseView{state: leaseEnded, reason: row.Reason, version: 2, owed: s.Spent, accepted: s.Accepted, deposit: s.Deposit}
	last, err := p.store.last(r.Context(), l.id)
	if err == nil && last != nil {
		l.view.sequence, l.view.owed, l.view.nanos = last.Sequence, last.Owed, last.Nanos
	}
	return l, err
}

// closeGrace is how long a renter has, after its lease, to pay what is left and
// close: a settlement before that would be paid for twice.
const closeGrace = time.Minute

// leaseEnded makes room for the next lease on the channel and has what is owed
// settled, unless the renter closes first.
func (p *Provider) leaseEnded(l *lease) {
	p.leaseDropped(l)
	if p.replicas != nil {
		return // the leader finds it in the table
	}
	timer := time.AfterFunc(closeGrace, func() { p.crew.urgent(l.terms) })
	context.AfterFunc(p.life, func() { timer.Stop() }) // after a restart the policy's MaxAge settles it
}

// leaseDropped makes room for another lease on the channel.
func (p *Provider) leaseDropped(l *lease) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.leases[l.terms.ID()] == l { // it may have come back here meanwhile
		delete(p.leases, l.terms.ID())
	}
}

// restore takes up the leases of an earlier run.
func (p *Provider) restore(ctx context.Context) error {
	if p.replicas != nil {
		return p.replicas.join(ctx)
	}
	rows, err := p.store.unfinished(ctx)
	if err != nil {
		return fmt.Errorf("leases of the last run: %w", err)
	}
	for _, row := range rows {
		if err := p.adopt(ctx, row); err != nil {
			p.config.Log.Warn("lease of the last run is ended", "lease", row.ID, "reason", err)
			if err := p.abandon(ctx, row, err.Error()); err != nil {
				return fmt.Errorf("ending lease %s of the last run: %w", row.ID, err)
			}
		}
	}
	return nil
}

func (p *Provider) adopt(ctx context.Context, row leaseRow) error {
	id := common.HexToHash(row.ID)
	if row.State == string(leaseAllocating) {
		return errors.New("it was not allocated yet")
	}
	last, err := p.store.last(ctx, id)
	if err != nil {
		return err
	}
	if last != nil && last.Final {
		return errors.New("its final record was written")
	}
	s, err := p.payee.State(ctx, common.HexToHash(row.Channel))
	if err != nil {
		return err
	}
	if s.Status != channel.Open {
		return fmt.Errorf("its channel is %s", s.Status)
	}
	adopter, ok := p.config.Allocator.(Adopter)
	if !ok {
		return errors.New("the allocator cannot adopt it")
	}
	a, err := row.allocation()
	if err != nil {
		return err
	}
	if err := adopter.Adopt(ctx, a); err != nil {
		return fmt.Errorf("%w: %w", errNotHere, err)
	}
	l, err := p.rebuild(ctx, row, s, a, last)
	if err != nil {
		return err
	}
	var record *metering.Record
	if last != nil {
		record = &last.Record
	}
	return p.launch(l, leaseState(row.State), s, record)
}

// errNotHere is a lease whose devices cannot be taken up here.
var errNotHere = errors.New("its devices cannot be taken up here")

// rebuild is a lease as its row and its last record left it.
func (p *Provider) rebuild(ctx context.Context, row leaseRow, s channel.State, a Allocation, last *metering.SignedRecord) (*lease, error) {
	offer, err := p.store.offer(ctx, common.HexToHash(row.Offer))
	if err != nil {
		return nil, err
	}
	saved, record, err := row.metered(last)
	if err != nil {
		return nil, err
	}
	before, err := channel.ParseAmount(row.OwedBefore)
	if err != nil {
		return nil, err
	}
	l, err := p.newLease(s, offer, a, before, record, saved)
	if err != nil {
		return nil, err
	}
	l.term = row.Term
	l.view.stream = uint64(row.Stream)
	return l, nil
}

func (r leaseRow) allocation() (Allocation, error) {
	var a Allocation
	err := json.Unmarshal([]byte(r.Allocation), &a)
	a.LeaseID = common.HexToHash(r.ID)
	return a, err
}

// metered is where the meter was at the lease's last record.
func (r leaseRow) metered(last *metering.SignedRecord) (*metering.State, *metering.Record, error) {
	if last == nil {
		return nil, nil, nil
	}
	var saved metering.State
	if err := json.Unmarshal([]byte(r.Meter), &saved); err != nil {
		return nil, nil, fmt.Errorf("stored meter of lease %s: %w", r.ID, err)
	}
	return &saved, &last.Record, nil
}

// abandon releases what a lease of an earlier run still holds.
func (p *Provider) abandon(ctx context.Context, row leaseRow, reason string) error {
	a, err := row.allocation()
	if err != nil {
		return err
	}
	if adopter, ok := p.config.Allocator.(Adopter); ok && len(a.Devices) > 0 {
		_ = adopter.Adopt(ctx, a) // so that Release knows its devices; it is released whether or not this works
	}
	call, cancel := context.WithTimeout(ctx, p.config.CallTimeout)
	defer cancel()
	if err := p.config.Allocator.Release(call, a); err != nil {
		return err
	}
	return p.store.setState(ctx, common.HexToHash(row.ID), row.Term, leaseEnded, reason, time.Now().Unix())
}

func randomHash() (h common.Hash) {
	_, _ = rand.Read(h[:]) // crypto/rand.Read never fails: it ends the program instead
	return h
}

// hashSecret is how a lease secret is kept: whoever reads the database cannot
// attach to a lease with it.
func hashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

func sameSecret(secret, hash string) bool {
	return secret != "" && subtle.ConstantTimeCompare([]byte(hashSecret(secret)), []byte(hash)) == 1
}
