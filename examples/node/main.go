// Command node meters this host's GPUs for gateways that are somewhere else: run
// the provider program there with --nodes. Run it with --help for its flags.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/sdk"
)

func main() { cli.Main(run) }

type options struct {
	flags              *cli.Flags
	listen, admin, gpu string
	identity           string // folder of the certificate
	meterKey           string // file of the key that signs records
	ca, issue          string // folder of the authority, and the nodes that certificates are made for
	drain              bool
	hooks              cli.Hooks
	config             sdk.NodeConfig
}

func run(ctx context.Context) error {
	o, err := parse(os.Args[1:])
	if err != nil {
		return err
	}
	return start(ctx, o)
}

func start(ctx context.Context, o *options) error {
	if o.issue != "" {
		return issue(o.ca, strings.Split(o.issue, ","))
	}
	var err error
	if o.config.Identity, err = sdk.ReadNodeIdentity(o.identity); err != nil {
		return fmt.Errorf("--identity: %w", err)
	}
	if o.config.MeterKey, err = sdk.OpenMeterKey(cmp.Or(o.meterKey, filepath.Join(o.identity, "meter-key.pem"))); err != nil {
		return fmt.Errorf("--meter-key: %w", err)
	}
	source, err := cli.Source(o.gpu)
	if err != nil {
		return err
	}
	defer source.Close()
	o.config.Source = source
	if o.config.Allocator, err = o.hooks.Allocator(ctx, source); err != nil {
		return err
	}
	node, err := sdk.NewNode(ctx, o.config)
	if err != nil {
		return o.flags.Named(err, cli.Fields{"Database": "db", "HighWater": "high-water", "SuspendTimeout": "suspend-timeout"})
	}
	return serve(ctx, node, o)
}

func parse(args []string) (*options, error) {
	o := &options{}
	c := &o.config
	flags := cli.NewFlags("node", "meters this host's GPUs for gateways that are somewhere else.\n\nThe key that signs its usage records is made at the first start, and stays here. One that is given by $GPUPAY_KEY or\n--keystore signs leases from before alone. ", "info")
	o.flags = flags
	flags.Text(&o.listen, "listen", "GPUPAY_LISTEN", "127.0.0.1:8404", "`address` to serve gateways on")
	flags.Text(&o.identity, "identity", "GPUPAY_NODE_IDENTITY", "node-identity", "`folder` of this node's certificate, that --issue made")
	flags.Text(&o.meterKey, "meter-key", "GPUPAY_METER_KEY", "", "`path` of this node's own key, which signs its usage records and is made where it is missing; meter-key.pem in --identity if empty")
	flags.StringVar(&o.issue, "issue", "", "make certificates for nodes of these `names`, separated by commas, and for their gateways where there is none, and end")
	flags.StringVar(&o.ca, "ca", "gpupay-ca", "with --issue: `folder` of the authority, and of a folder for each certificate; who has its key commands all nodes")
	flags.Text(&o.admin, "admin", "GPUPAY_ADMIN", "127.0.0.1:9404", "`address` of /metrics and /healthz; empty for none. Do not open it to the world")
	flags.Text(&c.Name, "name", "GPUPAY_NODE", "", "what the gateways call this node (--nodes name=URL)")
	flags.Text(&o.gpu, "gpu", "GPUPAY_GPU", "nvml", "where GPUs come from: nvml, sim, sim:N, or auto")
	flags.Text(&c.Database, "db", "GPUPAY_DB", "gpupay-node.db", "`path` of the spool: it holds usage records that no gateway has yet")
	flags.Text(&c.HighWater, "high-water", "GPUPAY_HIGH_WATER", "", "`path` of the file that remembers which records were signed, never restored with the spool; the spool's with .signed if empty")
	payee := flags.Address("payee", "GPUPAY_PAYEE", "whose leases are metered; without it anybody's whom its gateways serve")
	flags.DurationVar(&c.SuspendTimeout, "suspend-timeout", 5*time.Minute, "an unpaid lease ends after it, also where no gateway is heard of")
	o.hooks.Register(flags)
	flags.BoolVar(&o.drain, "drain", false, "when stopped, end all leases; without it leases go on after a restart")
	var err error
	if c.Log, err = flags.Load(args); err != nil {
		return nil, err
	}
	if c.Payee = payee.Address; o.issue != "" || !flags.KeyGiven() {
		return o, nil
	}
	shared, err := flags.Key() // that all nodes signed with before each had its own: leases of then go on
	c.PastKeys = append(c.PastKeys, shared)
	return o, err
}

// issue makes certificates for nodes, and once one for their gateways.
func issue(dir string, names []string) error {
	ca, err := sdk.OpenNodeCA(dir)
	if err != nil {
		return err
	}
	write := func(name string, identity sdk.NodeIdentity, err error) error {
		folder := filepath.Join(dir, name)
		if err == nil {
			err = identity.Write(folder)
		}
		if err == nil {
			fmt.Println("made", folder)
		}
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, "gateway")); errors.Is(err, fs.ErrNotExist) {
		gateway, err := ca.Gateway()
		if err := write("gateway", gateway, err); err != nil {
			return err
		}
	}
	for _, name := range names {
		node, err := ca.Node(name)
		if err := write(filepath.Join("nodes", name), node, err); err != nil {
			return err
		}
	}
	return nil
}

func serve(ctx context.Context, node *sdk.Node, o *options) error {
	listener, err := cli.Listen("listen", o.listen)
	if err != nil {
		return errors.Join(err, node.Close())
	}
	fmt.Printf("node %s meters %d GPU(s) at %s and signs as %s\n", o.config.Name, len(o.config.Allocator.(*sdk.HostAllocator).Devices), listener.Addr(), o.config.MeterKey.Address())
	failed := make(chan error, 2)
	gateways := &http.Server{Handler: node, TLSConfig: node.TLS(), ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10, IdleTimeout: 2 * time.Minute}
	go func() { failed <- gateways.ServeTLS(listener, "", "") }()
	admin, err := cli.Admin(o.admin, node.Metrics(), node.Health(), failed)
	if err == nil {
		select {
		case err = <-failed:
		case <-ctx.Done():
		}
	}
	return errors.Join(err, shutdown(node, o, gateways, admin))
}

// shutdown stops metering first and then the servers: while leases drain,
// gateways still fetch their records.
func shutdown(node *sdk.Node, o *options, servers ...*http.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var err error
	if o.drain {
		o.config.Log.Info("ending all leases")
		err = node.Drain(ctx)
	}
	for _, server := range servers {
		err = errors.Join(err, server.Shutdown(ctx))
	}
	return errors.Join(err, node.Close())
}
