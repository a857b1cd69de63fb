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

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/wire"
)

// start begins a lease on an open channel, on the reservation of its request.
func (p *Provider) start(r *request, s channel.State) (*lease, string, error) {
	ctx, offer, gpus := r.Context(), r.offer, r.gpus
	if s.Behind() {
		var err error
		if s, err = p.payee.CatchUp(ctx, s.ID, s.Settled); err != nil {
			return nil, "", err
		}
	}
	begins, carried, err := p.store.carry(ctx, s)
	if err != nil {
		return nil, "", err
	}
	s.Spent = begins
	if err := errors.Join(p.canBegin(offer, gpus), p.canPay(s, offer, gpus)); err != nil {
		return nil, "", err
	}
	if err := p.creditworthy(ctx, s, offer, gpus); err != nil {
		return nil, "", err
	}
	if r.seat, err = p.seated(ctx, r.seat, s.ID, gpus); err != nil {
		return nil, "", err
	}
	id, secret := r.seat.lease, randomHash().Hex()[2:]
	row := leaseRow{
		ID: id.Hex(), Channel: s.ID.Hex(), Offer: offer.Hash.Hex(), SecretHash: hashSecret(secret), GPUs: gpus,
		Allocation: "{}", OwedBefore: begins.Dec(), Carried: int64(carried), State: wire.StateAllocating, StartedAt: time.Now().UnixNano(),
	}
	l, err := p.beginLease(ctx, row, s, offer)
	if err != nil {
		return nil, "", err
	}
	return l, secret, nil
}

// beginLease begins a lease that belongs to this gateway, unless another has begun one on its channel meanwhile.
func (p *Provider) beginLease(ctx context.Context, row leaseRow, s channel.State, offer wire.SignedOffer) (*lease, error) {
	if p.replicas != nil {
		row.Owner, row.Term = p.replicas.identity(), 1
	}
	l, err := p.grant(ctx, row, s, offer)
	if p.replicas != nil && store.Conflict(err) {
		return nil, errElsewhere(s.ID)
	}
	return l, err
}

// detach lets go of a lease that is shown here for another gateway.
func (p *Provider) detach(l *lease) {
	if l.mirror {
		p.replicas.unfollow(l)
	}
}

// canServe refuses a lease that could not be begun, before anybody's money
// moves for it.
func (p *Provider) canServe(ctx context.Context, id common.Hash, offer wire.SignedOffer, gpus int) error {
	if err := p.canBegin(offer, gpus); err != nil {
		return err
	}
	return p.room(ctx, id, gpus, 0)
}

// canBegin is canServe for who has its GPUs reserved.
func (p *Provider) canBegin(offer wire.SignedOffer, gpus int) error {
	if err := p.takesLeases(); err != nil {
		return err
	}
	if offer.ExpiredAt(time.Now()) {
		return wire.PaymentExpired.With("the offer %s has expired: ask again for the price", offer.Hash)
	}
	if least := wire.MinCredit(gpus, p.config.Tick); p.config.Credit < least {
		return wire.NoCapacity.With("%d GPUs need a credit of %s, this provider gives %s", gpus, least, p.config.Credit)
	}
	return nil
}

// takesLeases refuses every new lease of a provider that stops, or that settles alone.
func (p *Provider) takesLeases() error {
	if p.noGPUs != nil {
		return wire.NoCapacity.With("no GPU of this provider can be metered")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.draining {
		return wire.Unavailable.With("this provider takes no new leases")
	}
	return nil
}

// canPay refuses a lease that would be suspended at once: the deposit must
// have room for one record of every GPU, after what is owed already.
func (p *Provider) canPay(s channel.State, offer wire.SignedOffer, gpus int) error {
	price, err := offer.Price()
	if err != nil {
		return err
	}
	need, err := wire.MinLease(price, gpus, p.config.RecordEvery, p.config.Tick)
	if err != nil {
		return err
	}
	need.Add(&need, &s.Spent)
	if need.Gt(&s.Deposit) {
		return wire.InsufficientBalance.With("channel %s holds %s base units and has spent %s, a lease of %d GPU(s) begins with %s: top it up, or open another",
			s.ID, s.Deposit.Dec(), s.Spent.Dec(), gpus, need.Dec())
	}
	return nil
}

// remembered is the lease that the request's secret belongs to, if it is over:
// its records can still be read, and its GPUs no longer be reached.
func (p *Provider) remembered(r *request, s channel.State) (*lease, error) {
	row, ok, err := p.store.newest(r.Context(), s.ID)
	if err != nil || !ok || row.State != wire.StateEnded || !sameSecret(r.cred.Payload.LeaseSecret, row.SecretHash) {
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
		offer: &wire.SignedOffer{Hash: common.HexToHash(row.Offer)}, done: make(chan struct{})}
	close(l.done)
	if l.binding, err = row.binding(); err != nil {
		return nil, err
	}
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
	if l.window > 0 {
		return // its client comes back and goes on; the settlement's policy says when to claim
	}
	p.soon(closeGrace, l.terms) // after a restart the policy's MaxAge settles it
}

// soon has a channel settled after a while, unless the provider stops or the next lease
// runs on it by then: that one pays on, and has it settled when it ends. Nothing of the
// lease is kept for it, and nothing at all afterwards.
func (p *Provider) soon(wait time.Duration, terms channel.Terms) {
	waiting, done := context.WithCancel(p.life)
	timer := time.AfterFunc(wait, func() {
		done()
		if p.running(terms.ID()) == nil {
			p.settlement.Urgent(terms)
		}
	})
	context.AfterFunc(waiting, func() { timer.Stop() })
}

// restore takes up the leases of an earlier run.
func (p *Provider) restore(ctx context.Context) error {
	if p.replicas != nil {
		return p.replicas.join(ctx)
	}
	return p.takeUp(ctx)
}

func (r leaseRow) allocation() (gpu.Allocation, error) {
	var a gpu.Allocation
	err := json.Unmarshal([]byte(r.Allocation), &a)
	a.LeaseID, a.Term = common.HexToHash(r.ID), r.Term
	return a, err
}

// atNode reports whether a node meters the lease.
func (r leaseRow) atNode() bool {
	a, err := r.allocation()
	return err == nil && a.Node != ""
}

// metered is where the meter was at the lease's newest record, signed or about to
// be, and the record that is about to be.
func (r leaseRow) metered(last *metering.SignedRecord) (*metering.State, *metering.Record, *pendingRecord, error) {
	var record *metering.Record
	if last != nil {
		record = &last.Record
	}
	if r.Pending != "" {
		pending := &pendingRecord{}
		if err := json.Unmarshal([]byte(r.Pending), pending); err != nil {
			return nil, nil, nil, fmt.Errorf("stored draft of lease %s: %w", r.ID, err)
		}
		return &pending.Meter, record, pending, nil
	}
	if last == nil {
		return nil, nil, nil, nil
	}
	var saved metering.State
	if err := json.Unmarshal([]byte(r.Meter), &saved); err != nil {
		return nil, nil, nil, fmt.Errorf("stored meter of lease %s: %w", r.ID, err)
	}
	return &saved, record, nil, nil
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
