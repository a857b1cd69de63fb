package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/node/nodekeys"
	"github.com/gpupay/gpupay/sdk/provider"
)

// Hooks are an operator's own commands for a lease's GPUs, split at white space.
type Hooks struct {
	allocate, suspend, resume, release, alive string
	environment                               []string
}

// Register adds their flags.
func (h *Hooks) Register(flags *Flags) {
	flags.Text(&h.allocate, "allocate", "", "`command` that hands a lease its GPUs and prints how to reach them; it gets NVIDIA_VISIBLE_DEVICES and GPUPAY_LEASE")
	flags.Text(&h.suspend, "suspend", "", "`command` that suspends an unpaid lease")
	flags.Text(&h.resume, "resume", "", "`command` that resumes it")
	flags.Text(&h.release, "release", "", "`command` that takes the GPUs back")
	flags.Text(&h.alive, "alive", "", "`command` that fails for a lease whose container is gone: it is suspended and not billed; --resume must then succeed on what is not suspended")
	flags.List(&h.environment, "hook-env", "`NAMES` of environment variables that these commands see beside the usual ones, separated by commas")
}

// Allocator rents out the source's GPUs with the commands. Where they cannot be listed now, who rents them out decides whether there is
// something else to do.
func (h *Hooks) Allocator(ctx context.Context, source metering.Source) (*gpu.HostAllocator, error) {
	a := gpu.HostOf(ctx, source)
	a.AllocateCommand = strings.Fields(h.allocate)
	a.SuspendCommand = strings.Fields(h.suspend)
	a.ResumeCommand = strings.Fields(h.resume)
	a.ReleaseCommand = strings.Fields(h.release)
	a.AliveCommand = strings.Fields(h.alive)
	a.Environment = h.environment
	if err := a.CheckCommands(); err != nil {
		return nil, err
	}
	return a, nil
}

// Links reads name=URL,.. of nodes, and who this gateway is to them.
func Links(list, identity string) (links []provider.NodeLink, who nodekeys.Identity, err error) {
	for item := range strings.SplitSeq(list, ",") {
		if item = strings.TrimSpace(item); item == "" {
			continue
		}
		name, url, ok := strings.Cut(item, "=")
		if !ok || name == "" || url == "" {
			return nil, who, fmt.Errorf("--nodes: %q is not a name, = and a URL", redact.URL(item))
		}
		links = append(links, provider.NodeLink{Name: name, URL: url})
	}
	switch {
	case len(links) > 0 && identity == "":
		err = errors.New("--nodes: --node-identity names no folder: make one with `gpupay node --issue`")
	case len(links) > 0:
		who, err = nodekeys.ReadIdentity(identity)
	}
	return links, who, err
}
