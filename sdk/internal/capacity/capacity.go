// Package capacity counts the GPUs that a new lease could have, beside what leases have and what is kept for deposits on their way.
package capacity

import (
	"context"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/cluster"
	"github.com/gpupay/gpupay/sdk/internal/contain"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/internal/remote"
	"github.com/gpupay/gpupay/sdk/internal/reserve"
	"github.com/gpupay/gpupay/sdk/internal/sharing"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Forgotten are the devices of leases that the database has lost, and which of them are of leases that the allocator could not be told of.
type Forgotten func(context.Context) (devices, untold []string, err error)

// Class counts the GPUs of one class.
type Class struct {
	ID        string        // empty where there are none
	Nodes     *remote.Nodes // nil where this gateway meters
	Allocator gpu.Allocator
	Service   *sharing.Service // of the class's devices, which all leases share; nil: each has its own
	Offered   *inventory.Offered
	Offer     func(class string) (wire.SignedOffer, error)
	Forgotten Forgotten
	Log       *slog.Logger
}

// Pool names the devices that are rented out here, those included that were lost at the start and are back: reservations of another host,
// none of whose devices these are, or of another class are nothing to it. One gateway of a host may know a device that another one does not.
func (c *Class) Pool() string {
	if c.Nodes != nil {
		return strings.TrimSpace("nodes " + c.ID)
	}
	names := inventory.Names(c.Offered.Of(c.ID))
	if host, known := c.Allocator.(inventory.Keeper); known && c.ID == "" { // which hears of them first
		names = append(names, inventory.Without(host.Inventory().Devices(), names)...)
	}
	slices.Sort(names)
	return strings.Join(names, "\n")
}

// has reports whether a node's device is of the class.
func (c *Class) has(d metering.Device) bool {
	if c.ID == "" {
		return true
	}
	offer, err := c.Offer(c.ID)
	return err == nil && offer.Class.Has(d)
}

// Left is how many devices are free beside what others keep, and how many there
// are where the allocator does not say what is free.
func (c *Class) Left(ctx context.Context, others []cluster.Kept) (int, error) {
	if c.Service != nil { // however many have it
		return math.MaxInt32, c.Service.Fit()
	}
	if c.Nodes != nil {
		return c.Nodes.FreeBeside(cluster.Beside(others, nil), c.has), nil
	}
	lost, untold, err := c.lost(ctx)
	if err != nil {
		return 0, err
	}
	host, known := c.Allocator.(inventory.Keeper)
	switch {
	case !known && len(untold) > 0: // it might hand out one of them, when a deposit was sent for another
		return 0, nil
	case !known:
		return c.beside(cluster.Beside(others, nil), lost)
	case len(others) == 0 && len(lost) == 0:
		return c.beside(nil, nil)
	}
	for { // until no lease began or ended in between: one that did would count twice, or not at all
		held, err := host.Inventory().Book().Held(ctx)
		if err != nil {
			return 0, err
		}
		left, err := c.beside(cluster.Beside(others, held), nil)
		if err != nil {
			return 0, err
		}
		left -= host.Inventory().Free(lost) // such as while another gateway begins to take them back
		if now, err := host.Inventory().Book().Held(ctx); err != nil || maps.Equal(now, held) {
			return left, err
		}
	}
}

// lost are the devices of the class that are Forgotten.
func (c *Class) lost(ctx context.Context) (lost, untold []string, err error) {
	lost, untold, err = c.Forgotten(ctx)
	if len(lost) == 0 {
		return nil, nil, err
	}
	offered := inventory.Names(c.Offered.Of(c.ID))
	return inventory.Both(offered, lost), inventory.Both(offered, untold), err
}

// beside is how many there are but those that others keep, and, where the allocator does not say what is free, those that are lost.
func (c *Class) beside(others []int, lost []string) (int, error) {
	devices := c.Offered.Of(c.ID)
	left, ok, err := contain.Free(c.Log, c.Allocator)
	switch host, known := c.Allocator.(inventory.Keeper); {
	case known && c.ID != "":
		left = host.Inventory().Free(inventory.Names(devices))
	case !ok:
		left = len(devices) - len(lost)
	case c.ID != "": // of which class those are that are free it does not say
		left = min(left, len(devices))
	}
	for _, kept := range others {
		left -= kept
	}
	return left, err
}

// Free is how many a new lease could have now, beside what a book keeps. nil: the allocator does not say.
func (c *Class) Free(ctx context.Context, kept *reserve.Book) *int {
	if c.Service != nil {
		free := int(c.Service.Share().GPUs)
		if c.Service.Fit() != nil {
			free = 0
		}
		return &free
	}
	if _, ok := c.Allocator.(gpu.Capacity); !ok && c.Nodes == nil {
		return nil
	}
	free := 0
	others, err := kept.Others(ctx, common.Hash{})
	if err != nil {
		return &free // nothing can be begun without the book
	}
	if left, err := c.Left(ctx, others); err == nil {
		free = max(left, 0)
	}
	return &free
}
