package provider

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/cluster"
	"github.com/gpupay/gpupay/sdk/internal/contain"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/nodelink"
	"github.com/gpupay/gpupay/sdk/internal/remote"
	"github.com/gpupay/gpupay/sdk/internal/reserve"
)

// listGPUs has the provider know what it rents out: its source's GPUs, or those of its nodes.
func (p *Server) listGPUs(ctx context.Context) (err error) {
	if len(p.config.Nodes.Links) > 0 {
		p.nodes, err = p.config.newNodes()
		return err
	}
	if p.config.Allocator == nil {
		p.config.Allocator = gpu.HostOf(ctx, p.config.Source)
	}
	if p.leases.Offered.Devices, err = p.config.Source.Devices(ctx); err != nil {
		p.noGPUs = fmt.Errorf("provider: listing the GPUs of %s: %w", p.config.Source.Name(), err)
	} else if len(p.leases.Offered.Devices) == 0 {
		p.noGPUs = fmt.Errorf("provider: %s has no GPU to rent out", p.config.Source.Name())
	}
	if err := inventory.OfOneKind(p.leases.Offered.Devices); err != nil {
		return fmt.Errorf("provider: %w", err)
	}
	return nil
}

// newNodes makes the clients of a configuration's nodes.
func (c Config) newNodes() (*remote.Nodes, error) {
	if err := c.Nodes.Identity.CheckGateway(); err != nil {
		return nil, fmt.Errorf("provider: Nodes.Identity: %w", err)
	}
	var clients []*nodelink.Client
	for _, link := range c.Nodes.Links {
		client, err := nodelink.NewClient(link.Name, link.URL, c.Nodes.Identity)
		if err != nil {
			return nil, fmt.Errorf("provider: Nodes: %w", err)
		}
		clients = append(clients, client)
	}
	pool, err := nodelink.NewPool(clients, c.Log)
	if err != nil {
		return nil, fmt.Errorf("provider: Nodes: %w", err)
	}
	return remote.New(pool), nil
}

// capacity says how many GPUs a new lease could have, beside what leases have and what is kept for deposits on their way.
type capacity struct {
	nodes     *remote.Nodes // nil where this gateway meters
	allocator gpu.Allocator
	leases    *lease.Manager
	reserved  *reserve.Book
	takes     func() error // why no new lease begins
	log       *slog.Logger
}

// pool names the devices that are rented out here: reservations of another host, none of whose devices these are, are nothing to it. One
// gateway of a host may know a device that was lost when another one started.
func (c *capacity) pool() string {
	if c.nodes != nil {
		return "nodes"
	}
	all := inventory.Names(c.leases.Offered.Devices) // of the start: it does not change while others count by it
	slices.Sort(all)
	return strings.Join(all, "\n")
}

// left is how many devices are free beside what others keep, and how many there
// are where the allocator does not say what is free.
func (c *capacity) left(ctx context.Context, others []cluster.Kept) (int, error) {
	if c.nodes != nil {
		return c.nodes.FreeBeside(cluster.Beside(others, nil)), nil
	}
	host, known := c.allocator.(inventory.Keeper)
	if !known {
		return c.leftBeside(cluster.Beside(others, nil))
	}
	lost, err := c.leases.Forgotten.Devices(ctx)
	if err != nil {
		return 0, err
	}
	if len(others) == 0 && len(lost) == 0 {
		return c.leftBeside(nil)
	}
	for { // until no lease began or ended in between: one that did would count twice, or not at all
		held, err := host.Inventory().Book().Held(ctx)
		if err != nil {
			return 0, err
		}
		left, err := c.leftBeside(cluster.Beside(others, held))
		if err != nil {
			return 0, err
		}
		left -= len(inventory.Without(lost, slices.Collect(maps.Keys(held)))) // such as a table that has no lease to name with them
		if now, err := host.Inventory().Book().Held(ctx); err != nil || maps.Equal(now, held) {
			return left, err
		}
	}
}

func (c *capacity) leftBeside(others []int) (int, error) {
	left, ok, err := contain.Free(c.log, c.allocator)
	if !ok {
		left = len(c.leases.Offered.List())
	}
	for _, kept := range others {
		left -= kept
	}
	return left, err
}

// free is how many GPUs a new lease could have now. nil: the allocator does not say.
func (c *capacity) free() *int {
	free := 0
	if c.takes() != nil {
		return &free
	}
	if _, ok := c.allocator.(gpu.Capacity); !ok && c.nodes == nil {
		return nil
	}
	others, err := c.reserved.Others(context.Background(), common.Hash{})
	if err != nil {
		return &free // nothing can be begun without the book
	}
	left, err := c.left(context.Background(), others)
	if err == nil {
		free = max(left, 0)
	}
	return &free
}
