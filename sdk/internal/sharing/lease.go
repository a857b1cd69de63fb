package sharing

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"golang.org/x/time/rate"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/slots"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Owner is who owes for a lease's requests.
type Owner interface {
	// Affords waits, for no longer than a moment, until the lease may take another request, and says what has to be paid if it may not.
	Affords(ctx context.Context) error
	// Covers reports whether what the lease may owe covers what it used, and for a while what runs and another request. It waits for nobody.
	Covers() bool
	// Observed hears that a device was read.
	Observed()
}

// Lease is one lease's side of a service, and its meter.
type Lease struct {
	service *Service
	id      common.Hash
	payer   common.Address
	token   [sha256.Size]byte
	saved   slots.State
	owner   Owner
	most    time.Duration // that a request runs, from when it takes its slot; zero: its offer names none
	rate    *rate.Limiter

	requests map[uint64]*Request // that run; guarded by the service's mu
	waiting  int                 // those that are read, or wait for a slot
	closed   bool                // takes no more of them
}

// NewLease is a lease as it was placed, and saved at its last record, nil if it has none. most is the longest time of a request by the
// lease's own offer, whatever others name now; zero: none.
func (s *Service) NewLease(id common.Hash, payer common.Address, most time.Duration, document, saved json.RawMessage) (*Lease, error) {
	var a wire.SharedAccess
	if err := json.Unmarshal(document, &a); err != nil || a.Token == "" {
		return nil, fmt.Errorf("lease %s has no token by which it shares GPUs", id)
	}
	limits := s.config.Limits
	l := &Lease{service: s, id: id, payer: payer, most: most, token: sha256.Sum256([]byte(a.Token)), requests: make(map[uint64]*Request),
		rate: rate.NewLimiter(limits.Rate, max(1, int(10*limits.Rate)))}
	if saved != nil {
		if err := json.Unmarshal(saved, &l.saved); err != nil {
			return nil, fmt.Errorf("stored meter of lease %s: %w", id, err)
		}
	}
	return l, nil
}

// Join has a lease's requests be served and metered from now on. It returns what is closed when its devices were read: what it uses
// before that is billed to nobody.
func (l *Lease) Join(owner Owner) (looked <-chan struct{}, err error) {
	s := l.service
	l.owner = owner
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.meter.Begin(l.id, l.saved); err != nil {
		return nil, err
	}
	s.leases[l.id], s.tokens[l.token], s.payers[l.id] = l, l, l.payer
	s.read = make(map[string]bool) // a device may have been read before it began
	return s.looked, nil
}

// Allocated is what was billed so far, nanoseconds of one GPU.
func (l *Lease) Allocated() int64 {
	owed, err := l.service.meter.Owed(l.id)
	if err != nil { // it did not begin here yet
		return l.saved.Total
	}
	return owed
}

// Ahead is what may be added to that, nanoseconds of one GPU: by requests that have ended and wait for readings, and by those that run
// and do so for d from now on.
func (l *Lease) Ahead(d time.Duration) int64 {
	due, err := l.service.meter.Due(l.id, l.service.config.Clock.Now().Mono+int64(d))
	if err != nil {
		return 0
	}
	return max(0, due-l.Allocated())
}

// Another is what one more request may use for d, nanoseconds of one GPU.
func (l *Lease) Another(d time.Duration) int64 {
	share := l.service.config.Share
	nanos, _, err := share.Bill(int64(d), share.Slots-1)
	if err != nil {
		return int64(d) * int64(share.GPUs)
	}
	return nanos
}

// Busy reports whether a request of the lease runs.
func (l *Lease) Busy() bool {
	l.service.mu.Lock()
	defer l.service.mu.Unlock()
	return len(l.requests) > 0
}

// Cut is what was billed since the cut before.
func (l *Lease) Cut(final bool) (metering.Evidence, error) { return l.service.meter.Cut(l.id, final) }

// Save is where the last cut left the meter.
func (l *Lease) Save() (json.RawMessage, error) {
	state, err := l.service.meter.Save(l.id)
	if err != nil {
		return nil, err
	}
	return json.Marshal(state)
}

// Pause does nothing: what no request uses is not billed.
func (l *Lease) Pause() {}

// Resume does nothing.
func (l *Lease) Resume() {}

// Why a request is stopped here.
var (
	ErrCredit   = errors.New("the lease has used up what it may owe: pay, and ask again")
	ErrReleased = errors.New("the lease was ended")
	ErrStopped  = errors.New("the provider stops: this request costs nothing")
	ErrTime     = errors.New("the request has run for as long as the offer lets one run")
)

// Stop ends the requests that run. How each is billed its cause says: see Request.Stopped.
func (l *Lease) Stop(cause error) {
	l.service.mu.Lock()
	defer l.service.mu.Unlock()
	for _, r := range l.requests {
		r.stop(cause)
	}
}

// Close has the lease take no more requests, ends those that run, and waits until nothing of it is unsettled: no longer than patience, and
// then what still runs is billed to when it was stopped.
func (l *Lease) Close(cause error, patience time.Duration) {
	s := l.service
	s.mu.Lock()
	l.closed = true
	s.mu.Unlock()
	l.Stop(cause)
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		running, ended, err := s.meter.Unsettled(l.id)
		if err != nil || running == 0 && (ended == 0 || errors.Is(cause, ErrStopped)) { // who stops reads no more
			return
		}
	}
	s.mu.Lock()
	var stuck []*Request
	for _, r := range l.requests {
		stuck = append(stuck, r)
	}
	s.mu.Unlock()
	for _, r := range stuck {
		outcome := r.Stopped(true) // if not, its client would have had its end
		s.config.Log.Error("a request does not end with its lease", "lease", l.id, "request", r.ID, "billed as", outcome)
		r.End(outcome, r.stopped)
	}
}

// Leave forgets the lease: its last record is on disk.
func (l *Lease) Leave() {
	s := l.service
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leases[l.id] != l {
		return
	}
	delete(s.leases, l.id)
	delete(s.tokens, l.token)
	delete(s.payers, l.id)
	if err := s.meter.Forget(l.id); err != nil {
		s.config.Log.Error("a lease that has ended stays in the meter", "lease", l.id, "error", err)
	}
}
