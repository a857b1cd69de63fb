//go:build linux && cgo

package metercost

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
)

// A provider's defaults: a tick a second, and a record every five.
const (
	tick        = metering.DefaultTick
	recordEvery = 5
)

// lease is the metering of one lease, as a Provider runs it: a Sampler, and a Recorder that cuts.
type lease struct {
	clock    *clock
	source   metering.Source
	devices  []string
	meter    *metering.Meter
	recorder *metering.Recorder
	terms    metering.Lease
	key      common.Address
	last     metering.SignedRecord

	ticks int // since the first reading, which bills nothing
	stop  context.CancelFunc
	done  chan error
	read  chan struct{}    // has one when all devices were read
	hung  <-chan time.Time // fires long after any lease should have ended
}

// newLease begins to meter the devices, at zero.
func newLease(c *clock, source metering.Source, devices []string) (*lease, error) {
	private, err := crypto.ToECDSA(crypto.Keccak256([]byte("gpupay benchmark metering key")))
	if err != nil {
		return nil, err
	}
	terms := metering.Lease{ID: common.Hash{1}, ChannelID: common.Hash{2}, OfferHash: common.Hash{3}, ChainID: 1, Escrow: common.Address{4},
		Price: metering.Price{Amount: *uint256.NewInt(2_500_000), Unit: metering.Hour}, Devices: devices, Simulated: true}
	l := &lease{clock: c, source: source, devices: devices, terms: terms}
	if l.meter, err = metering.NewMeter(metering.Config{Devices: devices, Tick: tick, Keep: -1}); err != nil {
		return nil, err
	}
	signer := channel.NewKey(private)
	l.key = signer.Address()
	l.recorder, err = metering.NewRecorder(terms, signer, nil)
	return l, err
}

// sample starts the Sampler, and returns when it has read every device once and so many of its goroutines sleep until the
// next tick.
func (l *lease) sample(ctx context.Context, sleepers int) error {
	l.start(ctx, sleepers)
	return l.settle()
}

func (l *lease) start(ctx context.Context, sleepers int) {
	ctx, l.stop = context.WithCancel(ctx)
	l.done, l.read, l.hung = make(chan error, 1), make(chan struct{}, 1), time.After(10*time.Minute)
	l.clock.expect(sleepers)
	var reads atomic.Int64
	sampler := &metering.Sampler{Source: l.source, Meter: l.meter, Clock: l.clock, Observed: func(metering.Reading, metering.Interval) {
		if reads.Add(1)%int64(len(l.devices)) == 0 {
			l.read <- struct{}{}
		}
	}}
	go func() { l.done <- sampler.Run(ctx) }()
}

// run samples for n ticks, one after the other.
func (l *lease) run(ctx context.Context, n int) error {
	ctx, l.stop = context.WithCancel(ctx)
	defer l.stop()
	var reads atomic.Int64
	l.clock.expect(0)
	sampler := &metering.Sampler{Source: l.source, Meter: l.meter, Clock: running{l.clock}, Observed: func(metering.Reading, metering.Interval) {
		if reads.Add(1) == int64((n+1)*len(l.devices)) { // the first tick bills nothing
			l.stop()
		}
	}}
	if err := sampler.Run(ctx); err != nil {
		return err
	}
	if billed, least := l.meter.Totals().Allocated, int64(n*len(l.devices))*int64(tick); billed < least {
		return fmt.Errorf("billed %d ns of %d", billed, least)
	}
	return nil
}

// settle waits until every device was read and the Sampler sleeps.
func (l *lease) settle() error {
	for _, c := range []<-chan struct{}{l.read, l.clock.quiet} {
		select {
		case <-c:
		case err := <-l.done:
			return fmt.Errorf("the Sampler ended: %w", err)
		case <-l.hung:
			return errors.New("the Sampler misses a tick")
		}
	}
	return nil
}

// sleepers counts how many goroutines of a Sampler sleep from tick to tick.
func (l *lease) sleepers(ctx context.Context) (int, error) {
	l.start(ctx, 0)
	<-l.read
	n, again := 0, -1
	for n == 0 || n != again {
		again = n
		time.Sleep(100 * time.Millisecond)
		n = l.clock.waiting()
	}
	return n, l.end()
}

// end stops the Sampler, if there is one, and holds what was billed against the time that passed.
func (l *lease) end() error {
	if l.stop == nil {
		return nil
	}
	l.stop()
	if err := <-l.done; err != nil {
		return err
	}
	return l.check()
}

func (l *lease) check() error {
	billed, passed := l.meter.Totals().Allocated, int64(len(l.devices)*l.ticks)*int64(tick)
	if billed != passed {
		return fmt.Errorf("billed %d ns of %d", billed, passed)
	}
	return nil
}

// pass lets a tick of a sampled lease pass.
func (l *lease) pass() error {
	l.ticks++
	l.clock.advance(tick)
	return l.settle()
}

// recordAt makes and signs the next record, if it is due after tick i.
func (l *lease) recordAt(ctx context.Context, i int) (err error) {
	if i%recordEvery == recordEvery-1 {
		l.last, err = l.recorder.Next(ctx, l.meter.Cut(), false)
	}
	return err
}

// look reads every device once; with count, into the meter.
func (l *lease) look(ctx context.Context, count bool) error {
	l.clock.advance(tick)
	for _, uuid := range l.devices {
		r, err := l.source.Read(ctx, uuid)
		if err != nil {
			return err
		}
		if r.Health != metering.Healthy || r.Has != allFields {
			return fmt.Errorf("%s is %s, %s, without %s", uuid, r.Health, r.Detail, r.Has.Missing())
		}
		if !count {
			continue
		}
		if _, err := l.meter.Observe(r); err != nil {
			return err
		}
	}
	return nil
}

const allFields = metering.HasEnergy | metering.HasMemory | metering.HasUtilization | metering.HasProcesses | metering.HasThrottle | metering.HasXIDs

// hosted does n ticks by the host's own clock. Between them its processors sleep, as a provider's do.
func hosted(source metering.Source, devices []string, every time.Duration) func(context.Context, int) error {
	return func(ctx context.Context, n int) error {
		meter, err := metering.NewMeter(metering.Config{Devices: devices, Tick: every})
		if err != nil {
			return err
		}
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		var seen atomic.Int64
		sampler := &metering.Sampler{Source: source, Meter: meter, Observed: func(metering.Reading, metering.Interval) {
			if seen.Add(1) == int64(n*len(devices)) {
				stop()
			}
		}}
		if err := sampler.Run(ctx); err != nil {
			return err
		}
		if seen.Load() < int64(n*len(devices)) { // the run was ended from outside
			return context.Canceled
		}
		return nil
	}
}
