package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	urfave "github.com/urfave/cli/v3"

	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/sdk/gpu"
	sdknode "github.com/gpupay/gpupay/sdk/node"
	"github.com/gpupay/gpupay/sdk/node/nodekeys"
	"github.com/gpupay/gpupay/sdk/service"
)

// node meters this host's GPUs for gateways that are somewhere else.
type node struct {
	flags              *cli.Flags
	listen, admin, gpu string
	identity           string   // folder of the certificate
	meterKey           string   // file of the key that signs records
	ca                 string   // folder of the authority
	issue              []string // nodes that certificates are made for
	drain              bool
	hooks              cli.Hooks
	config             sdknode.Config
}

const nodeMore = `Run 'gpupay serve --nodes' at the gateways: docs/nodes.md. The key that signs the usage records is made at the first start,
and stays here. One that is given by $GPUPAY_KEY or --keystore signs leases from before alone.`

func newNode(app *cli.App) *node {
	n := &node{flags: app.Flags("node", "node")}
	c, f := &n.config, n.flags

	f.Group("Who it is")
	f.Text(&c.Name, "name", "", "what the gateways call this node (--nodes name=URL)")
	f.Path(&n.identity, "node-identity", "node-identity", "`folder` of this node's certificate, that --issue made")
	f.Path(&n.meterKey, "meter-key", "", "`path` of this node's own key, which signs its usage records and is made where it is missing; meter-key.pem in --node-identity if empty")
	f.Address(&c.Payee, "payee", "whose leases are metered; without it anybody's whom its gateways serve")

	f.Group("GPUs")
	f.Text(&n.gpu, "gpu", "nvml", "where GPUs come from: nvml, sim, sim:N, or auto")
	n.hooks.Register(f)
	f.Duration(&c.SuspendTimeout, "suspend-timeout", 5*time.Minute, "an unpaid lease ends after it, also where no gateway is heard of")
	f.Bool(&n.drain, "drain", "when stopped, end all leases; without it leases go on after a restart")

	f.Group("Gateways come here")
	f.Text(&n.listen, "listen", "127.0.0.1:8404", "`address` to serve gateways on")
	f.Text(&n.admin, "admin", "127.0.0.1:9404", "`address` of /metrics and /healthz; empty for none. Do not open it to the world")

	f.Group("What is kept")
	f.Path(&c.Database, "db", "gpupay-node.db", "`path` of the spool: it holds usage records that no gateway has yet")
	f.Path(&c.HighWater, "high-water", "", "`path` of the file that remembers which records were signed, never restored with the spool; the spool's with .signed if empty")

	f.Key()
	f.Log("info")
	f.Actions("Instead of metering: certificates")
	f.List(&n.issue, "issue", "make certificates for nodes of these `names`, separated by commas, and for their gateways where there is none")
	f.Text(&n.ca, "ca", "gpupay-ca", "with --issue: `folder` of the authority, and of a folder for each certificate; who has its key commands all nodes")
	return n
}

func (n *node) command() *urfave.Command {
	return n.flags.Command("meter this host's GPUs for gateways elsewhere", nodeMore, func(ctx context.Context, _ []string) error {
		if err := n.read(); err != nil {
			return err
		}
		return n.run(ctx)
	})
}

func (n *node) read() (err error) {
	c := &n.config
	if c.Log, err = n.flags.Logger(); err != nil || len(n.issue) > 0 || !n.flags.KeyGiven() {
		return err
	}
	shared, err := n.flags.LoadKey() // that all nodes signed with before each had its own: leases of then go on
	c.PastKeys = append(c.PastKeys, shared)
	return err
}

func (n *node) run(ctx context.Context) error {
	if len(n.issue) > 0 {
		made, err := nodekeys.Issue(n.ca, n.issue)
		for _, folder := range made {
			fmt.Println("made", folder)
		}
		return err
	}
	c, err := &n.config, error(nil)
	if c.Identity, err = nodekeys.ReadIdentity(n.identity); err != nil {
		return fmt.Errorf("--node-identity: %w", err)
	}
	if c.MeterKey, err = nodekeys.OpenMeterKey(cmp.Or(n.meterKey, filepath.Join(n.identity, "meter-key.pem"))); err != nil {
		return fmt.Errorf("--meter-key: %w", err)
	}
	source, err := cli.SourceOrAway(n.gpu)
	if err != nil {
		return err
	}
	defer source.Close()
	c.Source = source
	if c.Allocator, err = n.hooks.Allocator(ctx, c.Source); err != nil {
		return err
	}
	agent, err := sdknode.New(ctx, *c)
	if err != nil {
		return n.flags.Named(err, cli.Fields{"Database": "db", "HighWater": "high-water", "SuspendTimeout": "suspend-timeout"})
	}
	return errors.Join(n.serve(ctx, agent), agent.Close())
}

func (n *node) serve(ctx context.Context, agent *sdknode.Agent) error {
	gateways, admin, err := cli.Listeners(n.listen, n.admin)
	if err != nil {
		return err
	}
	fmt.Printf("node %s meters %d GPU(s) at %s and signs as %s\n", n.config.Name, len(n.config.Allocator.(*gpu.HostAllocator).Devices), gateways.Addr(), n.config.MeterKey.Address())
	cli.SayAdmin(admin)
	s := service.Service{Handler: agent, TLS: agent.TLS(), Metrics: agent.Metrics(), Health: agent.Health()}
	if n.drain {
		s.Stop = agent.Drain // while leases drain, gateways still fetch their records
	}
	return service.Serve(ctx, s, gateways, admin)
}
