package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/nvml"
	"github.com/gpupay/gpupay/metering/sim"
)

// errNoGPU says that --gpu is right, and this host's GPUs cannot be opened.
var errNoGPU = errors.New("no NVIDIA GPU")

// Source opens where readings come from: "nvml" for this host's NVIDIA GPUs,
// "sim" or "sim:8" for simulated ones, "auto" for NVML where there is a GPU
// and two simulated GPUs where there is none.
func Source(name string) (metering.Source, error) {
	kind, count, counted := strings.Cut(name, ":")
	if counted && kind != "sim" {
		kind = ""
	}
	switch kind {
	case "sim":
		n := 1
		if counted {
			var err error
			if n, err = strconv.Atoi(count); err != nil || n < 1 || n > 1024 {
				return nil, fmt.Errorf("--gpu %s: the number of simulated GPUs must be 1 to 1024", name)
			}
		}
		return sim.New(n, sim.Options{}), nil
	case "nvml":
		source, err := nvml.Open(nvml.Options{})
		if err != nil {
			return nil, fmt.Errorf("%w: %w (to try things out without one, give --gpu sim)", errNoGPU, err)
		}
		return source, nil
	case "auto":
		source, err := nvml.Open(nvml.Options{})
		if err == nil {
			return source, nil
		}
		return sim.New(2, sim.Options{}), nil
	}
	return nil, fmt.Errorf("--gpu %q is not nvml, sim, sim:N or auto", name)
}
