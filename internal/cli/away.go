package cli

import (
	"context"

	"github.com/gpupay/gpupay/metering"
)

// Away is the source of a host whose GPUs could not be opened, and why: a provider settles what it is owed all the same.
type Away struct{ Err error }

var _ metering.Source = Away{}

// Name is "none".
func (Away) Name() string { return "none" }

// Devices returns why there is none.
func (a Away) Devices(context.Context) ([]metering.Device, error) { return nil, a.Err }

// Read returns why nothing can be read.
func (a Away) Read(context.Context, string) (metering.Reading, error) {
	return metering.Reading{}, a.Err
}

// Close does nothing.
func (Away) Close() error { return nil }
