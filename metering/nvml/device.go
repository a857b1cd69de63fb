//go:build linux && cgo

package nvml

import (
	"encoding/binary"
	"sync"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/gpupay/gpupay/metering"
)

// required is what no driver of the last ten years lacks.
var required = []string{
	"nvmlSystemGetDriverVersion",
	"nvmlDeviceGetHandleByUUID",
	"nvmlDeviceGetUUID",
}

// symbols is all that this package calls beyond Init and Shutdown. A name that
// is not looked up here must not be called.
var symbols = append([]string{
	"nvmlDeviceGetCount",
	"nvmlDeviceGetCount_v2",
	"nvmlDeviceGetHandleByIndex",
	"nvmlDeviceGetHandleByIndex_v2",
	"nvmlSystemGetNVMLVersion",
	"nvmlDeviceGetName",
	"nvmlDeviceGetVbiosVersion",
	"nvmlDeviceGetPciInfo",
	"nvmlDeviceGetPciInfo_v2",
	"nvmlDeviceGetPciInfo_v3",
	"nvmlDeviceGetMemoryInfo",
	"nvmlDeviceGetUtilizationRates",
	"nvmlDeviceGetTotalEnergyConsumption",
	"nvmlDeviceGetFieldValues",
	"nvmlDeviceGetComputeRunningProcesses",
	"nvmlDeviceGetComputeRunningProcesses_v2",
	"nvmlDeviceGetComputeRunningProcesses_v3",
	"nvmlDeviceGetSupportedEventTypes",
	"nvmlDeviceRegisterEvents",
	"nvmlEventSetCreate",
	"nvmlEventSetFree",
	"nvmlEventSetWait",
	"nvmlEventSetWait_v2",
	"nvmlDeviceGetMigMode",
	"nvmlDeviceGetMaxMigDeviceCount",
	"nvmlDeviceGetMigDeviceHandleByIndex",
	"nvmlDeviceGetDeviceHandleFromMigDeviceHandle",
	"nvmlDeviceIsMigDeviceHandle",
	"nvmlDeviceGetGpuInstanceId",
	"nvmlDeviceGetComputeInstanceId",
}, required...)

// has says that the driver library has one of the names.
func (l *library) has(names ...string) bool {
	for _, name := range names {
		if l.symbols[name] {
			return true
		}
	}
	return false
}

// device is one UUID. Its lock is held over every call for it.
type device struct {
	uuid   string
	mu     sync.Mutex
	fields [4]nvml.FieldValue // of the call under way
	session
}

// session is what is known of a device under one generation of the driver:
// after a reload every handle and event set is void.
type session struct {
	generation uint64
	handle     nvml.Device   // of the GPU or the slice
	gpu        nvml.Device   // of the whole GPU
	whose      string        // the whole GPU's UUID
	slice      *slice        // nil for a whole GPU
	events     nvml.EventSet // nil until registered
	mute       bool          // the driver has no XID events for it, and will not have any
	sick       bool          // the last look failed
}

// slice is the place of a MIG slice on its GPU.
type slice struct{ gpu, compute uint32 }

// eventWait is how long a look waits for the next XID, in milliseconds. XIDs
// that came since the last look are there already. Not zero: some programs poll
// with it, and NVIDIA's documentation for Python says that it waits for ever.
const eventWait = 1

// eventLimit bounds the XIDs that one reading keeps, and drainLimit those that it takes from the driver.
const (
	eventLimit = 64
	drainLimit = 4096
)

// step is one of the things that a look reads.
type step struct {
	name string
	any  []string // symbols of which the library must have one; none: it has what it takes
	read func(*Source, *device, *metering.Reading) nvml.Return
}

var steps = []step{
	{"find the device", nil, (*Source).find},
	{"MIG mode", []string{"nvmlDeviceGetMigMode"}, (*Source).whole},
	{"driver version", nil, (*Source).version},
	{"XID events", nil, (*Source).watch},
	{"memory", []string{"nvmlDeviceGetMemoryInfo"}, (*Source).memory},
	{"energy", []string{"nvmlDeviceGetTotalEnergyConsumption"}, (*Source).energy},
	{"utilization", []string{"nvmlDeviceGetUtilizationRates"}, (*Source).utilization},
	{"processes", []string{"nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetComputeRunningProcesses_v2",
		"nvmlDeviceGetComputeRunningProcesses_v3"}, (*Source).processes},
	{"throttling and recovery", []string{"nvmlDeviceGetFieldValues"}, (*Source).values},
}

// possible are the steps for which the library has the symbols.
func (l *library) possible() (can []step) {
	for _, step := range steps {
		if step.any == nil || l.has(step.any...) {
			can = append(can, step)
		}
	}
	return can
}

// figures reads everything about a device. It returns the call that failed and
// its code, or SUCCESS.
func (s *Source) figures(d *device, r *metering.Reading) (string, nvml.Return) {
	if d.generation != r.Generation {
		d.session = session{generation: r.Generation}
	}
	drained := s.drain(d, r)
	for i := range s.steps {
		if ret := s.steps[i].read(s, d, r); ret != nvml.SUCCESS {
			return s.steps[i].name, ret
		}
	}
	return "XID events", drained // blind to XIDs that it could see: not observed healthy
}

// find gets the device's handle once, and its UUID every time. A handle that works is kept; after a look that failed
// it is looked up anew, and XIDs are registered for anew: a GPU that was lost and came back delivers none to old sets.
func (s *Source) find(d *device, r *metering.Reading) nvml.Return {
	if d.handle == nil || d.sick {
		handle, ret := s.lookUp(d.uuid)
		if ret != nvml.SUCCESS && d.handle == nil {
			return ret
		}
		if ret == nvml.SUCCESS {
			d.handle = handle
			s.unwatch(d)
			if ret := s.place(d); ret != nvml.SUCCESS {
				d.handle = nil
				return ret
			}
		}
	}
	seen, ret := d.handle.GetUUID()
	r.Seen = seen
	return ret
}

// lookUp finds a device by its UUID. NVML refuses that for every device while any GPU is lost: then the device is where
// the last listing saw it, or it is looked for everywhere, and taken only if it says that it has this UUID.
func (s *Source) lookUp(uuid string) (nvml.Device, nvml.Return) {
	handle, refused := s.lib.DeviceGetHandleByUUID(uuid)
	if refused == nvml.SUCCESS || refused == nvml.ERROR_NOT_FOUND || !s.lists() {
		return handle, refused
	}
	if i, ok := s.places.Load(uuid); ok {
		if handle, ok := s.at(i.(int), uuid); ok {
			return handle, nvml.SUCCESS
		}
	}
	count, ret := s.lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return nil, ret
	}
	for i := range count {
		if handle, ok := s.at(i, uuid); ok {
			return handle, nvml.SUCCESS
		}
	}
	return nil, refused
}

// at is the device with a UUID if it is the GPU at an index, or a slice of that.
func (s *Source) at(i int, uuid string) (nvml.Device, bool) {
	gpu, ret := s.lib.DeviceGetHandleByIndex(i)
	if ret != nvml.SUCCESS {
		return nil, false
	}
	candidates := []nvml.Device{gpu}
	if s.migMode(gpu) {
		candidates = s.slicesOf(gpu)
	}
	for _, handle := range candidates {
		if seen, ret := handle.GetUUID(); ret == nvml.SUCCESS && seen == uuid {
			return handle, true
		}
	}
	return nil, false
}

// whole fails a GPU that was rented whole and is in MIG mode now: its slices are devices of their own, which others may
// rent, and what is left of it is not what the renter pays for.
func (s *Source) whole(d *device, _ *metering.Reading) nvml.Return {
	if d.slice == nil && s.migMode(d.handle) {
		return nvml.ERROR_INVALID_STATE
	}
	return nvml.SUCCESS
}

// place finds the whole GPU of a slice: events and throttling are the GPU's.
func (s *Source) place(d *device) nvml.Return {
	mig, parent, place, ret := s.parent(d.handle)
	if ret != nvml.SUCCESS {
		return ret
	}
	d.gpu, d.slice = d.handle, nil
	if mig {
		d.gpu, d.slice = parent, &place
	}
	d.whose, ret = d.gpu.GetUUID()
	return ret
}

func (s *Source) parent(handle nvml.Device) (mig bool, gpu nvml.Device, place slice, ret nvml.Return) {
	if !s.has("nvmlDeviceIsMigDeviceHandle") || !s.has("nvmlDeviceGetDeviceHandleFromMigDeviceHandle") {
		return false, nil, slice{}, nvml.SUCCESS // older than MIG
	}
	mig, ret = handle.IsMigDeviceHandle()
	if absent(ret) || (ret == nvml.SUCCESS && !mig) {
		return false, nil, slice{}, nvml.SUCCESS
	}
	if ret != nvml.SUCCESS {
		return false, nil, slice{}, ret
	}
	gpu, ret = handle.GetDeviceHandleFromMigDeviceHandle()
	if ret != nvml.SUCCESS {
		return false, nil, slice{}, ret
	}
	if !s.has("nvmlDeviceGetGpuInstanceId") || !s.has("nvmlDeviceGetComputeInstanceId") {
		return false, nil, slice{}, nvml.ERROR_FUNCTION_NOT_FOUND
	}
	g, ret := handle.GetGpuInstanceId()
	if ret != nvml.SUCCESS {
		return false, nil, slice{}, ret
	}
	c, ret := handle.GetComputeInstanceId()
	return true, gpu, slice{gpu: uint32(g), compute: uint32(c)}, ret
}

func (s *Source) version(_ *device, r *metering.Reading) (ret nvml.Return) {
	r.Driver, ret = s.lib.SystemGetDriverVersion()
	return ret
}

// drain takes the XIDs since the last look from the device's own event set, so that one lease's look never takes the
// errors of another's device. It comes before everything that fails on a broken GPU: why it broke is said here.
func (s *Source) drain(d *device, r *metering.Reading) nvml.Return {
	if d.events == nil {
		return nvml.SUCCESS
	}
	for range drainLimit {
		event, ret := d.events.Wait(eventWait)
		if ret == nvml.ERROR_TIMEOUT {
			return nvml.SUCCESS
		}
		if ret != nvml.SUCCESS {
			s.unwatch(d) // built again at this look
			return ret
		}
		if event.EventType == nvml.EventTypeXidCriticalError && s.concerns(d, event) {
			note(r, metering.NewXID(event.EventData, 0))
		}
	}
	return nvml.SUCCESS
}

// note keeps an XID. In a storm those that end billing stay, and the first of the others.
func note(r *metering.Reading, x metering.XID) {
	if len(r.XIDs) < eventLimit {
		r.XIDs = append(r.XIDs, x)
		return
	}
	if !x.Stops() {
		return
	}
	for i := range r.XIDs {
		if !r.XIDs[i].Stops() {
			r.XIDs[i] = x
			return
		}
	}
}

// watch registers for the device's XIDs. A driver that refuses for now is asked again at the next look.
func (s *Source) watch(d *device, r *metering.Reading) nvml.Return {
	if d.events == nil && !d.mute {
		ret := s.register(d)
		d.mute = ret == nvml.ERROR_NOT_SUPPORTED || ret == nvml.ERROR_FUNCTION_NOT_FOUND
		if ret != nvml.SUCCESS && !absent(ret) {
			return ret // blind to XIDs that it could see: not observed healthy
		}
	}
	if d.events != nil {
		r.Has |= metering.HasXIDs
	}
	return nvml.SUCCESS
}

func (s *Source) unwatch(d *device) {
	if d.events != nil {
		d.events.Free()
		d.events = nil
	}
}

func (s *Source) register(d *device) nvml.Return {
	if !s.has("nvmlEventSetCreate") || !s.has("nvmlEventSetFree") || !s.has("nvmlDeviceRegisterEvents") ||
		!s.has("nvmlDeviceGetSupportedEventTypes") || !s.has("nvmlEventSetWait", "nvmlEventSetWait_v2") {
		return nvml.ERROR_FUNCTION_NOT_FOUND
	}
	types, ret := d.gpu.GetSupportedEventTypes()
	if ret != nvml.SUCCESS {
		return ret
	}
	if types&nvml.EventTypeXidCriticalError == 0 {
		return nvml.ERROR_NOT_SUPPORTED
	}
	set, ret := s.lib.EventSetCreate()
	if ret != nvml.SUCCESS {
		return ret
	}
	if ret := d.gpu.RegisterEvents(nvml.EventTypeXidCriticalError, set); ret != nvml.SUCCESS {
		set.Free()
		return ret
	}
	d.events = set
	return nvml.SUCCESS
}

// concerns says whether an XID is about this device: one of another GPU is not, nor is one that the driver puts down to
// another slice; one that it puts down to no slice is about them all.
func (s *Source) concerns(d *device, e nvml.EventData) bool {
	const all = 0xFFFFFFFF
	if e.Device != nil && e.Device != d.gpu && e.Device != d.handle {
		if uuid, ret := e.Device.GetUUID(); ret == nvml.SUCCESS && uuid != d.whose {
			return false
		}
	}
	if d.slice == nil || !s.has("nvmlEventSetWait_v2") {
		return true
	}
	return (e.GpuInstanceId == all || e.GpuInstanceId == d.slice.gpu) &&
		(e.ComputeInstanceId == all || e.ComputeInstanceId == d.slice.compute)
}

func (s *Source) memory(d *device, r *metering.Reading) nvml.Return {
	m, ret := d.handle.GetMemoryInfo()
	r.Memory = m.Used
	return present(r, metering.HasMemory, ret)
}

func (s *Source) energy(d *device, r *metering.Reading) nvml.Return {
	if d.slice != nil {
		return nvml.SUCCESS // a slice has no meter of its own
	}
	mj, ret := d.handle.GetTotalEnergyConsumption()
	r.Energy = mj
	return present(r, metering.HasEnergy, ret)
}

func (s *Source) utilization(d *device, r *metering.Reading) nvml.Return {
	if d.slice != nil {
		return nvml.SUCCESS
	}
	u, ret := d.handle.GetUtilizationRates()
	r.Utilization = u.Gpu
	return present(r, metering.HasUtilization, ret)
}

// processes counts, and forgets whose they are.
func (s *Source) processes(d *device, r *metering.Reading) nvml.Return {
	list, ret := d.handle.GetComputeRunningProcesses()
	r.Processes = uint32(len(list))
	return present(r, metering.HasProcesses, ret)
}

// values reads how long heat and the power brake slowed the GPU, in place of the violation status, which is deprecated,
// and what the driver wants done with the GPU. One that asks for a reset, a reboot or a drain is not fit for use until
// it asks for nothing: XIDs 95, 119, 120, 154 and those of newer drivers end so.
func (s *Source) values(d *device, r *metering.Reading) nvml.Return {
	d.fields = [4]nvml.FieldValue{
		{FieldId: nvml.FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN},
		{FieldId: nvml.FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN},
		{FieldId: nvml.FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN},
		{FieldId: nvml.FI_DEV_GET_GPU_RECOVERY_ACTION},
	}
	fields := d.fields[:]
	ret := d.gpu.GetFieldValues(fields)
	if ret != nvml.SUCCESS {
		return present(r, metering.HasThrottle, ret)
	}
	if recovers(fields[3]) {
		return nvml.ERROR_RESET_REQUIRED
	}
	for _, f := range fields[:3] {
		if ret == nvml.SUCCESS {
			ret = nvml.Return(f.NvmlReturn)
		}
	}
	if ret == nvml.SUCCESS {
		soft, hard := number(fields[0]), number(fields[1])
		r.Thermal = max(soft, soft+hard)
		r.PowerBrake = number(fields[2])
	}
	return present(r, metering.HasThrottle, ret)
}

// present notes that a device has a figure, and lets pass that it has not.
func present(r *metering.Reading, field metering.Fields, ret nvml.Return) nvml.Return {
	if ret == nvml.SUCCESS {
		r.Has |= field
		return ret
	}
	if absent(ret) {
		return nvml.SUCCESS
	}
	return ret
}

// number reads a field's value by its type; a negative one is none.
func number(f nvml.FieldValue) uint64 {
	bits := binary.NativeEndian.Uint64(f.Value[:])
	switch nvml.ValueType(f.ValueType) {
	case nvml.VALUE_TYPE_UNSIGNED_INT:
		return uint64(binary.NativeEndian.Uint32(f.Value[:]))
	case nvml.VALUE_TYPE_UNSIGNED_LONG, nvml.VALUE_TYPE_UNSIGNED_LONG_LONG:
		return bits
	case nvml.VALUE_TYPE_SIGNED_LONG_LONG:
		return uint64(max(0, int64(bits)))
	}
	return 0
}
