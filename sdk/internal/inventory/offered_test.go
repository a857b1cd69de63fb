package inventory

import (
	"context"
	"errors"
	"testing"

	"github.com/gpupay/gpupay/metering"
)

// A partList lists some GPUs, or says why not.
type partList struct {
	metering.Source
	devices []metering.Device
	err     error
}

func (s *partList) Devices(context.Context) ([]metering.Device, error) { return s.devices, s.err }

// TestGPUsThatComeAfterTheStart: a process that began while its GPUs could not be listed offers them when they are, and says which of
// them is lost afterwards.
func TestGPUsThatComeAfterTheStart(t *testing.T) {
	source, o := &partList{err: errors.New("driver and library differ")}, Offered{}
	look := func() GPUs {
		t.Helper()
		o.Sick.Expire()
		return o.Look(t.Context(), source)
	}
	if got := look(); got.Err == nil || len(got.Quarantined) != 0 || len(o.List()) != 0 {
		t.Errorf("%+v of GPUs that nobody has listed: %v", got, o.List())
	}
	three := []metering.Device{{UUID: "GPU-a"}, {UUID: "GPU-b"}, {UUID: "GPU-c"}}
	source.devices, source.err = three, nil
	if got := look(); got.Err != nil || len(got.Quarantined) != 0 || len(o.List()) != 3 {
		t.Errorf("%+v of GPUs that are all well: %v", got, o.List())
	}
	source.devices = three[:2]
	if got := look(); len(got.Quarantined) != 1 || got.Quarantined[0] != "GPU-c" || len(o.List()) != 3 {
		t.Errorf("%+v, when GPU-c is lost: %v", got, o.List())
	}
}
