//go:build linux && cgo

package nvml

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/gpupay/gpupay/metering"
)

// listTimeout is how long the driver is given to count its GPUs and each of them to say who it is.
const listTimeout = 2 * time.Second

// Devices lists the GPUs of this host, and the slices of those that are in MIG
// mode in their place: nobody can rent both. A GPU that is lost, does not
// answer in two seconds, or asks for a reset is left out and holds up no other.
func (s *Source) Devices(ctx context.Context) ([]metering.Device, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	count, err := ask(ctx, s, "count", s.count)
	if err != nil {
		return nil, err
	}
	answers := make([][]metering.Device, count)
	errs := make([]error, count)
	var all sync.WaitGroup
	for i := range count {
		all.Go(func() {
			answers[i], errs[i] = ask(ctx, s, fmt.Sprintf("gpu %d", i), func() ([]metering.Device, error) { return s.card(i) })
		})
	}
	all.Wait()
	devices := slices.Concat(answers...)
	if failed := errors.Join(errs...); len(devices) == 0 && failed != nil {
		return nil, failed
	}
	return devices, nil
}

// Describe says who one device is, whatever state the others are in.
func (s *Source) Describe(ctx context.Context, uuid string) (metering.Device, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	return ask(ctx, s, uuid, func() (metering.Device, error) { return s.one(uuid) })
}

// ask makes a call that may hang for ever. One call of a name is under way at a time, and whoever asks meanwhile gets
// its answer: a GPU that hangs holds one thread, and not one for each who asks.
func ask[T any](ctx context.Context, s *Source, name string, call func() (T, error)) (T, error) {
	answer := s.asked.DoChan(name, func() (any, error) { return call() })
	select {
	case a := <-answer:
		return a.Val.(T), a.Err
	case <-ctx.Done():
		var none T
		return none, fmt.Errorf("%w: %s does not answer: %w", ErrDriver, name, ctx.Err())
	}
}

// enter is how a call for the listing begins: leave when it succeeded.
func (l *library) enter() error {
	if l.dead.Load() {
		if err := l.revive(); err != nil {
			return err
		}
	}
	l.calls.RLock()
	if l.closed.Load() {
		l.calls.RUnlock()
		return fmt.Errorf("NVML is closed: %w", metering.ErrEnd)
	}
	return nil
}

func (l *library) leave() { l.calls.RUnlock() }

func (s *Source) count() (int, error) {
	if err := s.enter(); err != nil {
		return 0, err
	}
	defer s.leave()
	if !s.lists() {
		return 0, fmt.Errorf("%w: it is too old to list its devices", ErrDriver)
	}
	count, ret := s.lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		s.dead.Store(gone(ret))
		return 0, fmt.Errorf("%w: count the devices: %s", ErrDriver, text(ret))
	}
	return count, nil
}

// lists says that the library has what it takes to walk over its GPUs.
func (l *library) lists() bool {
	return l.has("nvmlDeviceGetCount", "nvmlDeviceGetCount_v2") && l.has("nvmlDeviceGetHandleByIndex", "nvmlDeviceGetHandleByIndex_v2")
}

// card is what there is to rent of the GPU at an index: itself, its slices, or nothing where it is lost.
func (s *Source) card(i int) ([]metering.Device, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	handle, ret := s.lib.DeviceGetHandleByIndex(i)
	if ret != nvml.SUCCESS {
		return nil, nil
	}
	gpu, ok := s.describe(handle)
	if !ok || s.unfit(handle) {
		return nil, nil
	}
	devices := []metering.Device{gpu}
	if s.migMode(handle) {
		devices = nil
		for _, slice := range s.slicesOf(handle) {
			if d, ok := s.describe(slice); ok {
				devices = append(devices, s.sliceOf(gpu, slice, d))
			}
		}
	}
	for _, d := range devices {
		s.places.Store(d.UUID, i)
	}
	return devices, nil
}

// unfit reports whether the driver wants a GPU reset, or worse, before it is used.
func (s *Source) unfit(handle nvml.Device) bool {
	if !s.has("nvmlDeviceGetFieldValues") {
		return false
	}
	fields := []nvml.FieldValue{{FieldId: nvml.FI_DEV_GET_GPU_RECOVERY_ACTION}}
	return handle.GetFieldValues(fields) == nvml.SUCCESS && recovers(fields[0])
}

// recovers reports whether a recovery action is there, and is one.
func recovers(action nvml.FieldValue) bool {
	return nvml.Return(action.NvmlReturn) == nvml.SUCCESS && number(action) != uint64(nvml.GPU_RECOVERY_ACTION_NONE)
}

// one is the description of a device that is found by its UUID.
func (s *Source) one(uuid string) (metering.Device, error) {
	if err := s.enter(); err != nil {
		return metering.Device{}, err
	}
	defer s.leave()
	handle, ret := s.lookUp(uuid)
	if ret != nvml.SUCCESS {
		return metering.Device{}, fmt.Errorf("%w: %s: %s", metering.ErrDevice, uuid, text(ret))
	}
	d, ok := s.describe(handle)
	if !ok {
		return metering.Device{}, fmt.Errorf("%w: %s does not say who it is", ErrDriver, uuid)
	}
	mig, parent, _, ret := s.parent(handle)
	if ret != nvml.SUCCESS || !mig {
		return d, nil
	}
	if gpu, ok := s.describe(parent); ok {
		d = s.sliceOf(gpu, handle, d)
	}
	return d, nil
}

// describe fills in what the driver says about a whole GPU. Only a UUID is
// needed; the rest is evidence, and may be absent but not fail.
func (s *Source) describe(handle nvml.Device) (metering.Device, bool) {
	uuid, ret := handle.GetUUID()
	if ret != nvml.SUCCESS {
		return metering.Device{}, false
	}
	d := metering.Device{UUID: uuid, BootID: s.clock.BootID()}
	d.Driver, _ = s.lib.SystemGetDriverVersion()
	if s.has("nvmlSystemGetNVMLVersion") {
		d.NVML, _ = s.lib.SystemGetNVMLVersion()
	}
	var rets [3]nvml.Return
	if s.has("nvmlDeviceGetName") {
		d.Name, rets[0] = handle.GetName()
	}
	if s.has("nvmlDeviceGetVbiosVersion") {
		d.VBIOS, rets[1] = handle.GetVbiosVersion()
	}
	if s.has("nvmlDeviceGetMemoryInfo") {
		var memory nvml.Memory
		memory, rets[2] = handle.GetMemoryInfo()
		d.MemoryBytes = memory.Total
	}
	for _, ret := range rets { // records are held to what the offer says of the device: half of it would be a lie
		if ret != nvml.SUCCESS && !absent(ret) {
			return metering.Device{}, false
		}
	}
	if s.has("nvmlDeviceGetPciInfo", "nvmlDeviceGetPciInfo_v2", "nvmlDeviceGetPciInfo_v3") {
		if pci, ret := handle.GetPciInfo(); ret == nvml.SUCCESS {
			d.PCI = fmt.Sprintf("%08X:%02X:%02X.0", pci.Domain, pci.Bus, pci.Device)
		}
	}
	return d, true
}

func (s *Source) migMode(handle nvml.Device) bool {
	if !s.has("nvmlDeviceGetMigMode") || !s.has("nvmlDeviceGetMaxMigDeviceCount") || !s.has("nvmlDeviceGetMigDeviceHandleByIndex") {
		return false
	}
	mode, _, ret := handle.GetMigMode()
	return ret == nvml.SUCCESS && mode == nvml.DEVICE_MIG_ENABLE
}

// slicesOf are the MIG slices of a GPU. Their places may have holes.
func (s *Source) slicesOf(gpu nvml.Device) []nvml.Device {
	count, ret := gpu.GetMaxMigDeviceCount()
	if ret != nvml.SUCCESS {
		return nil
	}
	var out []nvml.Device
	for i := range count {
		if slice, ret := gpu.GetMigDeviceHandleByIndex(i); ret == nvml.SUCCESS {
			out = append(out, slice)
		}
	}
	return out
}

// sliceOf adds to a slice's description what its GPU knows of it.
func (s *Source) sliceOf(gpu metering.Device, handle nvml.Device, d metering.Device) metering.Device {
	d.MIG, d.Parent, d.PCI, d.VBIOS = true, gpu.UUID, gpu.PCI, gpu.VBIOS
	if _, _, place, ret := s.parent(handle); ret == nvml.SUCCESS {
		d.Slice = fmt.Sprintf("%d/%d", place.gpu, place.compute)
	}
	return d
}
