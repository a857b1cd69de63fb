package x402client

import (
	"context"
	"errors"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/exactjson"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/internal/ticks"
	"github.com/gpupay/gpupay/sdk/wire"
)

// check holds a tick to the receipt, the offer, our clock and the record before.
func (t *Rental) check(ctx context.Context, b *payment, document []byte) (Tick, *metering.SignedRecord, error) {
	said, rec := tickIn(document)
	if rec == nil {
		return Tick{}, nil, ticks.Violationf("%w: a tick was charged and its record is not there", peer.ErrProtocol)
	}
	if rec.LeaseID != said.LeaseID || said.ChannelID != b.id || !b.booked {
		return Tick{}, nil, ticks.Violationf("%w: the answer, its record and its receipt are about different things", peer.ErrProtocol)
	}
	c := b.ticks()
	if !c.Knows(said) {
		if err := t.adoptOffer(ctx, b, said.OfferHash); err != nil {
			return Tick{}, nil, err
		}
	}
	lease, err := c.Check(said, ticks.Ask{Offer: t.offer, Price: t.price, GPUs: t.gpus})
	if err != nil {
		return Tick{}, nil, err
	}
	var owed uint256.Int
	if base := b.account.Tick.Base; rec.Owed.Gt(&base) {
		owed.Sub(&rec.Owed, &base)
	}
	if b.charge.Gt(&owed) || said.Charged.Int != b.charge { // what is over its ceiling is charged with the next
		return Tick{}, nil, ticks.Violationf("%w: charged %s, its record adds %s", ErrOvercharged, b.charge.Dec(), owed.Dec())
	}
	if err := c.Accept(lease, *rec); err != nil {
		return Tick{}, nil, err
	}
	return Tick{
		Channel: b.id, Lease: said.LeaseID, Devices: lease.Devices, Access: peer.PlainJSON(said.Access), State: peer.Printable(said.State),
		Charged: b.charge, Record: *rec,
	}, rec, nil
}

// ticks is the channel as what checks its ticks sees it.
func (b *payment) ticks() *ticks.Channel {
	w := b.x.w
	return &ticks.Channel{
		Book: &b.account.Book, ID: b.id, Terms: b.terms, Prior: b.prior, ForTick: b.tick != "", Resent: b.resent,
		Clock: w.Clock, Tolerance: w.Tolerance, Billed: &w.Billed, Log: w.Log,
	}
}

// tickIn is what a tick's answer says; without a usage record, rec is nil.
func tickIn(document []byte) (said wire.Tick, rec *metering.SignedRecord) {
	if len(document) > peer.MaxAnswer || exactjson.Unmarshal(document, &said) != nil {
		return said, nil
	}
	return said, said.Record
}

// adoptOffer goes by the offer that a lease has begun under: the provider's current one, or one of another gateway of it, which
// signed its own a moment, or some difference of clocks, before.
func (t *Rental) adoptOffer(ctx context.Context, b *payment, hash common.Hash) error {
	if hash == t.offer.Hash {
		return nil
	}
	err := t.agree(ctx)
	if err != nil {
		return err
	}
	offer := t.offer
	if hash != offer.Hash {
		offer, err = t.peer.PastOffer(ctx, hash)
	}
	switch {
	case errors.Is(err, peer.ErrUnreachable):
		return err
	case err != nil:
		return ticks.Violationf("%w: the lease is under offer %s, the provider's is %s, and it shows no other: %w", peer.ErrOffer, hash, t.offer.Hash, err)
	case common.Address(offer.Payee) != b.terms.Payee: // its meter's signature would accuse another
		return ticks.Violationf("%w: the lease is under offer %s of payee %s, and pays %s", peer.ErrOffer, hash, offer.Payee, b.terms.Payee)
	}
	return t.agreeOn(ctx, offer)
}
