package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/ethereum/go-ethereum/common"
	urfave "github.com/urfave/cli/v3"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/sdk/provider"
)

// pastKey is the variable that holds the payee's key from before, as long as it has
// channels that are not closed.
const pastKey = "GPUPAY_PAST_KEY"

// serve is a provider: it rents out GPUs and settles what it is owed.
type serve struct {
	flags              *cli.Flags
	listen, admin, gpu string
	nodes, identity    string
	drain, free, x402  bool
	window             time.Duration
	forgive            common.Address
	hooks              cli.Hooks
	domain             *cli.Domain
	upstream           upstream
	config             provider.Config
}

func (s *serve) command() *urfave.Command {
	return s.flags.Command("rent out GPUs and be paid for metered time", "The GPUs are this host's, or those of --nodes. Renters come to --listen: put TLS in front of it, or give --domain.",
		func(ctx context.Context, _ []string) error {
			if err := s.read(); err != nil {
				return err
			}
			return s.run(ctx)
		})
}

// read puts what was given into the configuration, and reads the keys.
func (s *serve) read() (err error) {
	c := &s.config
	if c.Log, err = s.flags.Logger(); err != nil {
		return err
	}
	if c.Classes, c.PricePerGPUHour, err = classesOf(c.PricePerGPUHour); err != nil {
		return err
	}
	for _, class := range c.Classes {
		if err := checkPrice(class.PricePerGPUHour, s.free); err != nil {
			return err
		}
	}
	if err := checkPrice(c.PricePerGPUHour, s.free); len(c.Classes) == 0 && err != nil {
		return err
	}
	s.domain.Addresses(&s.listen, &c.HTTP.PublicURL, listenOn)
	if s.x402 {
		c.X402 = &provider.X402{Window: s.window}
	}
	if c.Nodes.Links, c.Nodes.Identity, err = cli.Links(s.nodes, s.identity); err != nil {
		return err
	}
	if s.embedded() && !s.flags.KeyGiven() {
		return nil
	}
	if c.Key, err = s.flags.LoadKey(); err != nil || os.Getenv(pastKey) == "" {
		return err
	}
	past, err := channel.KeyFromEnv(pastKey)
	c.PastKeys = append(c.PastKeys, past)
	return err
}

func (s *serve) run(ctx context.Context) error {
	if s.embedded() {
		done, err := s.embed(ctx)
		if err != nil {
			return err
		}
		defer done()
	}
	if len(s.config.Nodes.Links) == 0 {
		source, err := cli.SourceOrAway(s.gpu)
		if err != nil {
			return err
		}
		defer source.Close()
		if s.config.Allocator, err = s.hooks.Allocator(ctx, source); err != nil {
			return err
		}
		s.config.Source = source
	}
	provider, err := s.upstream.open(ctx, s.config)
	if err != nil {
		return s.flags.Named(err, serveFields)
	}
	if s.forgive != (common.Address{}) {
		sum, err := provider.Forgive(ctx, s.forgive)
		if err != nil {
			return errors.Join(fmt.Errorf("--forgive: %w", err), provider.close())
		}
		fmt.Printf("forgiven to %s: %s base units that it owed on closed channels\n", s.forgive, sum.Dec())
	}
	return errors.Join(s.serve(ctx, provider), provider.close())
}
