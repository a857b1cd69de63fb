// Package quickstart runs the whole of gpupay in one process and needs nothing
// beforehand: it starts a chain, deploys the escrow and a test token, starts a
// provider (with this host's NVIDIA GPUs, or simulated ones), and rents from it
// over HTTP. Renters pay by the minute, one stops paying and is suspended, pays
// again and goes on; vouchers are settled in one batch; channels are closed and
// refunded. At the end it prints a ledger and exits non-zero if a line of it
// does not add up to the base unit.
//
// Nothing here is simplified but the clock: a "minute" is three seconds.
package quickstart

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/settle"
	"github.com/gpupay/gpupay/sdk/wallet"
)

const (
	minute  = 3 * time.Second // what stands for a minute
	credit  = 2 * minute      // what the provider serves ahead of vouchers
	price   = "36.00"         // a GPU-hour: dear, so that seconds show in the ledger
	purse   = 5_000_000       // base units that each renter has: 5 tokens
	deposit = "1.00"
)

// Run tells the story, with GPUs as cli.Source finds them. The programs' own logs go to log, or nowhere if it is nil.
func Run(ctx context.Context, gpu string, log *slog.Logger) error {
	dir, err := os.MkdirTemp("", "gpupay-quickstart-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s := &story{dir: dir, gpu: gpu, log: log, begun: time.Now()}
	if log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	defer s.stop()
	for _, step := range []func(context.Context) error{
		s.startChain, s.startProvider, s.startRenters, s.payByTheMinute, s.stopPaying, s.settle, s.close,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return s.ledger(ctx)
}

// story is everything that runs, and what has happened.
type story struct {
	dir   string
	gpu   string
	log   *slog.Logger
	begun time.Time
	stops []func()

	chain    *devchain.Chain
	provider *provider.Server
	payee    *channel.Key
	url      string
	gpus     int
	settled  []settle.Settlement
	renters  []*party
}

// party is one renter.
type party struct {
	name    string
	key     *channel.Key
	renter  *renter.Client
	rental  *renter.Rental
	pause   context.CancelFunc // stops paying
	paying  chan error
	closing renter.Closing
}

func (s *story) say(format string, args ...any) {
	fmt.Printf("%5.1fs  %s\n", time.Since(s.begun).Seconds(), fmt.Sprintf(format, args...))
}

func (s *story) stop() {
	for i := len(s.stops) - 1; i >= 0; i-- {
		s.stops[i]()
	}
}

func (s *story) startChain(ctx context.Context) (err error) {
	if s.chain, err = devchain.Start(ctx, devchain.Options{}); err != nil {
		return err
	}
	s.stops = append(s.stops, func() { s.chain.Close() })
	s.say("clock        a \"minute\" is %s here; nothing else is shortened", minute)
	s.say("chain        embedded, id %d, a block a second; escrow %s, test token %s", devchain.ChainID, s.chain.Escrow, s.chain.Token)
	return nil
}

func (s *story) startProvider(ctx context.Context) error {
	source, err := cli.Source(s.gpu)
	if err != nil {
		return err
	}
	s.payee = channel.NewKey(s.chain.Keys[0])
	s.provider, err = provider.New(ctx, provider.Config{
		RPC: s.chain.URL, Escrow: s.chain.Escrow, Token: s.chain.Token, Key: s.payee,
		Database: filepath.Join(s.dir, "provider.db"), PricePerGPUHour: price, Source: source,
		Terms: provider.Terms{Credit: credit}, Metering: provider.Metering{Tick: 100 * time.Millisecond, RecordEvery: time.Second}, Deposits: provider.Deposits{Min: "0.10"},
		Chain: provider.Chain{Poll: 200 * time.Millisecond}, Settlement: settle.Policy{Interval: time.Hour},
		OnSettled: func(one settle.Settlement) { s.settled = append(s.settled, one) }, Log: s.log,
	})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: s.provider, ReadHeaderTimeout: 10 * time.Second}
	go server.Serve(listener)
	ran := make(chan error, 1)
	go func() { ran <- s.provider.Run(context.WithoutCancel(ctx)) }()
	s.stops = append(s.stops, func() {
		s.provider.Close()
		<-ran
		server.Close()
		source.Close()
	})
	s.url = "http://" + listener.Addr().String()
	return s.introduce()
}

func (s *story) introduce() error {
	offer := s.provider.Offer()
	for _, d := range offer.Devices {
		s.gpus += d.Count
		s.say("provider     %s, %d x %s, %s tokens per GPU-hour, serves %s of GPU time on credit", s.url, d.Count, d.Model, price, credit)
	}
	if offer.Simulated {
		s.say("             THE GPUS ARE SIMULATED; every record says so. With an NVIDIA GPU: --gpu nvml")
	}
	return nil
}

func (s *story) startRenters(ctx context.Context) error {
	for _, name := range []string{"ada", "bob"}[:min(2, s.gpus)] {
		p, err := s.startRenter(ctx, name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		s.renters = append(s.renters, p)
	}
	return nil
}

// startRenter makes a renter that has test tokens and no native coin at all.
func (s *story) startRenter(ctx context.Context, name string) (*party, error) {
	private, err := crypto.GenerateKey()
	if err != nil {
		return nil, err
	}
	p := &party{name: name, key: channel.NewKey(private)}
	if err := s.chain.Fund(ctx, p.key.Address(), new(big.Int), *uint256.NewInt(purse)); err != nil {
		return nil, err
	}
	p.renter, err = renter.New(ctx, renter.Config{
		Key: p.key, RPC: s.chain.URL, Token: s.chain.Token, Database: filepath.Join(s.dir, name+".db"), Log: s.log, Chain: wallet.Chain{Poll: 200 * time.Millisecond},
		Caps: wallet.Caps{PricePerGPUHour: "40.00", PerLease: "2.00", PerDay: "3.00", PerPayee: "5.00"},
	})
	if err != nil {
		return nil, err
	}
	s.stops = append(s.stops, func() { p.renter.Close() })
	if p.rental, err = p.renter.Rent(ctx, s.url, renter.Options{Deposit: deposit, PayEvery: minute}); err != nil {
		return nil, err
	}
	s.say("%-12s opened channel %s with %s tokens and no gas: it signed, the provider sent; it may use %s", name, short(p.rental.ID().Hex()), deposit, p.rental.Access())
	p.pay(ctx)
	s.stops = append(s.stops, func() { _ = p.stopPaying() })
	return p, nil
}

func short(id string) string { return id[:10] + ".." }

// pay lets the renter check records and pay until stopPaying.
func (p *party) pay(ctx context.Context) {
	ctx, p.pause = context.WithCancel(ctx)
	p.paying = make(chan error, 1)
	go func() { p.paying <- p.rental.Run(ctx) }()
}

func (p *party) stopPaying() error {
	p.pause()
	err := <-p.paying
	p.paying <- nil
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (s *story) payByTheMinute(ctx context.Context) error {
	for n := 1; n <= 3; n++ {
		if err := sleep(ctx, minute); err != nil {
			return err
		}
		for _, p := range s.renters {
			v := p.rental.Snapshot()
			s.say("%-12s minute %d: %.1f GPU-seconds in %d checked records, owes %s, has vouchered %s",
				p.name, n, time.Duration(v.Nanos).Seconds(), v.Sequence, inTokens(v.Owed), inTokens(v.Paid))
		}
	}
	return nil
}

// stopPaying shows what happens when a renter goes away: service goes on until
// the credit is used, and no further.
func (s *story) stopPaying(ctx context.Context) error {
	p := s.renters[0]
	if err := p.stopPaying(); err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	s.say("%-12s stops paying", p.name)
	if err := s.waitService(ctx, p, "suspended"); err != nil {
		return err
	}
	s.say("provider     suspended %s's lease: its credit of %s is used up, and nothing is billed meanwhile", p.name, credit)
	if err := sleep(ctx, minute); err != nil {
		return err
	}
	p.pay(ctx)
	s.say("%-12s pays again", p.name)
	if err := s.waitService(ctx, p, "active"); err != nil {
		return err
	}
	s.say("provider     resumed %s's lease", p.name)
	return sleep(ctx, minute)
}

func (s *story) waitService(ctx context.Context, p *party, want string) error {
	for {
		if s.provider.Service(p.rental.ID()) == want {
			return nil
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return fmt.Errorf("waiting for %s's lease to be %s: %w", p.name, want, err)
		}
	}
}

func (s *story) settle(ctx context.Context) error {
	if err := s.provider.Settle(ctx); err != nil {
		return err
	}
	for _, one := range s.settled {
		s.say("provider     settled %d channel(s) in one transaction: %s tokens, for %s of gas", len(one.Channels), inTokens(one.Paid), coin(one.Gas))
	}
	return nil
}

func (s *story) close(ctx context.Context) error {
	for _, p := range s.renters {
		var err error
		if p.closing, err = p.rental.Close(ctx); err != nil {
			return fmt.Errorf("closing %s's channel: %w", p.name, err)
		}
		s.say("%-12s closed: %s settled, %s refunded", p.name, inTokens(p.closing.Settled), inTokens(p.closing.Refunded))
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
