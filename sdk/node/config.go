// Package node meters GPUs on their host for gateways that are somewhere else: providers whose provider.Config.Nodes names it. It
// needs no chain, no payee's key and no gateway to go on:
//
//	agent, err := node.New(ctx, node.Config{..})
//	server := &http.Server{Addr: "10.0.0.5:8404", Handler: agent, TLSConfig: agent.TLS()}
//	server.ListenAndServeTLS("", "")
//
// It promises: a usage record is on the node's own disk before any gateway sees it, and stays there until one has it; no lease runs further
// ahead of what its gateways said is vouchered than the credit in the offer, however long none of them is heard of.
package node

import (
	"cmp"
	"errors"
	"log/slog"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/node/nodekeys"
)

// Config says what a node meters, and for whom. The fields of the first group
// are needed.
type Config struct {
	// Name is what its gateways call it: 1 to 63 of a-z, 0-9 and -.
	Name string
	// Identity is what the provider's nodekeys.CA issued to this name.
	Identity nodekeys.Identity
	// MeterKey is this node's own, which signs the usage records of its leases: see nodekeys.OpenMeterKey.
	MeterKey metering.Signer
	// Database is the path of the spool, an SQLite file on the node's own disk.
	Database string
	// Source meters the GPUs of this host.
	Source metering.Source

	// PastKeys are metering keys of before, for leases that go on, the one that all nodes had first; none if empty.
	PastKeys []metering.Signer
	// HighWater is as provider.Records.HighWater; Database with ".signed" behind it if empty.
	HighWater string
	// Allocator hands the GPUs out; a gpu.HostAllocator over Source if nil.
	Allocator gpu.Allocator
	// Payee is whose offers it meters for; anybody's whom its gateways serve if zero.
	Payee common.Address
	// SuspendTimeout is after how long an unpaid lease ends, also where no gateway is heard of; 5 min if zero, not negative.
	SuspendTimeout time.Duration
	// CommandTimeout is of one of the Allocator's commands; 30 s if zero, not negative.
	CommandTimeout time.Duration
	// AliveEvery is the time between looks at whether what was allocated is alive, where the Allocator says (gpu.Liveness); 10 s if
	// zero, not negative.
	AliveEvery time.Duration
	// Clock is metering.System if nil.
	Clock metering.Clock
	// Log is slog.Default() if nil.
	Log *slog.Logger
}

func (c Config) withDefaults() Config {
	c.SuspendTimeout = cmp.Or(c.SuspendTimeout, 5*time.Minute)
	c.CommandTimeout = cmp.Or(c.CommandTimeout, 30*time.Second)
	c.AliveEvery = cmp.Or(c.AliveEvery, 10*time.Second)
	if c.Clock == nil {
		c.Clock = metering.System
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c
}

func (c Config) check() error {
	if err := nodekeys.CheckName(c.Name); err != nil {
		return err
	}
	switch {
	case c.MeterKey == nil:
		return errors.New("node: MeterKey is nil: give the key that signs usage records, as nodekeys.OpenMeterKey makes one")
	case c.Database == "":
		return errors.New("node: Database is empty: give the path of a file; it will hold records that are not delivered yet")
	case min(c.SuspendTimeout, c.CommandTimeout, c.AliveEvery) < 0:
		return errors.New("node: SuspendTimeout, CommandTimeout and AliveEvery must not be negative")
	case c.Source == nil:
		return errors.New("node: Source is nil: give nvml.Open(..) or, to try things out, sim.New(1)")
	}
	return nil
}
