//go:build linux && cgo

package nvml

import (
	"context"
	"fmt"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/gpupay/gpupay/metering"
)

// Devices lists the GPUs of this host, and the slices of those that are in MIG
// mode in their place: nobody can rent both. A GPU that is lost is left out.
func (s *Source) Devices(ctx context.Context) ([]metering.Device, error) {
	type answer struct {
		devices []metering.Device
		err     error
	}
	done := make(chan answer, 1)
	go func() {
		devices, err := s.list()
		done <- answer{devices, err}
	}()
	select {
	case a := <-done:
		return a.devices, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: it does not answer: %w", ErrDriver, ctx.Err())
	}
}

func (s *Source) list() ([]metering.Device, error) {
	if s.dead.Load() {
		if err := s.revive(); err != nil {
			return nil, err
		}
	}
	s.calls.RLock()
	defer s.calls.RUnlock()

	if s.closed.Load() {
		return nil, fmt.Errorf("NVML is closed: %w", metering.ErrEnd)
	}
	if !s.has("nvmlDeviceGetCount", "nvmlDeviceGetCount_v2") || !s.has("nvmlDeviceGetHandleByIndex", "nvmlDeviceGetHandleByIndex_v2") {
		return nil, fmt.Errorf("%w: it is too old to list its devices", ErrDriver)
	}
	count, ret := s.lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		s.dead.Store(gone(ret))
		return nil, fmt.Errorf("%w: count the devices: %s", ErrDriver, text(ret))
	}
	var out []metering.Device
	for i := range count {
		handle, ret := s.lib.DeviceGetHandleByIndex(i)
		if ret != nvml.SUCCESS {
			continue
		}
		gpu, ok := s.describe(handle)
		if !ok {
			continue
		}
		if s.migMode(handle) {
			out = append(out, s.slices(handle, gpu)...)
			continue
		}
		out = append(out, gpu)
	}
	return out, nil
}

// describe fills in what the driver says about a whole GPU. Only a UUID is
// needed; the rest is evidence.
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
	if s.has("nvmlDeviceGetName") {
		d.Name, _ = handle.GetName()
	}
	if s.has("nvmlDeviceGetVbiosVersion") {
		d.VBIOS, _ = handle.GetVbiosVersion()
	}
	if s.has("nvmlDeviceGetMemoryInfo") {
		memory, _ := handle.GetMemoryInfo()
		d.MemoryBytes = memory.Total
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

// slices lists the MIG slices of a GPU. Their places may have holes.
func (s *Source) slices(handle nvml.Device, gpu metering.Device) []metering.Device {
	count, ret := handle.GetMaxMigDeviceCount()
	if ret != nvml.SUCCESS {
		return nil
	}
	var out []metering.Device
	for i := range count {
		mig, ret := handle.GetMigDeviceHandleByIndex(i)
		if ret != nvml.SUCCESS {
			continue
		}
		d, ok := s.describe(mig)
		if !ok {
			continue
		}
		d.MIG, d.Parent, d.PCI, d.VBIOS = true, gpu.UUID, gpu.PCI, gpu.VBIOS
		if _, _, place, ret := s.parent(mig); ret == nvml.SUCCESS {
			d.Slice = fmt.Sprintf("%d/%d", place.gpu, place.compute)
		}
		out = append(out, d)
	}
	return out
}
