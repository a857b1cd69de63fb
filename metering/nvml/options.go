// Package nvml reads NVIDIA GPUs and MIG slices through NVIDIA's management
// library, by UUID.
//
// It needs Linux and cgo, and the library itself (libnvidia-ml.so.1, which
// comes with the driver) when the program runs. Without either, Open says so
// and nothing else happens. The library binds its symbols late: where a
// compiler links with -z now by default, build with
//
//	go build -ldflags '-extldflags=-Wl,-z,lazy'
//
// and do not set LD_BIND_NOW: both end the process at its start.
//
// Only codes that the driver returns decide anything, never its texts. A
// process id never leaves this package.
package nvml

import (
	"errors"
	"fmt"

	"github.com/gpupay/gpupay/metering"
)

var (
	// ErrBuild says that the program was built without what NVML needs.
	ErrBuild = errors.New("this program was built without NVML: build it on Linux with CGO_ENABLED=1")
	// ErrLibrary says that this host has no NVIDIA driver library.
	ErrLibrary = errors.New("no NVIDIA driver library (libnvidia-ml.so.1): install the driver, or use a simulated GPU")
	// ErrDriver says that the driver library is there and does not work.
	ErrDriver = errors.New("the NVIDIA driver does not work")
	// ErrRestart says that the driver was upgraded under this program, which
	// holds the library of the one before: nothing is billed until it is
	// restarted. Leases survive a restart.
	ErrRestart = fmt.Errorf("the NVIDIA driver was upgraded under this program: restart it (leases survive that): %w", metering.ErrRestart)
	// ErrSecond says that the process has loaded another driver library.
	ErrSecond = errors.New("a process can load only one NVIDIA driver library")
)

// Options of a source. The zero value reads this host's GPUs.
type Options struct {
	// Library is a path or a name for the dynamic linker; libnvidia-ml.so.1 if
	// empty. A process can use one only: two would mix their symbols.
	Library string
	Clock   metering.Clock // metering.System if nil
}
