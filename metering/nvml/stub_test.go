//go:build !linux || !cgo

package nvml_test

import (
	"errors"
	"testing"

	"github.com/gpupay/gpupay/metering/nvml"
)

// TestOpenSaysHowToBuild: without cgo there is one clear error.
func TestOpenSaysHowToBuild(t *testing.T) {
	if _, err := nvml.Open(nvml.Options{}); !errors.Is(err, nvml.ErrBuild) {
		t.Errorf("got %v", err)
	}
}
