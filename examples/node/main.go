// Command node meters this host's GPUs for gateways that are somewhere else: run
// the provider program there with --nodes. Run it with --help for its flags.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/sdk"
)

func main() { cli.Main(run) }

type options struct {
	listen, admin, gpu string
	cert, key          string // of TLS
	drain              bool
	hooks              cli.Hooks
	config             sdk.NodeConfig
}

func run(ctx context.Context) error {
	o, err := parse(os.Args[1:])
	if err != nil {
		return err
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
		return err
	}
	return serve(ctx, node, o)
}

func parse(args []string) (*options, error) {
	o := &options{}
	c := &o.config
	flags := cli.NewFlags("node", "meters this host's GPUs for gateways that are somewhere else.\n\nIts key signs usage records and nothing else. $"+cli.NodeSecret+" holds the secret that it shares with its gateways. ", "info")
	flags.Text(&o.listen, "listen", "GPUPAY_LISTEN", "127.0.0.1:8404", "`address` to serve gateways on: of a private network, or with TLS")
	flags.Text(&o.cert, "tls-cert", "GPUPAY_TLS_CERT", "", "`path` of a certificate, to serve gateways over TLS")
	flags.Text(&o.key, "tls-key", "GPUPAY_TLS_KEY", "", "`path` of its key")
	flags.Text(&o.admin, "admin", "GPUPAY_ADMIN", "127.0.0.1:9404", "`address` of /metrics and /healthz; empty for none. Do not open it to the world")
	flags.Text(&c.Name, "name", "GPUPAY_NODE", "", "what the gateways call this node (--nodes name=URL)")
	flags.Text(&o.gpu, "gpu", "GPUPAY_GPU", "nvml", "where GPUs come from: nvml, sim, sim:N, or auto")
	flags.Text(&c.Database, "db", "GPUPAY_DB", "gpupay-node.db", "`path` of the spool: it holds usage records that no gateway has yet")
	flags.Text(&c.HighWater, "high-water", "GPUPAY_HIGH_WATER", "", "`path` of the file that remembers which records were signed, never restored with the spool; the spool's with .signed if empty")
	payee := flags.Address("payee", "GPUPAY_PAYEE", "whose leases are metered; without it anybody's who holds the secret")
	flags.DurationVar(&c.SuspendTimeout, "suspend-timeout", 5*time.Minute, "an unpaid lease ends after it, also where no gateway is heard of")
	o.hooks.Register(flags)
	flags.BoolVar(&o.drain, "drain", false, "when stopped, end all leases; without it leases go on after a restart")
	var err error
	if c.Log, err = flags.Load(args); err != nil {
		return nil, err
	}
	if (o.cert == "") != (o.key == "") {
		return nil, errors.New("--tls-cert and --tls-key go together")
	}
	c.Payee, c.Secret = payee.Address, os.Getenv(cli.NodeSecret)
	c.MeterKey, err = flags.Key()
	return o, err
}

func serve(ctx context.Context, node *sdk.Node, o *options) error {
	listener, err := net.Listen("tcp", o.listen)
	if err != nil {
		return errors.Join(fmt.Errorf("--listen: %w", err), node.Close())
	}
	fmt.Printf("node %s meters %d GPU(s) at %s and signs as %s\n", o.config.Name, len(o.config.Allocator.(*sdk.HostAllocator).Devices), listener.Addr(), o.config.MeterKey.Address())
	failed := make(chan error, 2)
	gateways := &http.Server{Handler: node, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10, IdleTimeout: 2 * time.Minute}
	go func() {
		if o.cert != "" {
			failed <- gateways.ServeTLS(listener, o.cert, o.key)
			return
		}
		failed <- gateways.Serve(listener)
	}()
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
