package gateways

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/cluster"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/run"
	"github.com/gpupay/gpupay/sdk/settle"
)

// CloseGrace is how long a renter has, after its lease, to pay what is left and close: a settlement before that would be paid for twice.
const CloseGrace = time.Minute

// settleRequest is the claim by which a gateway asks the leader to settle.
const settleRequest = "settle"

// Settlement is done by the gateway that leads: it watches, sends and settles for all of a database, and the others ask it.
type Settlement struct {
	Heads cluster.Heads // hold this gateway's endpoint against the others'

	lead    string
	service func(db *store.DB, txs *chain.Store) *settle.Service
	atWork  func(*settle.Service)

	db    *store.DB
	locks leasestore.Locks
	payee *channel.Payee
	owner func() string // of the lead: this gateway
	ttl   time.Duration
	pause time.Duration // between two looks whether the leader has done what was asked for
	log   *slog.Logger
}

func newSettlement(g *Gateway) *Settlement {
	return &Settlement{
		lead: g.Lead, service: g.Service, atWork: g.AtWork,
		db: g.DB, locks: g.leases.Store.Locks, payee: g.Payee, owner: g.Identity, ttl: g.Takeover, pause: g.Poll() / 4, log: g.Log,
		Heads: cluster.Heads{Members: g.members, Name: g.Identity, Within: g.Takeover, Endpoint: g.Endpoint, Standstill: cluster.Standstill{After: settle.Blindness}},
	}
}

// Run leads the gateways where it can, until the context ends.
func (s *Settlement) Run(ctx context.Context) error {
	leader := &cluster.Leader{DB: s.db, Owner: s.owner(), TTL: s.ttl, Log: s.log, Check: s.Heads.See, Work: s.work, Name: s.lead}
	return leader.Run(ctx)
}

// work does a leader's work through a database that lets it write only while it leads.
func (s *Settlement) work(ctx context.Context, db *store.DB) error {
	txs, err := chain.OpenStore(ctx, db)
	if err != nil {
		return err
	}
	c := s.service(db, txs)
	c.Blind = settle.Blindness
	s.atWork(c)
	defer s.atWork(nil)
	parts := []func(context.Context) error{c.Run}
	for _, do := range []func(context.Context, *settle.Service, leasestore.Store) error{s.SettleEnded, s.answer} {
		parts = append(parts, func(ctx context.Context) error {
			for chain.Pause(ctx, 2*time.Second) == nil {
				if err := do(ctx, c, leasestore.New(db)); err != nil && ctx.Err() == nil {
					s.log.Warn("what other gateways want settled", "error", err)
				}
			}
			return ctx.Err()
		})
	}
	return run.Together(ctx, parts...)
}

// SettleEnded has settled what ended at any gateway. A channel on which another lease runs waits for that one's end, or for the policy:
// it would be settled as often as a voucher comes.
func (s *Settlement) SettleEnded(ctx context.Context, c *settle.Service, leases leasestore.Store) error {
	now := time.Now()
	ids, err := leases.Leases.IdleSince(ctx, now.Add(-CloseGrace-time.Hour).Unix(), now.Add(-CloseGrace).Unix())
	if err != nil {
		return err
	}
	ended := make(map[common.Hash]bool, len(ids))
	for _, id := range ids {
		ended[id] = true
	}
	unsettled, err := s.db.Payee().Unsettled(ctx)
	for _, state := range unsettled {
		if ended[state.ID] && !state.Terms.Scheme.Lasting() {
			c.Urgent(state.Terms)
		}
	}
	return err
}

// answer has settled what one of the gateways asks for, and waits for it.
func (s *Settlement) answer(ctx context.Context, c *settle.Service, leases leasestore.Store) error {
	asked, err := leases.Locks.Taken(ctx, settleRequest)
	if err != nil || !asked {
		return err
	}
	c.Reload()
	err = c.Settle(ctx)
	if ctx.Err() != nil {
		return err // the next leader does it
	}
	return errors.Join(err, leases.Locks.Drop(ctx, settleRequest, settleRequest)) // also after a failure: it would cost gas again and again
}

// Settle asks the leader, whoever it is, and waits. The error names what it could not settle.
func (s *Settlement) Settle(ctx context.Context) error {
	before, err := s.db.Payee().Unsettled(ctx)
	if err != nil {
		return err
	}
	for range 2 { // the first may have been under way for somebody who asked earlier
		if err = s.request(ctx); err != nil {
			return err
		}
		if err = s.unsettled(ctx, before); err == nil {
			return nil
		}
	}
	return err
}

// request has the leader settle once.
func (s *Settlement) request(ctx context.Context) error {
	if _, err := s.locks.Try(ctx, settleRequest, settleRequest, 24*time.Hour); err != nil {
		return err
	}
	for {
		asked, err := s.locks.Taken(ctx, settleRequest)
		if err != nil || !asked {
			return err
		}
		if err := chain.Pause(ctx, s.pause); err != nil {
			return fmt.Errorf("settling: no gateway that leads has done it yet: %w", err)
		}
	}
}

// unsettled says which of the channels are still not settled as they were to be.
func (s *Settlement) unsettled(ctx context.Context, before []channel.State) error {
	var failed error
	for _, was := range before {
		now, err := s.payee.State(ctx, was.ID)
		wanted := was.Payable()
		if err == nil && now.Settled.Lt(&wanted) && now.Status != channel.Finalized {
			err = settle.Unsettled(now.ID, errors.New("the log of the gateway that leads says why"))
		}
		failed = errors.Join(failed, err)
	}
	return failed
}
