package renter

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// deposits moves money into a rental's channel, within the caps: what is signed for it is on disk before it is handed out, and
// counts until the chain shows that it can move nothing any more.
type deposits struct {
	ledger
	lowBalance bool // the balance did not cover a top-up at the newest look
}

// fund makes the signed open: the hash of our own transaction, once it is
// mined, or an authorization.
func (l *deposits) fund(ctx context.Context) error {
	payload := *l.row.Funding
	if payload.ChannelID == l.id { // made before
		return l.stillGood(ctx)
	}
	salt := l.row.Terms.Salt
	payload.ChannelID, payload.Salt = l.id, &salt
	var err error
	if payload.Type == wire.TypeHash {
		payload.Hash, err = l.fundByTransaction(ctx)
		if errors.Is(err, chain.ErrFunds) && l.row.Sponsored { // a little coin is as good as none: nothing was sent
			payload.Type = wire.TypeAuthorization
		}
	}
	if payload.Type == wire.TypeAuthorization {
		payload.Authorization, payload.Signature, err = l.authorize(ctx, l.row.Deposit, channel.OpenNonce(l.row.Terms.Payer, l.row.Terms))
	}
	if err != nil {
		return err
	}
	l.row.promised(payload.Authorization)
	if payload.Hash != nil {
		l.row.Moved = l.row.Deposit
	}
	l.row.Funding = &payload
	return l.save(ctx)
}

// foreign reports whether the chain has a channel that this database has not
// funded yet: it is a copy from before the deposit, and what was signed since is
// not in it. Such a rental can only be closed or left.
func (l *deposits) foreign(ctx context.Context) (bool, error) {
	sent, err := l.opening(ctx)
	if err != nil || sent {
		return false, err
	}
	seen, err := l.look(ctx, l.r.w.Confirmations)
	if err != nil || !seen.there {
		return false, err
	}
	if _, err := l.payer.Observe(ctx, l.id, seen.ChainView); err != nil {
		return false, err
	}
	l.row.Ended = "the chain has this channel, and this database knows of no deposit: it is from before it, or an endpoint said that it failed"
	l.r.w.Log.Warn("channel is on the chain, and this database knows of no deposit: it is from before it, or an endpoint said that it failed: "+
		"close it, or leave it", "channel", l.id)
	return true, l.enter(ctx, PhaseClosing)
}

// opening reports whether the outbox holds our own open of the channel, mined or
// on its way.
func (l *deposits) opening(ctx context.Context) (bool, error) {
	sent, err := l.r.w.Sender.Find(ctx, l.id)
	return slices.ContainsFunc(sent, func(tx chain.Tx) bool {
		return tx.Call.Kind == chain.Open && (tx.State == chain.Pending || tx.Succeeded)
	}), err
}

// stillGood looks at the chain for what became of an authorization that may
// have been handed out. If it is used, the channel is there; if it ended unused,
// it never will be.
func (l *deposits) stillGood(ctx context.Context) error {
	if l.row.Funding.Type == wire.TypeHash {
		return nil
	}
	seen, err := l.look(ctx, l.r.w.Confirmations)
	if err != nil || seen.there || !seen.ended(l.row.Funding.Authorization) {
		return err
	}
	err = l.neverFunded(ctx)
	return errors.Join(fmt.Errorf("channel %s: %w: its authorization ended unused: rent again", l.id, ErrNeverFunded), err)
}

// neverFunded ends a rental whose channel is not on the chain and cannot come to
// be: what it would have held is free again under the caps.
func (l *deposits) neverFunded(ctx context.Context) error {
	return errors.Join(l.payer.Fund(ctx, l.id, uint256.Int{}), l.finish(ctx, Closing{Note: "it was never funded"}))
}

// fundByTransaction opens the channel by our own transaction and waits for it.
func (l *deposits) fundByTransaction(ctx context.Context) (*common.Hash, error) {
	result, err := l.transfer(ctx, l.row.Deposit, l.escrow.OpenCall(l.row.Terms, l.row.Deposit), 0)
	if err != nil {
		return nil, err
	}
	return &result.Hash, nil
}

// transfer sends a call about this channel that pulls amount from an approval,
// unless the outbox holds the same one after the first `after` of its kind: a
// crash must not send it twice. No other rental of this renter approves or
// spends meanwhile: one approval would overwrite the other.
func (l *deposits) transfer(ctx context.Context, amount uint256.Int, call chain.Call, after int) (*chain.Result, error) {
	select {
	case l.r.spending <- struct{}{}:
		defer func() { <-l.r.spending }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	id, err := l.outgoing(ctx, call.Kind, after)
	if err == nil && id == "" {
		if err = l.r.w.Token.Allow(ctx, l.r.w.Sender, l.terms.Escrow, amount, l.r.w.Confirmations); err == nil {
			err = l.pledge(ctx, func() error {
				id, err = l.r.w.Sender.SubmitAfter(ctx, call)
				return err
			})
		}
	}
	if err != nil {
		return nil, l.unapproved(ctx, amount, err)
	}
	result, err := l.r.w.Sender.Wait(ctx, id, l.r.w.Confirmations)
	return result, l.unapproved(ctx, amount, err)
}

// unapproved says of a deposit that reverted that the approval made for it is gone, where it is: only the payer's key replaces or
// spends it, so that another program has that key.
func (l *deposits) unapproved(ctx context.Context, amount uint256.Int, err error) error {
	var refused *chain.Revert
	var reverted *chain.Reverted
	if !errors.As(err, &refused) && !errors.As(err, &reverted) {
		return err
	}
	left, failed := l.r.w.Token.Allowance(ctx, l.r.w.Sender.Address(), l.terms.Escrow)
	if failed != nil || !left.Lt(&amount) {
		return err
	}
	return fmt.Errorf("%w: of the %s approved for this deposit the escrow may take %s: another program with the key of %s approved or deposited meanwhile; "+
		"one key belongs to one running renter: end the other one, or give it a key of its own", err, l.r.w.Format(amount), l.r.w.Format(left), l.r.w.Sender.Address())
}

// pledge runs sign, which commits money to the channel, unless payments on it were
// ended, by whichever Rental of it: then its error is channel.ErrClosing. Between
// the decision for a deposit and its signature lie answers of endpoints, which may
// take their time; our own top-up would take a close request back.
func (l *deposits) pledge(ctx context.Context, sign func() error) error {
	release, err := l.r.pledges(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := l.pledgeable(ctx); err != nil {
		return err
	}
	return sign()
}

// pledgeable is channel.ErrClosing where payments on the channel were ended, or
// the chain showed a close request.
func (l *deposits) pledgeable(ctx context.Context) error {
	paid, err := l.payer.State(ctx, l.id)
	if err == nil && (paid.Closed || paid.Status == channel.Closing) {
		err = fmt.Errorf("channel %s: %w: nothing more is deposited", l.id, channel.ErrClosing)
	}
	return err
}

// endPayments has nothing more signed for the channel. It comes before a close is
// signed or asked for.
func (l *deposits) endPayments(ctx context.Context) error {
	release, err := l.r.pledges(ctx)
	if err != nil {
		return err
	}
	defer release()
	_, err = l.payer.Close(ctx, l.id)
	return err
}

// pledges waits until no deposit is being signed and no payments are being ended.
func (r *Client) pledges(ctx context.Context) (release func(), err error) {
	select {
	case r.pledging <- struct{}{}:
		return func() { <-r.pledging }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// outgoing finds a call about this channel in the outbox, one that may still
// succeed, after the first `after` of its kind; "" if there is none.
func (l *deposits) outgoing(ctx context.Context, kind chain.Kind, after int) (chain.TxID, error) {
	all, err := l.r.w.Sender.Find(ctx, l.id)
	if err != nil {
		return "", err
	}
	for _, tx := range all {
		if tx.Call.Kind != kind || (tx.State != chain.Pending && !tx.Succeeded) {
			continue
		}
		if after--; after < 0 {
			return tx.ID, nil
		}
	}
	return "", nil
}

// authorize signs an ERC-3009 authorization for the escrow and nobody else. The
// nonce commits to what the money is for; the token takes it once.
func (l *deposits) authorize(ctx context.Context, value uint256.Int, nonce common.Hash) (*wire.Authorization, wire.Bytes, error) {
	separator, err := l.r.w.Token.DomainSeparator(ctx)
	if err != nil {
		return nil, nil, err
	}
	now, err := l.escrow.Now(ctx)
	if err != nil {
		return nil, nil, err
	}
	if err := chain.CheckClock(l.r.w.Now(), now, l.row.Terms.ChainID, l.r.w.ClockOff); err != nil { // an endpoint that lies could make it good for years
		return nil, nil, err
	}
	var signed chain.Authorization
	err = l.pledge(ctx, func() error {
		signed, err = chain.SignAuthorization(ctx, l.r.w.Key, separator, channel.Authorization{
			From: l.row.Terms.Payer, To: l.row.Terms.Escrow, Value: value, Nonce: nonce,
			ValidBefore: uint64(now.Add(wallet.AuthorizationTTL).Unix()),
		})
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	fault.Point(fault.DepositSigned)
	before := wire.NewAmount(*uint256.NewInt(signed.ValidBefore))
	return &wire.Authorization{
		From: wire.Address(signed.From), To: wire.Address(signed.To), Value: wire.NewAmount(value),
		ValidBefore: before, Nonce: nonce,
	}, signed.Signature, nil
}
