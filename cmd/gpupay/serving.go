package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk/service"
)

// serve says what is rented out, and answers until ctx ends.
func (s *serve) serve(ctx context.Context, provider opened) error {
	public, admin, err := cli.Listeners(s.listen, s.admin)
	if err != nil {
		return err
	}
	tls, done, err := s.domain.TLS(ctx, public, s.config.Log)
	defer done()
	if err != nil {
		return err
	}
	offer := provider.Offer()
	for _, o := range provider.Offers() {
		gpus, price := 0, s.config.PricePerGPUHour
		for _, kind := range o.Devices {
			gpus += kind.Count
		}
		of := ""
		for _, class := range s.config.Classes {
			if class.ID == o.ClassID() {
				of, price = " of class "+class.ID, class.PricePerGPUHour
			}
		}
		fmt.Printf("renting out %d GPU(s)%s for %s tokens per GPU-hour at %s  (escrow %s, payee %s)\n", gpus, of, price, s.domain.URL(public.Addr()), o.Escrow, o.Payee)
	}
	fmt.Printf("chain %d by %s, token %s, confirmations %d; credit %s of GPU time, settled within %s; database %s\n", offer.ChainID, redact.List(s.config.RPC),
		offer.Token, s.config.Chain.Confirmations, time.Duration(offer.Credit)*time.Second, s.config.Settlement.Age(), redact.Database(s.config.Database))
	s.upstream.say(ctx, os.Stdout, provider.ask)
	if offer.Simulated {
		fmt.Println("THE GPUS ARE SIMULATED: nobody should pay real money for them")
	}
	cli.SayAdmin(admin)
	return service.Serve(ctx, service.Service{
		Handler: provider.handler, TLS: tls, Metrics: provider.Metrics(), Health: provider.Health(), Run: provider.run,
		Stop: func(ctx context.Context) error { return s.stop(ctx, provider) },
	}, public, admin)
}

// stop stops metering, so that streams carry their last record. A provider that drains still answers those who pay it and close.
func (s *serve) stop(ctx context.Context, provider opened) error {
	if s.drain {
		s.config.Log.Info("ending all leases and settling")
		return provider.Drain(ctx)
	}
	if s.embedded() {
		fmt.Println("stopping: the chain within this program is gone, and its databases with it")
		return provider.close()
	}
	fmt.Println("stopping: leases and vouchers are kept, and go on when it is started again with this --db (--drain ends and settles them instead)")
	return provider.close()
}
