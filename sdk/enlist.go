package sdk

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/nodelink"
	"github.com/gpupay/gpupay/sdk/wire"
)

// enlistEvery is how often a gateway says which nodes it has.
const enlistEvery = 10 * time.Second

// refusalTimeout is how long the others wait for a node that does not hear why it is refused.
const refusalTimeout = time.Second

// owns refuses devices that an enlisted node did not list, is not to have twice, or that are more or fewer than were asked for.
func (n *nodes) owns(name string, devices []string, gpus int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(devices) != gpus {
		return fmt.Errorf("it gives %d devices for %d", len(devices), gpus)
	}
	for i, uuid := range devices {
		if !slices.ContainsFunc(n.known[name], func(d metering.Device) bool { return d.UUID == uuid }) || slices.Contains(devices[:i], uuid) {
			return fmt.Errorf("it gives device %.*q, which is not one of those that it lists, or gives it twice", nodelink.MaxDeviceText, uuid)
		}
	}
	return nil
}

// slicesOfAnother refuses a record of MIG slices that are said to be cut from another node's GPU: who checks whether a GPU is
// billed twice would blame that node. The slices themselves are the lease's, see owns.
func (n *nodes) slicesOfAnother(name string, billed []metering.DeviceEvidence) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for other, devices := range n.known {
		if other == name {
			continue
		}
		theirs := nodelink.DeviceNames(devices)
		for _, d := range billed {
			if d.Device.Parent != "" && slices.Contains(theirs, d.Device.Parent) {
				return fmt.Errorf("it bills slices of GPU %s, which is node %s's", d.Device.Parent, other)
			}
		}
	}
	return nil
}

// enlist has the list of all gateways say which nodes begin leases, and tells those
// that do not why.
func (n *nodes) enlist(ctx context.Context) error {
	n.mu.Lock()
	now, heard := n.now(), make(map[string][]metering.Device)
	due := now.Sub(n.enlistedAt).Abs() >= enlistEvery
	for name, s := range n.status {
		if s.Problem != "" {
			continue // it has what it had
		}
		heard[name] = s.Devices
		before, known := n.enlisted[name]
		due = due || !known || !slices.Equal(wire.DevicesOf(s.Devices), before)
	}
	n.mu.Unlock()
	if !due {
		return nil
	}
	links := make([]string, len(n.links))
	for i, c := range n.links {
		links[i] = c.Name
	}
	refused, err := nodelink.Enlistments{DB: n.p.db}.Enlist(ctx, now, links, heard)
	if err != nil {
		return fmt.Errorf("enlisting nodes: %w", err)
	}
	n.noteEnlisted(now, heard, refused)
	var wait sync.WaitGroup
	for name := range refused {
		wait.Go(func() {
			var answer struct{}
			if err := n.link(name).Call(ctx, refusalTimeout, "POST", "/refusal", nodelink.Refusal{Reason: refused[name]}, &answer); err != nil {
				n.p.config.Log.Debug("node does not hear why it is refused", "node", name, "error", err)
			}
		})
	}
	wait.Wait()
	return nil
}

func (n *nodes) noteEnlisted(now time.Time, heard map[string][]metering.Device, refused map[string]string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.enlistedAt = now
	for name, devices := range heard {
		n.enlisted[name] = wire.DevicesOf(devices)
		if why := refused[name]; why == "" {
			if n.refused[name] != "" {
				n.p.config.Log.Info("node is enlisted", "node", name)
			}
			delete(n.refused, name)
			n.known[name] = devices
		} else {
			if n.refused[name] != why {
				n.p.config.Log.Error("node is refused: it begins no lease, and those that run there go on", "node", name, "error", why)
			}
			n.refused[name] = why
			delete(n.known, name)
		}
	}
}

// takes reports whether a node may begin a lease: it answered, with devices that are
// enlisted. n.mu is held.
func (n *nodes) takes(name string) bool {
	s, ok := n.status[name]
	kind, listed := n.enlisted[name]
	return ok && listed && n.refused[name] == "" && slices.Equal(kind, wire.DevicesOf(s.Devices)) && !n.resting(name)
}

// refusals is why nodes begin no lease, by their names.
func (n *nodes) refusals() map[string]string {
	if n == nil {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return maps.Clone(n.refused)
}
