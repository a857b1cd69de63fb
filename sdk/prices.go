package sdk

import (
	"context"
	"fmt"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/nodelink"
	"github.com/gpupay/gpupay/sdk/internal/remote"
	"github.com/gpupay/gpupay/sdk/units"
)

// prices turns what people say (units of the token, an hour) into what is
// charged (base units), and refuses what cannot be charged exactly.
func (p *Provider) prices(ctx context.Context) error {
	var err error
	if p.price, err = units.PerHour(p.config.PricePerGPUHour, p.token.Decimals); err != nil {
		return fmt.Errorf("provider: PricePerGPUHour: %w", err)
	}
	if p.credit, err = p.price.Charge(uint64(p.config.Credit)); err != nil {
		return fmt.Errorf("provider: Credit: %w", err)
	}
	if p.minTransfer, err = p.leastTransfer(); err != nil {
		return err
	}
	if err := p.worthSettling(p.escrow); err != nil {
		return err
	}
	if p.minDelta, err = p.leastDelta(); err != nil {
		return err
	}
	if p.config.Settlement.Dust.IsZero() {
		p.config.Settlement.Dust = p.minTransfer
	}
	if len(p.config.Nodes) > 0 {
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

func (p *Provider) minDeposit() (uint256.Int, error) {
	if p.config.MinDeposit == "" {
		return p.price.Charge(uint64(10 * time.Minute))
	}
	v, err := units.Parse(p.config.MinDeposit, p.token.Decimals)
	if err != nil {
		return v, fmt.Errorf("provider: MinDeposit: %w", err)
	}
	return v, nil
}

// leastTransfer is ProviderConfig.MinTransfer in base units.
func (p *Provider) leastTransfer() (uint256.Int, error) {
	if p.config.MinTransfer != "" {
		v, err := units.Parse(p.config.MinTransfer, p.token.Decimals)
		if err != nil {
			err = fmt.Errorf("provider: MinTransfer: %w", err)
		}
		return v, err
	}
	v, err := p.minDeposit()
	v.Div(&v, uint256.NewInt(10))
	return v, err
}

// leastDelta is ProviderConfig.MinVoucherDelta in base units.
func (p *Provider) leastDelta() (uint256.Int, error) {
	if p.config.MinVoucherDelta == "" {
		return uint256.Int{}, nil
	}
	v, err := units.Parse(p.config.MinVoucherDelta, p.token.Decimals)
	if err != nil {
		return v, fmt.Errorf("provider: MinVoucherDelta: %w", err)
	}
	var most uint256.Int
	if most.Rsh(&p.credit, 2); v.Gt(&most) {
		return v, fmt.Errorf("provider: MinVoucherDelta (%s) is over a quarter of what Credit is worth (%s): a renter could not pay in time", p.config.MinVoucherDelta, units.Format(most, p.token.Decimals))
	}
	return v, nil
}

// newNodes makes the clients of a configuration's nodes.
func (c ProviderConfig) newNodes() (*remote.Nodes, error) {
	if err := c.NodeIdentity.CheckGateway(); err != nil {
		return nil, fmt.Errorf("provider: NodeIdentity: %w", err)
	}
	var clients []*nodelink.Client
	for _, link := range c.Nodes {
		client, err := nodelink.NewClient(link.Name, link.URL, c.NodeIdentity)
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
