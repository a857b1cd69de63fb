package gpu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/run"
)

// HostAllocator rents out this host's GPUs, each to one lease at a time. What
// happens to them is up to commands of the provider's own, run with
//
//	NVIDIA_VISIBLE_DEVICES  the lease's device UUIDs, comma-separated
//	GPUPAY_LEASE            the lease's id, 0x and 64 hex digits
//	GPUPAY_PAYER            the renter's address, when it is allocated
//	GPUPAY_TERM             a fencing token, where gateways share a database: it grows with each gateway that
//	                        takes the lease over, and a command with a lower one than was seen should do nothing
//
// in their environment, so that a container or a virtual machine can be rented
// out without code. Of this program's own environment they see what a command
// needs to run (PATH, HOME, LANG and their like, and what begins with NVIDIA_,
// CUDA_, DOCKER_ or XDG_) and what Environment names, and no key or secret. A command that exits non-zero fails its operation with
// what it wrote to stderr, cut short. Of what it writes to stdout and to stderr 64 KiB each are kept, and the rest is dropped. What
// is taken back after a failed allocation has as long as the allocation had: CallTimeout.
type HostAllocator struct {
	Devices []string // UUIDs to rent out; none: all that Source lists and are of one kind with the first that it ever listed, or of the provider's classes

	// Source lists the devices that work: one that it lists no more, as it is lost or hangs, is not handed out until it
	// does. Without one all of Devices are taken to work. One that a lease could not read lately is not handed out either, for a
	// minute and longer each time, an hour at most.
	Source metering.Source

	// AllocateCommand's standard output is the access document: JSON, or a
	// text that is handed over as a JSON string, of 64 KiB at most. Empty commands do nothing.
	AllocateCommand []string
	SuspendCommand  []string
	ResumeCommand   []string
	ReleaseCommand  []string

	// AliveCommand tells whether what was allocated still runs, suspended or not:
	// status 0 says that it does, any other that it does not. One that does not end
	// within CallTimeout, or cannot be run, says nothing. Where there is one, the
	// resume command must succeed on what is not suspended.
	AliveCommand []string

	// Environment names more variables of this program's environment that the
	// commands see, such as "HTTPS_PROXY". Do not name one that holds a key.
	Environment []string

	own  inventory.Memory
	book inventory.Book // instead of own, where gateways share the host

	sick  inventory.Quarantine // of devices that are not handed out meanwhile
	joins bool                 // what the source lists later is rented out, too; else Devices alone is, where there are any
	one   inventory.Kinds      // of one kind with the first
	kinds *inventory.Kinds     // instead of one, a provider's classes

	awayMu sync.Mutex
	away   []string // of leases of an earlier run, and not here when this one began
}

var (
	_ Allocator = (*HostAllocator)(nil)
	_ Adopter   = (*HostAllocator)(nil)
	_ Capacity  = (*HostAllocator)(nil)
	_ Liveness  = (*HostAllocator)(nil)

	_ inventory.Keeper = (*HostAllocator)(nil)
)

// Inventory is for the provider: in which book the devices are that are rented out here.
func (h *HostAllocator) Inventory() inventory.Inventory { return stock{h} }

// stock is the inventory of a host.
type stock struct{ host *HostAllocator }

func (s stock) Book() inventory.Book              { return s.host.leased() }
func (s stock) Share(book inventory.Book)         { s.host.book = book }
func (s stock) Devices() []string                 { return s.host.devices() }
func (s stock) Remember(devices []string)         { s.host.remember(devices) }
func (s stock) Quarantine() *inventory.Quarantine { return &s.host.sick }
func (s stock) Sell(kinds *inventory.Kinds)       { s.host.kinds = kinds }
func (s stock) Free(of []string) int {
	return s.host.free(func() []string { return inventory.Both(s.host.rentable(), of) })
}

// leased is the book of the devices that are rented out here.
func (h *HostAllocator) leased() inventory.Book {
	if h.book != nil {
		return h.book
	}
	return &h.own
}

// NewHostAllocator rents out every device that the source can meter, those included that it lists later, as one that is lost now
// and comes back: where they are of one kind with the first, or of one of the provider's classes. One that the
// source lists no more, as it is lost or hangs, is not handed out until it does.
func NewHostAllocator(ctx context.Context, source metering.Source) (*HostAllocator, error) {
	devices, err := source.Devices(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing the GPUs of %s: %w", source.Name(), err)
	}
	if len(devices) == 0 {
		return nil, fmt.Errorf("%s has no GPU to rent out", source.Name())
	}
	h := &HostAllocator{Source: source, joins: true}
	h.one.Of(devices[0])
	for _, d := range devices {
		h.Devices = append(h.Devices, d.UUID)
	}
	return h, nil
}

// HostOf is NewHostAllocator, or, where the source lists no GPU now, an allocator that rents out what it lists later. It goes on with
// the leases that are there meanwhile.
func HostOf(ctx context.Context, source metering.Source) *HostAllocator {
	h, err := NewHostAllocator(ctx, source)
	if err != nil {
		return &HostAllocator{Source: source}
	}
	return h
}

// CheckCommands returns which commands cannot be run on this host, before a renter's deposit waits for one of them.
func (h *HostAllocator) CheckCommands() error {
	var failed []error
	for _, c := range []struct {
		what    string
		command []string
	}{{"allocate", h.AllocateCommand}, {"suspend", h.SuspendCommand}, {"resume", h.ResumeCommand}, {"release", h.ReleaseCommand}, {"alive", h.AliveCommand}} {
		if len(c.command) == 0 {
			continue
		}
		if _, err := exec.LookPath(c.command[0]); err != nil {
			failed = append(failed, fmt.Errorf("the %s command cannot be run: %w", c.what, err))
		}
	}
	return errors.Join(failed...)
}

// devices are all of this host, those included that were away when this began.
func (h *HostAllocator) devices() []string {
	all := h.rentable()
	h.awayMu.Lock()
	defer h.awayMu.Unlock()
	return append(all, inventory.Without(h.away, all)...)
}

// rentable are those that go into new leases.
func (h *HostAllocator) rentable() []string {
	all, kinds := slices.Clone(h.Devices), h.kinds
	if len(all) > 0 && !h.joins {
		return all
	}
	if kinds == nil {
		kinds = &h.one
	}
	return append(all, inventory.Without(inventory.Names(inventory.Those(h.sick.Listed(nil), kinds.Sells)), all)...)
}

// remember takes devices of a lease that is here for devices of this host.
func (h *HostAllocator) remember(devices []string) {
	missing := inventory.Without(devices, h.devices())
	h.awayMu.Lock()
	defer h.awayMu.Unlock()
	h.away = append(h.away, missing...)
}

// Free returns how many devices are not in a lease, and work.
func (h *HostAllocator) Free() int { return h.free(h.rentable) }

func (h *HostAllocator) free(of func() []string) int {
	held, err := h.leased().Held(context.Background())
	if err != nil {
		return 0 // nothing can be begun without the book
	}
	return len(inventory.Unheld(held, h.sick.Lately(h.Source, of)))
}

// Allocate hands out free devices exclusively.
func (h *HostAllocator) Allocate(ctx context.Context, req Request) (Allocation, error) {
	after := run.After(ctx)
	devices, err := h.take(ctx, req)
	if err != nil {
		return Allocation{}, err
	}
	a := Allocation{LeaseID: req.LeaseID, Devices: devices, Term: req.Term}
	out, err := h.run(ctx, "allocate", h.AllocateCommand, a, "GPUPAY_PAYER="+req.Payer.Hex())
	if err == nil && out.more {
		err = fmt.Errorf("allocate command of lease %s: it wrote more than the %d bytes that an access document may have", a.LeaseID, maxOutput)
	}
	if err != nil {
		// What a half-run command left behind must not stay in the stranger's hands.
		undo, cancel := after()
		defer cancel()
		if held := h.Release(undo, a); held != nil {
			err = fmt.Errorf("%w, and %w: %w", err, ErrHeld, held)
		}
		return Allocation{}, err
	}
	a.Access = accessDocument(out.kept, devices)
	return a, nil
}

// Suspend runs the provider's command.
func (h *HostAllocator) Suspend(ctx context.Context, a Allocation) error {
	_, err := h.run(ctx, "suspend", h.SuspendCommand, a)
	return err
}

// Resume runs the provider's command.
func (h *HostAllocator) Resume(ctx context.Context, a Allocation) error {
	_, err := h.run(ctx, "resume", h.ResumeCommand, a)
	return err
}

// Alive runs the provider's command.
func (h *HostAllocator) Alive(ctx context.Context, a Allocation) error {
	_, err := h.run(ctx, "alive", h.AliveCommand, a)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() && ctx.Err() == nil {
		return fmt.Errorf("%w: %w", ErrDead, err)
	}
	return err
}

// Release runs the provider's command and frees the devices. If the command
// fails they stay taken: a device that may still be in a stranger's use is
// never handed to the next renter.
func (h *HostAllocator) Release(ctx context.Context, a Allocation) error {
	if err := h.complete(ctx, &a); err != nil {
		return err
	}
	if _, err := h.run(ctx, "release", h.ReleaseCommand, a); err != nil {
		return err
	}
	return h.leased().Free(ctx, a.LeaseID)
}

// Adopt marks the devices of a lease of an earlier run as taken. Whose host they are on does not depend on what is listed now: a GPU
// that is lost, or slow to answer, as the program starts, ends no lease that is paid. Where gateways of several hosts
// share a book, a lease is of this host if one of its devices is known here, by Remember too.
func (h *HostAllocator) Adopt(ctx context.Context, a Allocation) error {
	choose := func(held map[string]common.Hash) ([]string, error) { return a.Devices, h.adoptable(a, held) }
	here := len(inventory.Without(a.Devices, h.devices())) < len(a.Devices)
	if here || h.book == nil { // what is missing may come back
		h.remember(a.Devices)
	}
	_, err := h.leased().Reserve(ctx, a.LeaseID, choose)
	return err
}

func (h *HostAllocator) adoptable(a Allocation, held map[string]common.Hash) error {
	here := h.devices()
	for _, device := range a.Devices {
		if !slices.Contains(here, device) {
			return fmt.Errorf("device %s of lease %s is no longer on this host", device, a.LeaseID)
		}
		if other, taken := held[device]; taken && other != a.LeaseID {
			return fmt.Errorf("device %s of lease %s: %w: %s", device, a.LeaseID, inventory.ErrTaken, other)
		}
	}
	return nil
}

func (h *HostAllocator) take(ctx context.Context, req Request) ([]string, error) {
	of := h.rentable
	if req.Class != "" {
		of = func() []string { return inventory.Both(h.rentable(), req.Devices) }
	}
	fit, err := h.sick.Fit(ctx, h.Source, of)
	if err != nil {
		return nil, fmt.Errorf("%w: the GPUs cannot be listed: %w", ErrNoCapacity, err)
	}
	choose := func(held map[string]common.Hash) ([]string, error) { return choose(held, fit, req, len(of())) }
	return h.leased().Reserve(ctx, req.LeaseID, choose)
}

// choose picks devices that work and are free, those of no Metered route first.
func choose(held map[string]common.Hash, fit []string, req Request, all int) ([]string, error) {
	n, free := req.GPUs, inventory.Unheld(held, fit)
	if n < 1 || len(free) < n {
		return nil, fmt.Errorf("%w: %d wanted, %d of %d free, %d in quarantine", ErrNoCapacity, n, len(free), all, all-len(fit))
	}
	others := inventory.Without(free, req.Routed)
	return append(others, inventory.Without(free, others)...)[:n], nil
}

// complete finds the devices of an allocation that was cut off. Where gateways
// share a book, it refuses those of another host: taking them back here would
// hand them to the next renter while the last one still has them.
func (h *HostAllocator) complete(ctx context.Context, a *Allocation) error {
	held, err := h.leased().Held(ctx)
	if err != nil {
		return err
	}
	for _, device := range slices.Sorted(maps.Keys(held)) {
		if held[device] == a.LeaseID && !slices.Contains(a.Devices, device) {
			a.Devices = append(slices.Clone(a.Devices), device)
		}
	}
	if h.book == nil {
		return nil
	}
	here := h.devices()
	for _, device := range a.Devices {
		if !slices.Contains(here, device) {
			return fmt.Errorf("device %s of lease %s is not on this host", device, a.LeaseID)
		}
	}
	return nil
}

// outputWait is how long a command's output is waited for when it has ended: what
// it started may keep that open for ever.
const outputWait = time.Second

func (h *HostAllocator) run(ctx context.Context, what string, command []string, a Allocation, env ...string) (head, error) {
	if len(command) == 0 {
		return head{}, nil
	}
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	ofItsOwnGroup(cmd)
	cmd.WaitDelay = outputWait
	cmd.Env = append(h.environment(),
		"NVIDIA_VISIBLE_DEVICES="+strings.Join(a.Devices, ","),
		"GPUPAY_LEASE="+a.LeaseID.Hex(), fmt.Sprintf("GPUPAY_TERM=%d", a.Term))
	cmd.Env = append(cmd.Env, env...)
	var stdout, stderr head
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) && ctx.Err() == nil && cmd.ProcessState.Success() {
		err = nil // it did what it should, and left something behind that runs on
	}
	if err != nil {
		return head{}, fmt.Errorf("%s command of lease %s: %w: %.500s", what, a.LeaseID, err, bytes.TrimSpace(stderr.kept))
	}
	return stdout, nil
}

// maxOutput is how much is kept of what a command writes to each of stdout and stderr, in bytes.
const maxOutput = 64 << 10

// head keeps the first maxOutput bytes that a command writes, and drops what follows: one that talks without end takes no
// memory, and is not held up either, since what it is asked to do counts.
type head struct {
	kept []byte
	more bool // something was dropped
}

func (h *head) Write(p []byte) (int, error) {
	kept := p[:min(len(p), maxOutput-len(h.kept))]
	h.kept = append(h.kept, kept...)
	h.more = h.more || len(kept) < len(p)
	return len(p), nil
}

// passedOn are the variables that any command may need, passedPrefixes what those
// begin with that tools for GPUs and containers read.
var (
	passedOn = []string{"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH",
		"SSL_CERT_FILE", "SSL_CERT_DIR", "KUBECONFIG", "CONTAINER_HOST"}
	passedPrefixes = []string{"LC_", "NVIDIA_", "CUDA_", "DOCKER_", "XDG_"}
)

// environment is what a command sees of ours: named variables only, since the
// payee's key and the nodes' secret are in there, too.
func (h *HostAllocator) environment() []string {
	var env []string
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		begins := func(prefix string) bool { return strings.HasPrefix(name, prefix) }
		if slices.Contains(passedOn, name) || slices.Contains(h.Environment, name) || slices.ContainsFunc(passedPrefixes, begins) {
			env = append(env, variable)
		}
	}
	return env
}

// accessDocument is what the allocate command wrote; the device list where it
// wrote nothing.
func accessDocument(out []byte, devices []string) json.RawMessage {
	out = bytes.TrimSpace(out)
	switch {
	case len(out) == 0:
		raw, _ := json.Marshal(map[string][]string{"devices": devices}) // strings always marshal
		return raw
	case json.Valid(out):
		return json.RawMessage(out)
	}
	raw, _ := json.Marshal(string(out))
	return raw
}
