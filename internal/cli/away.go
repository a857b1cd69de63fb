package cli

import (
	"context"
	"errors"

	"github.com/gpupay/gpupay/metering"
)

// Away is the source of a host whose GPUs could not be opened, and why: a provider settles what it is owed all the same.
type Away struct{ Err error }

var _ metering.Source = Away{}

// SourceOrAway is Source for a program that has more to do than to meter: where the GPUs that it names cannot be opened its
// source is Away. What Source does not know is an error as ever: a host must not stand idle for a typing mistake.
func SourceOrAway(name string) (metering.Source, error) {
	source, err := Source(name)
	if errors.Is(err, errNoGPU) {
		return Away{Err: err}, nil
	}
	return source, err
}

// Name is what errors say of it: "listing the GPUs of this host".
func (Away) Name() string { return "this host" }

// Devices returns why there is none.
func (a Away) Devices(context.Context) ([]metering.Device, error) { return nil, a.Err }

// Read returns why nothing can be read.
func (a Away) Read(context.Context, string) (metering.Reading, error) {
	return metering.Reading{}, a.Err
}

// Close does nothing.
func (Away) Close() error { return nil }
