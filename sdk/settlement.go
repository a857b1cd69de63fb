package sdk

import (
	"context"
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
	"github.com/gpupay/gpupay/sdk/tower"
)

func (p *Provider) newSender(txs *chain.Store) *chain.Sender {
	return &chain.Sender{Backend: p.escrow.Backend(), Key: p.config.Key, Store: txs, Poll: p.config.Poll, MaxFee: p.config.MaxFee,
		Stuck: p.config.stuck, Resend: p.config.resend, Marks: p.leases.Deps.Marks, Log: p.config.Log}
}

// newSettlement makes the service that settles for this provider, and writes through db only.
func (p *Provider) newSettlement(db *store.DB, txs *chain.Store) *settle.Service {
	sender := p.newSender(txs)
	payee := *p.payee
	payee.Store = db.Payee()
	towers := tower.NewFeed(&payee, p.config.Watchtowers, p.config.WatchtowerEvery, p.config.Log)
	var books []*settle.Book
	for _, contract := range p.contracts() {
		books = append(books, p.newBook(db, txs, sender, contract))
	}
	return settle.NewService(sender, towers, books...)
}

func (p *Provider) newBook(db *store.DB, txs *chain.Store, sender *chain.Sender, contract chain.Contract) *settle.Book {
	payee := &channel.Payee{Store: db.Payee(), Domain: contract.Domain()}
	policy := p.config.Settlement
	policy.LeastRow = p.leastRow(contract)
	settler := &settle.Settler{Payee: payee, Contract: contract, Sender: sender, Policy: policy, OnSettled: p.settled, Log: p.config.Log}
	settler.Expect(channel.Terms{Payee: p.config.Key.Address(), Token: p.config.Token}) // a database from before may know no channel of it
	return &settle.Book{Settler: settler, Watcher: &settle.Watcher{
		Payee: payee, Contract: contract, Confirmations: p.config.Confirmations, Poll: p.config.Poll, Finality: p.config.Finality, Store: txs,
		Served: leasestore.New(db).Leases.Served, OnChange: func(_, now channel.State) { p.directory.Changed(now) }, Log: p.config.Log,
	}}
}

// Settle fetches what has been vouchered now, in as few transactions as can be,
// instead of waiting for the settlement policy.
func (p *Provider) Settle(ctx context.Context) error {
	if p.gateway != nil {
		return p.gateway.Settlement.Settle(ctx)
	}
	return p.settlement.Settle(ctx)
}

// settled tells the operator of a settlement. It is on the chain and in the books
// whatever that does.
func (p *Provider) settled(s settle.Settlement) {
	var err error // logged
	defer contain.Panic(p.config.Log, "ProviderConfig.OnSettled", &err)
	if p.config.OnSettled != nil {
		p.config.OnSettled(s)
	}
}

// leaseEnded makes room for the next lease on the channel and has what is owed
// settled, unless the renter closes first.
func (p *Provider) leaseEnded(l *lease.Lease) {
	p.leases.Drop(l)
	if p.gateway != nil {
		return // the leader finds it in the table
	}
	if !l.Credit.Postpaid() {
		return // its client comes back and goes on; the settlement's policy says when to claim
	}
	p.soon(gateways.CloseGrace, l.Terms) // after a restart the policy's MaxAge settles it
}

// soon has a channel settled after a while, unless the provider stops or the next lease
// runs on it by then: that one pays on, and has it settled when it ends. Nothing of the
// lease is kept for it, and nothing at all afterwards.
func (p *Provider) soon(wait time.Duration, terms channel.Terms) {
	waiting, done := context.WithCancel(p.leases.Lifetime())
	timer := time.AfterFunc(wait, func() {
		done()
		if p.leases.Running(terms.ID()) == nil {
			p.settlement.Urgent(terms)
		}
	})
	context.AfterFunc(waiting, func() { timer.Stop() })
}

// held is what was settled and waits in the contracts, as far as this process settles.
func (p *Provider) held() uint256.Int {
	service := p.atWork.Load()
	if service == nil {
		return uint256.Int{}
	}
	return service.Held()
}

// contracts are those that settlements go to.
func (p *Provider) contracts() []chain.Contract {
	if p.batch == nil {
		return []chain.Contract{p.escrow}
	}
	return []chain.Contract{p.escrow, p.batch}
}
