//go:build linux && cgo

package nvml_test

import (
	"context"
	"encoding/binary"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	driver "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/nvml"
	"github.com/gpupay/gpupay/metering/usage"
)

// The tests and the benchmark below run on this host's own GPUs, and are skipped where there is no driver.
// gpucheck.sh runs them on a machine that has no Go, and records traces there.

// TestGPU holds what NVML says of each GPU against nvidia-smi, and meters two seconds.
func TestGPU(t *testing.T) {
	src := hostGPUs(t)
	devices := hostDevices(t, src)
	for _, d := range devices {
		t.Logf("%+v", d)
		if d.UUID == "" || d.Name == "" || d.Driver == "" || d.NVML == "" || d.VBIOS == "" || d.PCI == "" || d.MemoryBytes == 0 || d.BootID == "" {
			t.Errorf("the evidence about %s has a hole: %+v", d.UUID, d)
		}
	}
	sameAsSMI(t, devices)
	meterSeconds(t, src, devices)
}

// TestGPURecoveryAction reads what the driver wants done with each GPU, by the field that NVML has for it.
func TestGPURecoveryAction(t *testing.T) {
	devices := hostDevices(t, hostGPUs(t))
	lib := driver.New() // the library that is loaded already
	if ret := lib.Init(); ret != driver.SUCCESS {
		t.Fatal(ret)
	}
	defer lib.Shutdown()
	for _, d := range devices {
		handle, ret := lib.DeviceGetHandleByUUID(d.UUID)
		if ret != driver.SUCCESS {
			t.Fatalf("%s: %d", d.UUID, ret)
		}
		fields := []driver.FieldValue{{FieldId: driver.FI_DEV_GET_GPU_RECOVERY_ACTION}}
		ret = handle.GetFieldValues(fields)
		types, typesRet := handle.GetSupportedEventTypes()
		t.Logf("field 230: call %d, field %d, type %d, value %d; event types %#x (call %d)", ret, fields[0].NvmlReturn,
			fields[0].ValueType, binary.NativeEndian.Uint64(fields[0].Value[:]), types, typesRet)
		if ret != driver.SUCCESS || driver.Return(fields[0].NvmlReturn) != driver.SUCCESS {
			t.Errorf("%s has no recovery action: %d, %d", d.UUID, ret, fields[0].NvmlReturn)
		}
	}
}

// BenchmarkGPU is one reading of one GPU, which is what a tick of a lease costs.
func BenchmarkGPU(b *testing.B) {
	src := hostGPUs(b)
	uuid := hostDevices(b, src)[0].UUID
	for b.Loop() {
		if r, err := src.Read(b.Context(), uuid); err != nil || r.Health != metering.Healthy {
			b.Fatalf("%+v, %v", r, err)
		}
	}
}

func hostGPUs(t testing.TB) *nvml.Source {
	t.Helper()
	src, err := nvml.Open(nvml.Options{})
	if errors.Is(err, nvml.ErrLibrary) {
		t.Skip("this host has no NVIDIA driver")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := src.Close(); err != nil {
			t.Error(err)
		}
	})
	return src
}

func hostDevices(t testing.TB, src *nvml.Source) []metering.Device {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	devices, err := src.Devices(ctx)
	if err != nil || len(devices) == 0 {
		t.Fatalf("%d devices, %v", len(devices), err)
	}
	return devices
}

// sameAsSMI compares whole GPUs with what NVIDIA's own program prints.
func sameAsSMI(t *testing.T, devices []metering.Device) {
	t.Helper()
	out, err := exec.Command("nvidia-smi", "--query-gpu=uuid,name,driver_version,vbios_version", "--format=csv,noheader").Output()
	if err != nil {
		t.Logf("nvidia-smi cannot be asked: %v", err)
		return
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	for _, d := range devices {
		want := strings.Join([]string{d.UUID, d.Name, d.Driver, d.VBIOS}, ", ")
		if !d.MIG && !slices.Contains(lines, want) {
			t.Errorf("nvidia-smi says\n%s\nand not\n%s", out, want)
		}
	}
}

// meterSeconds meters all devices for two seconds, and expects each of those billed, with its figures.
func meterSeconds(t *testing.T, src *nvml.Source, devices []metering.Device) {
	t.Helper()
	for _, d := range devices {
		first := read(t, src, d.UUID)
		time.Sleep(2 * time.Second)
		second := read(t, src, d.UUID)
		m, err := usage.NewMeter(usage.Config{Devices: []string{d.UUID}})
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Describe(src.Name(), d); err != nil {
			t.Fatal(err)
		}
		for _, r := range []metering.Reading{first, second} {
			if _, err := m.Observe(r); err != nil {
				t.Fatal(err)
			}
		}
		cut := m.Cut().Devices[0]
		if want := second.At.Mono - first.At.Mono; cut.Nanos.Allocated != want || cut.Nanos.Gap != 0 || cut.Nanos.Down != 0 {
			t.Errorf("%s: metered %+v, %d ns passed", d.UUID, cut.Nanos, want)
		}
		t.Logf("%+v; %d mJ; not reported: %v", cut.Nanos, cut.Energy, cut.Missing)
	}
}

func read(t *testing.T, src *nvml.Source, uuid string) metering.Reading {
	t.Helper()
	r, err := src.Read(t.Context(), uuid)
	if err != nil || r.Health != metering.Healthy || r.Seen != uuid {
		t.Fatalf("%+v, %v", r, err)
	}
	return r
}

// BenchmarkGPUCalls is each call that a reading is made of, by itself.
func BenchmarkGPUCalls(b *testing.B) {
	uuid := hostDevices(b, hostGPUs(b))[0].UUID
	lib := driver.New() // the library that is loaded already
	if ret := lib.Init(); ret != driver.SUCCESS {
		b.Fatal(ret)
	}
	defer lib.Shutdown()
	d, ret := lib.DeviceGetHandleByUUID(uuid)
	if ret != driver.SUCCESS {
		b.Fatal(ret)
	}
	set, ret := lib.EventSetCreate()
	if ret != driver.SUCCESS {
		b.Fatal(ret)
	}
	defer set.Free()
	if ret := d.RegisterEvents(driver.EventTypeXidCriticalError, set); ret != driver.SUCCESS {
		b.Fatal(ret)
	}
	wait := func(ms uint32) func() driver.Return {
		return func() driver.Return {
			if _, ret := set.Wait(ms); ret != driver.ERROR_TIMEOUT {
				return ret
			}
			return driver.SUCCESS
		}
	}
	for _, call := range []struct {
		name string
		make func() driver.Return
	}{
		{"uuid", func() driver.Return { _, ret := d.GetUUID(); return ret }},
		{"driver version", func() driver.Return { _, ret := lib.SystemGetDriverVersion(); return ret }},
		{"events, waiting 0 ms", wait(0)},
		{"events, waiting 1 ms", wait(1)},
		{"MIG mode", func() driver.Return { _, _, ret := d.GetMigMode(); return ret }},
		{"memory", func() driver.Return { _, ret := d.GetMemoryInfo(); return ret }},
		{"energy", func() driver.Return { _, ret := d.GetTotalEnergyConsumption(); return ret }},
		{"utilization", func() driver.Return { _, ret := d.GetUtilizationRates(); return ret }},
		{"processes", func() driver.Return { _, ret := d.GetComputeRunningProcesses(); return ret }},
		{"throttling", func() driver.Return {
			return d.GetFieldValues([]driver.FieldValue{{FieldId: 269}, {FieldId: 270}, {FieldId: 271}})
		}},
		{"recovery action", func() driver.Return {
			return d.GetFieldValues([]driver.FieldValue{{FieldId: driver.FI_DEV_GET_GPU_RECOVERY_ACTION}})
		}},
		{"throttling and recovery action", func() driver.Return {
			return d.GetFieldValues([]driver.FieldValue{{FieldId: 269}, {FieldId: 270}, {FieldId: 271}, {FieldId: driver.FI_DEV_GET_GPU_RECOVERY_ACTION}})
		}},
	} {
		b.Run(call.name, func(b *testing.B) {
			begun := processorTime(b)
			for b.Loop() {
				if ret := call.make(); ret != driver.SUCCESS {
					b.Fatalf("code %d", ret)
				}
			}
			b.ReportMetric(float64(processorTime(b)-begun)/float64(b.N), "cpu-ns/op")
		})
	}
}

// processorTime is what this process has used, its calls into the kernel included.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
