package sdk

import (
	"context"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/gpupay/gpupay/metering"
)

// quarantine keeps devices out of new leases that their source does not list now:
// lost, hung, or asking for a reset. They come back by themselves. It looks at no
// device itself: what a reading says, such as an error, is its lease's.
type quarantine struct {
	source metering.Source // nil: nothing is in quarantine
	asked  singleflight.Group

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

// fit are those devices that work, by a look that is no older than quarantineAge;
// the error says why none does where nothing could be listed.
func (q *quarantine) fit(ctx context.Context, devices []string) ([]string, error) {
	if q.source == nil {
		return devices, nil
	}
	q.mu.Lock()
	old := time.Since(q.at) >= quarantineAge
	q.mu.Unlock()
	if old {
		select {
		case <-q.look():
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return q.known(devices)
}

// lately is fit by the last look, however old: a new one is begun where it is, and
// waited for only where there was none.
func (q *quarantine) lately(devices []string) []string {
	if q.source == nil {
		return devices
	}
	q.mu.Lock()
	first, old := q.at.IsZero(), time.Since(q.at) >= quarantineAge
	q.mu.Unlock()
	if old {
		if done := q.look(); first {
			<-done
		}
	}
	fit, _ := q.known(devices)
	return fit
}

func (q *quarantine) known(devices []string) ([]string, error) {
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
func (q *quarantine) look() <-chan singleflight.Result {
	return q.asked.DoChan("", func() (any, error) {
		ctx, cancel := context.WithTimeout(context.Background(), quarantineTimeout)
		defer cancel()
		all, err := q.source.Devices(ctx)
		q.mu.Lock()
		defer q.mu.Unlock()
		q.at, q.err, q.listed = time.Now(), err, make(map[string]bool, len(all))
		for _, d := range all {
			q.listed[d.UUID] = true
		}
		return nil, nil
	})
}

// without are the devices that are not among others.
func without(devices, others []string) []string {
	return slices.DeleteFunc(slices.Clone(devices), func(uuid string) bool { return slices.Contains(others, uuid) })
}
