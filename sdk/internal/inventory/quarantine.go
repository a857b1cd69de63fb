package inventory

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/gpupay/gpupay/metering"
)

// Quarantine keeps devices out of new leases that their source does not list now:
// lost, hung, or asking for a reset. They come back by themselves. It looks at no
// device itself: what a reading says, such as an error, is its lease's. The zero value
// has looked at none. Where the source is nil, nothing is in quarantine.
type Quarantine struct {
	asked singleflight.Group

	mu     sync.Mutex
	at     time.Time // of the last look; zero: there was none
	listed map[string]bool
	err    error
}

const (
	// quarantineAge is for how long a look is as good as a new one.
	quarantineAge = time.Second
	// quarantineTimeout bounds a look.
	quarantineTimeout = 5 * time.Second
)

// Fit are those devices that work, by a look that is no older than quarantineAge;
// the error says why none does where nothing could be listed.
func (q *Quarantine) Fit(ctx context.Context, source metering.Source, devices []string) ([]string, error) {
	if source == nil {
		return devices, nil
	}
	q.mu.Lock()
	old := time.Since(q.at) >= quarantineAge
	q.mu.Unlock()
	if old {
		select {
		case <-q.look(source):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return q.known(devices)
}

// Lately is Fit by the last look, however old: a new one is begun where it is, and
// waited for only where there was none.
func (q *Quarantine) Lately(source metering.Source, devices []string) []string {
	if source == nil {
		return devices
	}
	q.mu.Lock()
	first, old := q.at.IsZero(), time.Since(q.at) >= quarantineAge
	q.mu.Unlock()
	if old {
		if done := q.look(source); first {
			<-done
		}
	}
	fit, _ := q.known(devices)
	return fit
}

func (q *Quarantine) known(devices []string) ([]string, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	var fit []string
	for _, uuid := range devices {
		if q.listed[uuid] {
			fit = append(fit, uuid)
		}
	}
	return fit, q.err
}

// look lists the devices. One look is under way at most.
func (q *Quarantine) look(source metering.Source) <-chan singleflight.Result {
	return q.asked.DoChan("", func() (any, error) {
		ctx, cancel := context.WithTimeout(context.Background(), quarantineTimeout)
		defer cancel()
		all, err := source.Devices(ctx)
		q.mu.Lock()
		defer q.mu.Unlock()
		q.at, q.err, q.listed = time.Now(), err, make(map[string]bool, len(all))
		for _, d := range all {
			q.listed[d.UUID] = true
		}
		return nil, nil
	})
}

// Expire has the next question look anew, however young the last look is.
func (q *Quarantine) Expire() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.at = time.Now().Add(-2 * quarantineAge)
}
