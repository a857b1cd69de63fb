package sessionscheme

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Closing closes channels: each at what was accepted of it, once, and no voucher is accepted beside a close.
type Closing struct{ core }

// Close settles the newest voucher and refunds the rest. The close is
// on disk before it is broadcast, so that a crash does not forget it.
func (d *Closing) Close(ctx context.Context, s channel.State) (common.Hash, channel.State, error) {
	tx, err := d.once(ctx, s.ID)
	if err != nil {
		return common.Hash{}, s, err
	}
	result, err := d.Sender.Wait(ctx, tx, 1)
	if reverted := new(chain.Reverted); errors.As(err, &reverted) {
		return common.Hash{}, s, d.undo(ctx, s.ID, err)
	}
	if err != nil {
		return common.Hash{}, s, err
	}
	for id := s.ID; ; { // what failed has no state
		s, err = d.record(ctx, id, result.Receipt.BlockNumber.Uint64(), d.observed(id))
		if !errors.Is(err, errBehind) || chain.Pause(ctx, d.Poll) != nil {
			break
		}
	}
	fault.Point(fault.CloseObserved)
	return result.Hash, s, err
}

// once sends a channel's close unless it was sent before. Beside a close that another
// gateway has sent the channel is closing here, too.
func (d *Closing) once(ctx context.Context, id common.Hash) (chain.TxID, error) {
	held, err := d.Outbox.Claim(ctx, closeClaim(id))
	if err != nil {
		return "", err
	}
	defer held.Release(ctx)
	tx, err := d.Sender.Sent(ctx, id, chain.Close, nil)
	switch {
	case err != nil:
		return "", err
	case tx == "":
		return d.Send(ctx, id, held)
	}
	_, err = d.Payee.Close(ctx, id)
	return tx, err
}

// closeClaim names the claim of a channel's close.
func closeClaim(id common.Hash) string { return "close " + id.Hex() }

// Send closes a channel at what was accepted when no gateway accepts any more.
// A lease that began meanwhile ends. Who lost its claim since sends nothing: more may
// be accepted by now, or another close be on its way.
func (d *Closing) Send(ctx context.Context, id common.Hash, held *leasestore.Lock) (chain.TxID, error) {
	s, err := d.Payee.Close(ctx, id)
	if err != nil {
		return "", err
	}
	tx, err := func() (chain.TxID, error) {
		row, ok, err := d.Store.Leases.Newest(ctx, id)
		if err == nil && ok {
			err = d.Leases.EndLease(ctx, id, &row, "closed by the renter")
		}
		if err != nil {
			return "", err
		}
		amount, signature := s.Accepted, s.Signature
		if !amount.Gt(&s.Settled) {
			amount, signature = s.Settled, nil // what is settled needs no signature
		}
		call, err := d.Call(ctx, s.Terms, amount, signature)
		if err != nil {
			return "", err
		}
		call.Guard = held.Guard()
		return d.Sponsor.SubmitReturn(ctx, s, call)
	}()
	if err != nil {
		return "", d.KeepOpen(ctx, id, held, err)
	}
	return tx, nil
}

// undo lets a channel be used again, as KeepOpen does, whose close was mined and reverted.
func (d *Closing) undo(ctx context.Context, id common.Hash, reason error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	held, err := d.Outbox.Claim(ctx, closeClaim(id))
	if err != nil {
		return errors.Join(reason, err)
	}
	defer held.Release(ctx)
	return d.KeepOpen(ctx, id, held, reason)
}

// errCloseSent keeps a channel closing.
var errCloseSent = errors.New("a close of it is on its way")

// KeepOpen lets a channel be used again whose close came to nothing: where the claim of
// its close is still held, and no close of it is on its way. What was accepted beside
// one would never be fetched.
func (d *Closing) KeepOpen(ctx context.Context, id common.Hash, held *leasestore.Lock, reason error) error {
	ctx = context.WithoutCancel(ctx)
	payee := *d.Payee
	payee.Store = d.DB.Guard(leasestore.All(held.Guard(), func(tx *sqlx.Tx) error {
		sent, err := d.Sender.StandsIn(ctx, tx, id, chain.Close)
		if err == nil && sent {
			err = errCloseSent
		}
		return err
	})).Payee()
	if _, err := payee.Keep(ctx, id); !errors.Is(err, errCloseSent) {
		reason = errors.Join(reason, err)
	}
	return reason
}

// CloseDeadline is how long a close that a past key signed can be sent.
const CloseDeadline = 24 * time.Hour

// Call closes a channel as its payee: the key that sends, or one from before
// that signs for it.
func (d *Closing) Call(ctx context.Context, terms channel.Terms, amount uint256.Int, signature []byte) (chain.Call, error) {
	if terms.Payee == d.Key.Address() {
		return d.Escrow.CloseCall(terms, amount, signature), nil
	}
	past := channel.SignerOf(d.PastKeys, terms.Payee)
	if past == nil {
		return chain.Call{}, wire.NotServed.With("channel %s pays %s, whose key this provider does not use any more: what is vouchered is settled, the rest comes back without its help (leave the channel)", terms.ID(), terms.Payee)
	}
	now, err := d.Escrow.Now(ctx)
	if err != nil {
		return chain.Call{}, err
	}
	deadline := uint64(now.Add(CloseDeadline).Unix())
	payee, err := past.Sign(ctx, d.Escrow.Domain().CloseDigest(terms.ID(), amount, deadline))
	if err != nil {
		return chain.Call{}, fmt.Errorf("channel %s: signing its close with the past key %s: %w", terms.ID(), terms.Payee, err)
	}
	return d.Escrow.CloseAuthorizedCall(terms, amount, signature, deadline, payee), nil
}
