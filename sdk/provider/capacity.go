package provider

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/capacity"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
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
	offered := &p.leases.Offered
	offered.Kinds.Classes, offered.Kinds.Log = p.config.classes(), p.config.Log
	if a, ok := p.config.Allocator.(inventory.Keeper); ok && len(p.config.Classes) > 0 {
		a.Inventory().Sell(&offered.Kinds)
	}
	if offered.Devices, err = p.config.Source.Devices(ctx); err != nil {
		p.noGPUs = fmt.Errorf("provider: listing the GPUs of %s: %w", p.config.Source.Name(), err)
	} else if len(offered.Devices) == 0 {
		p.noGPUs = fmt.Errorf("provider: %s has no GPU to rent out", p.config.Source.Name())
	}
	if err := offered.Kinds.Classes.Check(offered.Devices); err != nil {
		return fmt.Errorf("provider: %w", err)
	}
	if sold := offered.List(); len(sold) < len(offered.Devices) {
		left := inventory.Without(inventory.Names(offered.Devices), inventory.Names(sold))
		p.config.Log.Warn("GPUs that no class of the configuration names are not rented out", "gpus", left)
		if len(sold) == 0 {
			p.noGPUs = fmt.Errorf("provider: no GPU of %s is of a class of the configuration (%s): see Classes", p.config.Source.Name(), strings.Join(offered.Kinds.Classes.IDs(), ", "))
		}
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
	pool.Classes = c.classes()
	return remote.New(pool), nil
}

// openBooks has the GPUs of each class be counted.
func (p *Server) openBooks() {
	p.reserved = make(reserve.Books)
	for _, id := range p.config.classes().IDs() {
		c := p.capacity(id)
		book := &reserve.Book{Left: c.Left, Before: func(ctx context.Context) error { return p.leases.Forgotten.Before(ctx) }}
		if p.gateway != nil {
			book.Shared = &reserve.Shared{DB: p.db, Pool: c.Pool, Log: p.config.Log,
				TTL: func() time.Duration { return p.config.Deposits.Timeout + p.leases.Deps.Timing.Begins() }}
		}
		p.reserved[id] = book
	}
}

func (p *Server) capacity(class string) *capacity.Class {
	lost := func(ctx context.Context) (all, untold []string, err error) { return p.leases.Forgotten.Devices(ctx) }
	return &capacity.Class{ID: class, Nodes: p.nodes, Allocator: p.config.Allocator, Service: p.leases.Services[class], Offered: &p.leases.Offered, Offer: p.offers.Of, Forgotten: lost, Log: p.config.Log}
}

// free is how many GPUs a new lease of a class could have now. nil: the allocator does not say.
func (p *Server) free(class string) *int {
	book := p.reserved[class]
	if p.directory.TakesLeases() != nil || book == nil {
		return new(int)
	}
	return p.capacity(class).Free(context.Background(), book)
}
