//go:build linux && cgo

package nvml

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"golang.org/x/sync/singleflight"

	"github.com/gpupay/gpupay/metering"
)

// A library is the driver's, as it is loaded: what it can do, and whether it is to be called at all.
type library struct {
	lib nvml.Interface

	// calls is held for reading by every call into the library, and for writing
	// by what unloads it. A call that hangs holds it for ever, so the writer
	// only ever tries.
	calls      sync.RWMutex
	symbols    map[string]bool // found after Init; only changes under calls
	steps      []step          // of a look, with those symbols
	generation atomic.Uint64   // counts Inits
	dead       atomic.Bool     // the driver went away: Init again
	closed     atomic.Bool
}

// Source is the NVIDIA GPUs of this host.
type Source struct {
	library
	clock metering.Clock

	mu      sync.Mutex
	devices map[string]*device

	asked  singleflight.Group // calls for the listing
	places sync.Map           // UUID -> index of the GPU that it is, or is a slice of, when it was listed last
}

var (
	_ metering.Source    = (*Source)(nil)
	_ metering.Describer = (*Source)(nil)
)

// loaded is the library of this process.
var loaded struct {
	sync.Mutex
	path string
}

// Open loads the driver library.
func Open(opts Options) (*Source, error) {
	if opts.Clock == nil {
		opts.Clock = metering.System
	}
	if opts.Library == "" {
		opts.Library = "libnvidia-ml.so.1"
	}
	loaded.Lock()
	defer loaded.Unlock()
	if loaded.path != "" && loaded.path != opts.Library {
		return nil, fmt.Errorf("%w: it has %s, not %s", ErrSecond, loaded.path, opts.Library)
	}
	s := &Source{
		library: library{lib: nvml.New(nvml.WithLibraryPath(opts.Library))},
		clock:   opts.Clock,
		devices: make(map[string]*device),
	}
	if err := s.init(); err != nil {
		return nil, err
	}
	loaded.path = opts.Library
	return s, nil
}

// init loads the library and looks its symbols up, once. Calling a symbol that
// an older driver lacks would end the process, and no recover helps.
func (l *library) init() error {
	switch ret := l.lib.Init(); ret {
	case nvml.SUCCESS:
	case nvml.ERROR_LIBRARY_NOT_FOUND:
		return ErrLibrary
	case nvml.ERROR_LIB_RM_VERSION_MISMATCH:
		if l.generation.Load() > 0 { // it worked before: the old library stays mapped, and no Init here will help
			return ErrRestart
		}
		return fmt.Errorf("%w: its library and its kernel module are of two versions: reload the module or reboot", ErrDriver)
	default:
		return fmt.Errorf("%w: Init: %s", ErrDriver, text(ret))
	}
	found := make(map[string]bool)
	for _, name := range symbols {
		found[name] = l.lib.Extensions().LookupSymbol(name) == nil
	}
	for name, had := range l.symbols { // go-nvml goes on calling what it found first
		if had && !found[name] {
			return fmt.Errorf("%w: the library was replaced by an older one; restart this program", ErrDriver)
		}
	}
	for _, name := range required {
		if !found[name] {
			return fmt.Errorf("%w: it is too old, its library has no %s", ErrDriver, name)
		}
	}
	l.symbols = found
	l.steps = l.possible()
	l.generation.Add(1)
	return nil
}

// revive opens a driver that went away. It does not wait for a call that
// hangs: unloading the library under it would end the process.
func (l *library) revive() error {
	if !l.calls.TryLock() {
		return fmt.Errorf("%w: it went away, and another call still hangs in it", ErrDriver)
	}
	defer l.calls.Unlock()
	if !l.dead.Load() {
		return nil // somebody else was faster
	}
	l.lib.Shutdown() // of what is gone already: whatever it answers, Init decides
	if err := l.init(); err != nil {
		return err
	}
	l.dead.Store(false)
	return nil
}

// Name is "nvml".
func (s *Source) Name() string { return "nvml" }

// Close unloads the library, unless a call hangs in it.
func (s *Source) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	for try := 0; !s.calls.TryLock(); try++ { // a call that is only slow is over soon
		if try == 50 {
			return fmt.Errorf("%w: a call still hangs in it", ErrDriver)
		}
		time.Sleep(10 * time.Millisecond)
	}
	defer s.calls.Unlock()
	if ret := s.lib.Shutdown(); ret != nvml.SUCCESS && !s.dead.Load() {
		return fmt.Errorf("%w: Shutdown: %s", ErrDriver, text(ret))
	}
	return nil
}

// Read looks at one device. It cannot be interrupted: a driver call that hangs
// holds it, and the sampler's watchdog sees to the rest.
func (s *Source) Read(_ context.Context, uuid string) (metering.Reading, error) {
	d := s.device(uuid)
	d.mu.Lock() // a call of an earlier lease may still hang: one at a time
	defer d.mu.Unlock()

	if s.closed.Load() {
		return metering.Reading{}, fmt.Errorf("NVML is closed: %w", metering.ErrEnd)
	}
	r := metering.Reading{BootID: s.clock.BootID(), Device: uuid, Health: metering.Healthy}
	s.look(d, &r)
	r.At = s.clock.Now() // after the last call: what took long shows as a gap
	for i := range r.XIDs {
		r.XIDs[i].Mono = r.At.Mono
	}
	return r, nil
}

func (s *Source) device(uuid string) *device {
	s.mu.Lock()
	defer s.mu.Unlock()

	d := s.devices[uuid]
	if d == nil {
		d = &device{uuid: uuid}
		s.devices[uuid] = d
	}
	return d
}

func (s *Source) look(d *device, r *metering.Reading) {
	if s.dead.Load() {
		if err := s.revive(); err != nil {
			r.Health, r.Detail = metering.Failed, err.Error()
			return
		}
	}
	s.calls.RLock()
	defer s.calls.RUnlock()

	r.Generation = s.generation.Load()
	what, ret := s.figures(d, r)
	if ret == nvml.SUCCESS {
		d.sick = false
		return
	}
	d.sick = true
	r.Health, r.Detail = health(ret), what+": "+text(ret)
	if gone(ret) {
		s.dead.Store(true)
	}
}

// health maps a code that is neither success nor "not supported".
func health(ret nvml.Return) metering.Health {
	switch ret {
	case nvml.ERROR_GPU_IS_LOST, nvml.ERROR_NOT_FOUND, nvml.ERROR_GPU_NOT_FOUND:
		return metering.Lost
	case nvml.ERROR_RESET_REQUIRED:
		return metering.Reset
	}
	return metering.Failed
}

// gone says that the driver itself went away, with all its devices.
func gone(ret nvml.Return) bool {
	switch ret {
	case nvml.ERROR_UNINITIALIZED, nvml.ERROR_DRIVER_NOT_LOADED, nvml.ERROR_LIB_RM_VERSION_MISMATCH:
		return true
	}
	return false
}

// absent says that a device does not have a figure, which is not a failure.
func absent(ret nvml.Return) bool {
	switch ret {
	case nvml.ERROR_NOT_SUPPORTED, nvml.ERROR_FUNCTION_NOT_FOUND, nvml.ERROR_NO_PERMISSION,
		nvml.ERROR_INVALID_ARGUMENT, nvml.ERROR_NO_DATA, nvml.ERROR_NOT_READY,
		nvml.ERROR_ARGUMENT_VERSION_MISMATCH, nvml.ERROR_DEPRECATED:
		return true
	}
	return false
}

var names = map[nvml.Return]string{
	nvml.ERROR_UNINITIALIZED:           "not initialized",
	nvml.ERROR_NO_PERMISSION:           "no permission",
	nvml.ERROR_NOT_FOUND:               "not found",
	nvml.ERROR_DRIVER_NOT_LOADED:       "driver not loaded",
	nvml.ERROR_TIMEOUT:                 "timeout",
	nvml.ERROR_GPU_IS_LOST:             "GPU is lost",
	nvml.ERROR_RESET_REQUIRED:          "GPU needs a reset",
	nvml.ERROR_LIB_RM_VERSION_MISMATCH: "driver and library differ",
	nvml.ERROR_UNKNOWN:                 "unknown error",
}

// text names a code without asking the driver, which may be what is broken.
func text(ret nvml.Return) string {
	return fmt.Sprintf("code %d %s", int(ret), names[ret])
}
