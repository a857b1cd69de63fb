package sharing

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/usage"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Meter measures what a lease uses: of its own devices (Own), or of those that it shares (Lease).
type Meter interface {
	Allocated() int64            // billed so far, nanoseconds of one GPU
	Ahead(d time.Duration) int64 // what may be added to that until d from now, nanoseconds of one GPU
	Cut(final bool) (metering.Evidence, error)
	Save() (json.RawMessage, error) // where the last cut left it
	Pause()
	Resume()
}

// Own measures devices that a lease has for itself: all of their time is billed.
type Own struct{ *usage.Meter }

// NewOwn is a meter of a lease under an offer, fresh, or as Save left it.
func NewOwn(devices []string, o wire.Offer, saved json.RawMessage) (own Own, err error) {
	config := usage.Config{
		Devices: devices,
		Tick:    time.Duration(o.Tick) * time.Millisecond,
		MaxGap:  time.Duration(o.MaxGap) * time.Millisecond,
		Keep:    -1, // nobody asks a provider for samples: the root in the record tells whether two meters saw the same
	}
	if saved == nil {
		own.Meter, err = usage.NewMeter(config)
		return own, err
	}
	var state usage.State
	if err := json.Unmarshal(saved, &state); err != nil {
		return own, fmt.Errorf("stored meter: %w", err)
	}
	own.Meter, err = usage.Restore(config, state)
	return own, err
}

// Ahead is all of the devices' time.
func (m Own) Ahead(d time.Duration) int64 { return int64(len(m.Config().Devices)) * int64(d) }

// Cut is usage.Meter's, which knows no last one.
func (m Own) Cut(bool) (metering.Evidence, error) { return m.Meter.Cut(), nil }

// Save is usage.Meter's.
func (m Own) Save() (json.RawMessage, error) { return json.Marshal(m.Meter.Save()) }
