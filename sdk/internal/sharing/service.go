package sharing

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"golang.org/x/time/rate"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sampling"
	"github.com/gpupay/gpupay/metering/slots"
	"github.com/gpupay/gpupay/metering/usage"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Limits bound what one payer takes of what all share. The zero value of each field is its default.
type Limits struct {
	Leases     int           // open ones of a payer; 4
	Concurrent int           // requests of a lease at once; all slots
	Rate       rate.Limit    // requests of a lease a second, with a burst of ten seconds' worth; 20
	Wait       time.Duration // how long a request waits for a slot, for nothing; 1 s
}

func (l Limits) withDefaults(share metering.Share) Limits {
	l.Leases, l.Concurrent = cmp.Or(l.Leases, 4), cmp.Or(l.Concurrent, int(share.Slots))
	l.Rate, l.Wait = cmp.Or(l.Rate, 20), cmp.Or(l.Wait, time.Second)
	return l
}

// Config is a service: what is shared, and how it is metered.
type Config struct {
	Share   metering.Share
	Devices []string // UUIDs: Share.GPUs of them
	Tick    time.Duration
	MaxGap  time.Duration
	Clock   metering.Clock
	URL     string                  // where requests go, as renters reach it; empty: where they asked for the lease
	Sick    []*inventory.Quarantine // hear which devices cannot be read
	Limits  Limits
	Log     *slog.Logger
}

// Service is devices that leases share.
type Service struct {
	config Config
	meter  *slots.Meter
	watch  *inventory.Watch
	dogs   map[string]*inventory.Watchdog // of each device: a request uses all of them

	mu      sync.Mutex
	leases  map[common.Hash]*Lease
	tokens  map[[sha256.Size]byte]*Lease
	payers  map[common.Hash]common.Address // of each lease, from before it runs
	freed   chan struct{}                  // closed when a slot is given back
	down    error                          // why nothing is served, by who serves; nil: it is
	sampler *sampling.Scheduler
	read    map[string]bool // devices that were read since looked was made
	looked  chan struct{}   // closed when all were
}

// New makes a service that is not sampled yet.
func New(config Config) (*Service, error) {
	config.Limits = config.Limits.withDefaults(config.Share)
	meter, err := slots.New(slots.Config{Share: config.Share, Devices: config.Devices, Tick: config.Tick, MaxGap: config.MaxGap})
	if err != nil {
		return nil, err
	}
	s := &Service{
		config: config, meter: meter, watch: inventory.NewWatch(config.Devices, config.MaxGap, config.Sick), dogs: make(map[string]*inventory.Watchdog),
		leases: make(map[common.Hash]*Lease), tokens: make(map[[sha256.Size]byte]*Lease), payers: make(map[common.Hash]common.Address),
		freed: make(chan struct{}), looked: make(chan struct{}), read: make(map[string]bool),
	}
	for _, device := range config.Devices {
		s.dogs[device] = &inventory.Watchdog{Limit: config.MaxGap}
	}
	return s, nil
}

// Share is what is shared.
func (s *Service) Share() metering.Share { return s.config.Share }

// Sample has the devices read from now on, until the sampler ends.
func (s *Service) Sample(sampler *sampling.Scheduler) error {
	meter, err := usage.NewMeter(usage.Config{Devices: s.config.Devices, Tick: s.config.Tick, MaxGap: s.config.MaxGap, Keep: -1})
	if err != nil {
		return err
	}
	s.sampler = sampler
	sampler.Attend(readings{meter, s}, 0, s)
	return nil
}

// readings are those of the service's devices, which go to the meter of all of its leases.
type readings struct {
	*usage.Meter
	service *Service
}

func (r readings) Describe(source string, device metering.Device) error {
	if err := r.service.meter.Describe(source, device); err != nil {
		return err
	}
	return r.Meter.Describe(source, device)
}

// Observe has no failure of one lease's hold up the others, nor the sampling: what it could not count is not billed.
func (r readings) Observe(reading metering.Reading) (usage.Interval, error) {
	if err := r.service.meter.Observe(reading); err != nil {
		r.service.config.Log.Error("a reading of shared GPUs is not billed", "device", reading.Device, "error", err)
	}
	return r.Meter.Observe(reading)
}

// Sampled has each lease look whether its requests have used up what it may owe.
func (s *Service) Sampled(r metering.Reading, in usage.Interval) {
	s.watch.Saw(r, in, s.config.Clock)
	if dog := s.dogs[r.Device]; dog.Saw(r, in, s.config.Clock) {
		s.config.Log.Warn("shared GPUs: requests are served while each of the service's can be metered", "device", r.Device, "metered", !dog.Expired())
	}
	s.mu.Lock()
	if s.read[r.Device] = true; len(s.read) == len(s.config.Devices) {
		close(s.looked)
		s.looked, s.read = make(chan struct{}), make(map[string]bool)
	}
	all := slices.Collect(maps.Values(s.leases))
	s.mu.Unlock()
	for _, l := range all {
		l.owner.Observed()
	}
}

// SamplingEnded begins it anew: the source has no more readings, and may have some later.
func (s *Service) SamplingEnded(err error) {
	for _, dog := range s.dogs {
		if !dog.Expire() {
			s.config.Log.Error("metering of shared GPUs stopped: no request is served until it goes on", "error", err)
		}
	}
	time.AfterFunc(time.Second, func() { _ = s.Sample(s.sampler) }) // its configuration was checked
}

// SetDown has nothing be served, for a reason that renters are told; nil: it is served.
func (s *Service) SetDown(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = why
}

// Fit is why no request can be served and metered now; nil if it can.
func (s *Service) Fit() error {
	s.mu.Lock()
	down := s.down
	s.mu.Unlock()
	if down != nil {
		return wire.Unavailable.With("this service does not work now, nothing is billed: %v", down)
	}
	for device, dog := range s.dogs {
		if dog.Expired() || !dog.Healthy() {
			return wire.Unavailable.With("GPU %s of this service cannot be metered now: nothing is billed, try again later", device)
		}
	}
	return nil
}

// CanOpen refuses a payer that has as many leases as it may.
func (s *Service) CanOpen(payer common.Address) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.canOpen(payer)
}

func (s *Service) canOpen(payer common.Address) error {
	open := 0
	for _, of := range s.payers {
		if of == payer {
			open++
		}
	}
	if open >= s.config.Limits.Leases {
		return wire.TooMany.With("%d leases of %s share GPUs here, and no more may: end one of them first", open, payer)
	}
	return nil
}

// Place gives a lease its token, and no device.
func (s *Service) Place(lease common.Hash, payer common.Address) (gpu.Allocation, error) {
	if err := s.Fit(); err != nil {
		return gpu.Allocation{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.canOpen(payer); err != nil {
		return gpu.Allocation{}, err
	}
	var secret [32]byte
	_, _ = rand.Read(secret[:]) // crypto/rand.Read never fails: it ends the program instead
	document, err := json.Marshal(wire.SharedAccess{Kind: wire.KindOpenAI, URL: s.config.URL, Token: "gp-" + hex.EncodeToString(secret[:])})
	if err != nil {
		return gpu.Allocation{}, err
	}
	s.payers[lease] = payer
	return gpu.Allocation{LeaseID: lease, Devices: slices.Clone(s.config.Devices), Access: document, Shared: true}, nil
}

// Adopt is an error where the service has other devices than a lease of an earlier process shared.
func (s *Service) Adopt(a gpu.Allocation) error {
	if !slices.Equal(a.Devices, s.config.Devices) {
		return fmt.Errorf("the service has GPUs %v now, and the lease shared %v", s.config.Devices, a.Devices)
	}
	return nil
}

// Release forgets a lease that is over.
func (s *Service) Release(lease common.Hash) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.payers, lease)
}
