//go:build !linux || !cgo

package nvml

import (
	"context"

	"github.com/gpupay/gpupay/metering"
)

// Source does not exist in this build.
type Source struct{}

var _ metering.Source = (*Source)(nil)

// Open returns ErrBuild.
func Open(Options) (*Source, error) { return nil, ErrBuild }

// Name is "nvml".
func (*Source) Name() string { return "nvml" }

// Devices returns ErrBuild.
func (*Source) Devices(context.Context) ([]metering.Device, error) { return nil, ErrBuild }

// Read returns ErrBuild.
func (*Source) Read(context.Context, string) (metering.Reading, error) {
	return metering.Reading{}, ErrBuild
}

// Close does nothing.
func (*Source) Close() error { return nil }
