package provider

import (
	"log/slog"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/wire"
)

// TestAllocationThatHangs: an allocation that hangs, and whose release does, is answered when the times of both are up, and it is on
// disk that its lease never began. Its GPU is taken back when the release works.
func TestAllocationThatHangs(t *testing.T) {
	host := hostGPUs(t, 2)
	command, _ := script(t, "[ -e $0.well ] || exec sleep 300")
	host.AllocateCommand, host.ReleaseCommand = append(command, "allocate"), append(command[:1:1], "release")
	r := newRig(t, func(c *Config) {
		c.Allocator, c.Commands.Timeout, c.Log = host, time.Second, slog.New(slog.DiscardHandler)
	})
	began := time.Now()
	if resp := r.do("GET", "", r.openCredential(r.payer, r.terms(r.payer.Address(), 1), 300_000, 0)); resp.StatusCode != http.StatusInternalServerError || time.Since(began) > time.Minute {
		t.Errorf("answered with %s after %s", resp.Status, time.Since(began))
	}
	var states []string
	if err := r.provider.db.View().Select(&states, `SELECT state FROM leases`); err != nil || len(states) != 1 || states[0] != wire.StateEnded {
		t.Errorf("its lease is %s, %v", states, err)
	}
	if free := host.Free(); free != 1 {
		t.Errorf("%d are free while the release fails", free)
	}
	if err := os.WriteFile(command[0]+".well", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the GPU to be free", func() bool { return host.Free() == 2 })
}

// TestReleaseThatFailsOnce: what could not be taken back when its lease ended is suspended, the operator is told, and it is taken back
// when that works, without another start: at a provider and at a node.
func TestReleaseThatFailsOnce(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"provider", "node"} {
		t.Run(name, func(t *testing.T) {
			fresh, calls, fails := handing(t)
			host := fresh()
			quiet := slog.New(slog.DiscardHandler)
			var r *rig
			healthz := func() http.Handler { return r.provider.Health() }
			if name == "provider" {
				r = newRig(t, generousCredit, func(c *Config) { c.Allocator, c.Commands.Timeout, c.Log = host, time.Second, quiet })
			} else {
				o := newOutpost(t)
				o.stop()
				o.config.Source, o.config.Allocator, o.config.CommandTimeout, o.config.Log = host.Source, host, time.Second, quiet
				o.start()
				r = newRig(t, o.link, generousCredit, func(c *Config) { c.Log = quiet })
				healthz = func() http.Handler { return o.node.Health() }
			}
			fails(true)
			lease := r.open(1, 300_000, "")
			lease.record()
			lease.release()
			eventually(t, "the health to say so", func() bool {
				var h health
				code, _ := fetched(t, healthz(), &h)
				return code == http.StatusOK && h.Held == 1 && strings.HasPrefix(h.Status, "degraded")
			})
			if host.Free() != 0 || strings.Count(calls(), "suspend") != 1 {
				t.Errorf("%d are free after\n%s", host.Free(), calls())
			}
			fails(false)
			eventually(t, "the device to be free", func() bool { return host.Free() == 1 })
			eventually(t, "the health to be well", func() bool {
				var h health
				_, _ = fetched(t, healthz(), &h)
				return h.Held == 0
			})
		})
	}
}
