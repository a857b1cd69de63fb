package provider

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/contain"
	"github.com/gpupay/gpupay/sdk/internal/gateways"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/settle"
	"github.com/gpupay/gpupay/sdk/sweep"
	"github.com/gpupay/gpupay/sdk/tower"
)

// settlement fetches what is vouchered, on every contract: by this process, or by the gateway that leads.
type settlement struct {
	config    Config
	prices    *prices
	payee     *channel.Payee
	directory *gateways.Directory
	contracts []chain.Contract // the escrow first

	service *settle.Service                // nil where the leader's is at work
	atWork  atomic.Pointer[settle.Service] // of this process, be it as the leader; nil where another process's is
}

// Settle fetches what has been vouchered now, in as few transactions as can be,
// instead of waiting for the settlement policy.
func (p *Server) Settle(ctx context.Context) error { return p.settlement.now(ctx) }

func (s *settlement) newSender(txs *chain.Store) *chain.Sender {
	return &chain.Sender{Backend: s.contracts[0].Backend(), Key: s.config.Key, Store: txs, Poll: s.config.Chain.Poll, MaxFee: s.config.Chain.MaxFee,
		Stuck: s.config.Chain.stuck, Resend: s.config.Chain.resend, Marks: s.directory.Deps.Marks, Log: s.config.Log}
}

// newService makes the service that settles for this provider, and writes through db only.
func (s *settlement) newService(db *store.DB, txs *chain.Store) *settle.Service {
	sender := s.newSender(txs)
	payee := *s.payee
	payee.Store = db.Payee()
	towers := tower.NewFeed(&payee, s.config.Watchtowers.URLs, s.config.Watchtowers.Every, s.config.Log)
	var books []*settle.Book
	for _, contract := range s.contracts {
		books = append(books, s.newBook(db, txs, sender, contract))
	}
	service := settle.NewService(sender, towers, books...)
	if sweeper := s.config.Payout.Sweeper(sender, sweep.Terms{Token: s.config.Token, Reserve: s.prices.reserve, Least: s.prices.minTransfer,
		Settlements: s.config.Limits.ReservedSettlements, Contracts: s.contracts}); sweeper != nil {
		service.Beside = sweeper.Run
	}
	return service
}

func (s *settlement) newBook(db *store.DB, txs *chain.Store, sender *chain.Sender, contract chain.Contract) *settle.Book {
	payee := &channel.Payee{Store: db.Payee(), Domain: contract.Domain()}
	policy := s.config.Settlement
	policy.LeastRow = s.prices.leastRow(contract)
	settler := &settle.Settler{Payee: payee, Contract: contract, Sender: sender, Policy: policy, OnSettled: s.settled, Log: s.config.Log}
	settler.Expect(channel.Terms{Payee: s.config.Key.Address(), Token: s.config.Token}) // a database from before may know no channel of it
	return &settle.Book{Settler: settler, Watcher: &settle.Watcher{
		Payee: payee, Contract: contract, Confirmations: s.config.Chain.Confirmations, Poll: s.config.Chain.Poll, Finality: s.config.Chain.Finality, Store: txs,
		Served: leasestore.New(db).Leases.Served, OnChange: func(_, now channel.State) { s.directory.Changed(now) }, Log: s.config.Log,
	}}
}

// here has this process settle, and nobody else.
func (s *settlement) here(db *store.DB, txs *chain.Store) {
	s.service = s.newService(db, txs)
	s.atWork.Store(s.service)
}

// now has settled what is vouchered. The leader is asked, where several gateways share the database.
func (s *settlement) now(ctx context.Context) error {
	if g := s.directory.Gateway; g != nil {
		return g.Settlement.Settle(ctx)
	}
	return s.service.Settle(ctx)
}

// run settles by the policy until the context ends, while this gateway leads.
func (s *settlement) run(ctx context.Context) error {
	if g := s.directory.Gateway; g != nil {
		return g.Settlement.Run(ctx)
	}
	return s.service.Run(ctx)
}

// settled tells the operator of a settlement. It is on the chain and in the books
// whatever that does.
func (s *settlement) settled(done settle.Settlement) {
	var err error // logged
	defer contain.Panic(s.config.Log, "Config.OnSettled", &err)
	if s.config.OnSettled != nil {
		s.config.OnSettled(done)
	}
}

// leaseEnded makes room for the next lease on the channel and has what is owed
// settled, unless the renter closes first.
func (s *settlement) leaseEnded(l *lease.Lease) {
	s.directory.Drop(l)
	if s.directory.Gateway != nil {
		return // the leader finds it in the table
	}
	if l.Terms.Scheme.Lasting() {
		return // its client comes back and goes on; the settlement's policy says when to claim
	}
	s.soon(gateways.CloseGrace, l.Terms) // after a restart the policy's MaxAge settles it
}

// soon has a channel settled after a while, unless the provider stops or the next lease
// runs on it by then: that one pays on, and has it settled when it ends. Nothing of the
// lease is kept for it, and nothing at all afterwards.
func (s *settlement) soon(wait time.Duration, terms channel.Terms) {
	waiting, done := context.WithCancel(s.directory.Lifetime())
	timer := time.AfterFunc(wait, func() {
		done()
		if s.directory.Running(terms.ID()) == nil {
			s.service.Urgent(terms)
		}
	})
	context.AfterFunc(waiting, func() { timer.Stop() })
}

// held is what was settled and waits in the contracts, as far as this process settles.
func (s *settlement) held() uint256.Int {
	service := s.atWork.Load()
	if service == nil {
		return uint256.Int{}
	}
	return service.Held()
}

// unwatched are channels with something to settle whose contract is not watched, as it is not on this chain or is not the
// configured one: their payers can take it back unseen.
func (s *settlement) unwatched(ctx context.Context) ([]channel.State, error) {
	states, err := s.payee.Store.Unsettled(ctx)
	return slices.DeleteFunc(states, func(of channel.State) bool {
		return slices.ContainsFunc(s.contracts, func(c chain.Contract) bool { return c.Domain().Holds(of.Terms) == nil })
	}), err
}

// warnUnwatched says so at the start.
func (s *settlement) warnUnwatched(ctx context.Context) error {
	states, err := s.unwatched(ctx)
	for _, of := range states {
		left := of.Unsettled()
		s.config.Log.Error("a channel's contract is not watched, and what is owed on it is not settled: it is not on this chain, or not the configured one",
			"channel", of.ID, "scheme", of.Terms.Scheme, "contract", of.Terms.Escrow, "chain", of.Terms.ChainID, "unsettled", left.Dec())
	}
	return err
}

// chainSeen is when every contract was last looked at to the chain's newest block;
// false before the first look, and where another gateway does that.
func (s *settlement) chainSeen() (time.Time, bool) {
	if s.service == nil {
		return time.Time{}, false
	}
	seen := s.service.Looked()
	return seen, !seen.IsZero()
}
