//go:build linux && cgo

package metercost

import (
	"context"
	"fmt"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/gpupay/gpupay/bench"
)

// call is one of the calls that a tick makes for each device, as a program in Go makes it that keeps nothing.
type call struct {
	name string
	make func(nvml.Interface, nvml.Device, nvml.EventSet) nvml.Return
}

// calls are those of package metering/nvml at a healthy GPU, in the order of those in bare.c.
var calls = []call{
	{"DeviceGetUUID", func(_ nvml.Interface, d nvml.Device, _ nvml.EventSet) nvml.Return { _, ret := d.GetUUID(); return ret }},
	{"SystemGetDriverVersion", func(l nvml.Interface, _ nvml.Device, _ nvml.EventSet) nvml.Return {
		_, ret := l.SystemGetDriverVersion()
		return ret
	}},
	{"EventSetWait_v2", func(_ nvml.Interface, _ nvml.Device, s nvml.EventSet) nvml.Return {
		if _, ret := s.Wait(1); ret != nvml.ERROR_TIMEOUT {
			return nvml.ERROR_UNKNOWN
		}
		return nvml.SUCCESS
	}},
	{"DeviceGetMemoryInfo", func(_ nvml.Interface, d nvml.Device, _ nvml.EventSet) nvml.Return {
		_, ret := d.GetMemoryInfo()
		return ret
	}},
	{"DeviceGetTotalEnergyConsumption", func(_ nvml.Interface, d nvml.Device, _ nvml.EventSet) nvml.Return {
		_, ret := d.GetTotalEnergyConsumption()
		return ret
	}},
	{"DeviceGetUtilizationRates", func(_ nvml.Interface, d nvml.Device, _ nvml.EventSet) nvml.Return {
		_, ret := d.GetUtilizationRates()
		return ret
	}},
	{"DeviceGetComputeRunningProcesses_v3", func(_ nvml.Interface, d nvml.Device, _ nvml.EventSet) nvml.Return {
		_, ret := d.GetComputeRunningProcesses()
		return ret
	}},
	{"DeviceGetFieldValues, of four", func(_ nvml.Interface, d nvml.Device, _ nvml.EventSet) nvml.Return {
		return d.GetFieldValues([]nvml.FieldValue{{FieldId: 269}, {FieldId: 270}, {FieldId: 271}, {FieldId: 230}})
	}},
}

// handles are the library's own, as go-nvml has them.
type handles struct {
	lib     nvml.Interface
	devices []nvml.Device
	events  nvml.EventSet
}

func open(l *library, devices []string) (*handles, error) {
	h := &handles{lib: nvml.New(nvml.WithLibraryPath(l.path))}
	if ret := h.lib.Init(); ret != nvml.SUCCESS {
		return nil, fmt.Errorf("start the library: code %d", ret)
	}
	for _, uuid := range devices {
		d, ret := h.lib.DeviceGetHandleByUUID(uuid)
		if ret != nvml.SUCCESS {
			return nil, fmt.Errorf("find %s: code %d", uuid, ret)
		}
		h.devices = append(h.devices, d)
	}
	set, ret := h.lib.EventSetCreate()
	if ret != nvml.SUCCESS {
		return nil, fmt.Errorf("EventSetCreate: code %d", ret)
	}
	h.events = set
	return h, nil
}

// every makes all calls of n ticks through go-nvml.
func (h *handles) every(n int) error {
	for range n {
		for _, d := range h.devices {
			for _, c := range calls {
				if ret := c.make(h.lib, d, h.events); ret != nvml.SUCCESS {
					return fmt.Errorf("%s: code %d", c.name, ret)
				}
			}
		}
	}
	return nil
}

// eachCall measures every call by itself: in C, and from Go.
func (h *handles) eachCall(ctx context.Context, set bench.Settings, l *library) (bench.Table, error) {
	t := bench.Table{Title: "Each of the calls, nanoseconds of a processor:", Head: []string{"", "in C", "through go-nvml", "heap objects"}}
	var contenders []bench.Contender
	for i, c := range calls {
		contenders = append(contenders,
			contender(c.name, func(_ context.Context, n int) error { l.only(i, n); return nil }),
			contender(c.name, func(_ context.Context, n int) error {
				for range n {
					if ret := c.make(h.lib, h.devices[0], h.events); ret != nvml.SUCCESS {
						return fmt.Errorf("code %d", ret)
					}
				}
				return nil
			}))
	}
	contenders = append(contenders, contender("nothing", func(_ context.Context, n int) error { nothing(n); return nil }))
	set.Span /= 4 // there are many
	series, err := bench.Interleave(ctx, set, contenders)
	if err != nil {
		return t, err
	}
	nanos := func(s bench.Series) string { return bench.SpreadOf(scaled(s.Times, 1e9)).String() }
	for i, c := range calls {
		t.Rows = append(t.Rows, []string{c.name, nanos(series[2*i]), nanos(series[2*i+1]), bench.Number(series[2*i+1].Allocs)})
	}
	last := series[len(series)-1]
	t.Rows = append(t.Rows, []string{"an empty function, by cgo alone", "", nanos(last), bench.Number(last.Allocs)})
	return t, nil
}

// contender is one whose work needs nothing made ready.
func contender(name string, run func(ctx context.Context, n int) error) bench.Contender {
	return bench.Contender{Name: name, Step: 1, Prepare: func(int) error { return nil }, Run: run}
}

func scaled(values []float64, by float64) []float64 {
	out := make([]float64, len(values))
	for i, v := range values {
		out[i] = v * by
	}
	return out
}
