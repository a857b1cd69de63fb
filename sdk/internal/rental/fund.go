package rental

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
	"github.com/gpupay/gpupay/sdk/internal/outcome"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Deposits moves money into a rental's channel, within the caps: what is signed for it is on disk before it is handed out, and
// counts until the chain shows that it can move nothing any more.
type Deposits struct {
	Ledger
	LowBalance bool // the balance did not cover a top-up at the newest look
}

// Fund makes the signed open: the hash of our own transaction, once it is
// mined, or an authorization.
func (l *Deposits) Fund(ctx context.Context) error {
	payload := *l.Row.Funding
	if payload.ChannelID == l.ID { // made before
		return l.stillGood(ctx)
	}
	salt, deposit := l.Row.Terms.Salt, l.Row.Deposit
	payload.ChannelID, payload.Salt = l.ID, &salt
	var err error
	if payload.Type == wire.TypeHash {
		var mined *chain.Result
		mined, err = l.Transfer(ctx, deposit, l.Escrow.OpenCall(l.Row.Terms, deposit), 0)
		payload.Hash, err = l.HashOf(ctx, chain.Open, 0, deposit, mined, err)
		if errors.Is(err, chain.ErrFunds) && l.Row.Sponsored { // a little coin is as good as none: nothing was sent
			payload.Type = wire.TypeAuthorization
		}
	}
	if payload.Type == wire.TypeAuthorization {
		payload.Authorization, payload.Signature, err = l.Authorize(ctx, l.Row.Deposit, channel.OpenNonce(l.Row.Terms.Payer, l.Row.Terms))
	}
	if err != nil {
		return err
	}
	l.Row.Promised(payload.Authorization)
	if payload.Hash != nil {
		l.Row.Moved = deposit
	}
	l.Row.Funding = &payload
	return l.Save(ctx)
}

// Foreign reports whether the chain has a channel that this database has not
// funded yet: it is a copy from before the deposit, and what was signed since is
// not in it. Such a rental can only be closed or left.
func (l *Deposits) Foreign(ctx context.Context) (bool, error) {
	sent, err := l.opening(ctx)
	if err != nil || sent {
		return false, err
	}
	seen, err := l.Look(ctx, l.Wallet.Confirmations)
	if err != nil || !seen.There {
		return false, err
	}
	if _, err := l.Payer.Observe(ctx, l.ID, seen.ChainView); err != nil {
		return false, err
	}
	l.Row.Ended = "the chain has this channel, and this database knows of no deposit: it is from before it, or an endpoint said that it failed"
	l.Wallet.Log.Warn("channel is on the chain, and this database knows of no deposit: it is from before it, or an endpoint said that it failed: "+
		"close it, or leave it", "channel", l.ID)
	return true, l.Enter(ctx, PhaseClosing)
}

// opening reports whether the outbox holds our own open of the channel, mined or
// on its way.
func (l *Deposits) opening(ctx context.Context) (bool, error) {
	sent, err := l.Wallet.Sender.Find(ctx, l.ID)
	return slices.ContainsFunc(sent, func(tx chain.Tx) bool {
		return tx.Call.Kind == chain.Open && (tx.State == chain.Pending || tx.Succeeded)
	}), err
}

// stillGood looks at the chain for what became of an authorization that may
// have been handed out. If it is used, the channel is there; if it ended unused,
// it never will be.
func (l *Deposits) stillGood(ctx context.Context) error {
	if l.Row.Funding.Type == wire.TypeHash {
		return nil
	}
	seen, err := l.Look(ctx, l.Wallet.Confirmations)
	if err != nil || seen.There || !seen.ended(l.Row.Funding.Authorization) {
		return err
	}
	err = l.neverFunded(ctx)
	return errors.Join(fmt.Errorf("channel %s: %w: its authorization ended unused: rent again", l.ID, ErrNeverFunded), err)
}

// neverFunded ends a rental whose channel is not on the chain and cannot come to
// be: what it would have held is free again under the caps.
func (l *Deposits) neverFunded(ctx context.Context) error {
	return errors.Join(l.Payer.Fund(ctx, l.ID, uint256.Int{}), l.finish(ctx, Closing{Note: "it was never funded"}))
}

// Transfer sends a call about this channel that pulls amount from an approval,
// unless the outbox holds the same one after the first `after` of its kind: a
// crash must not send it twice. No other rental of this renter approves or
// spends meanwhile: one approval would overwrite the other. Once the nonce is
// used the approval is spent, and the receipt is waited for beside the others;
// where it does not come, the error is outcome.ErrUnseen, the outbox knows the
// transaction at the next try, and HashOf asks the contract.
func (l *Deposits) Transfer(ctx context.Context, amount uint256.Int, call chain.Call, after int) (*chain.Result, error) {
	id, err := l.Outgoing(ctx, call.Kind, after)
	if err == nil && (id == "" || !outcome.Used(ctx, l.Wallet.Sender, id, l.Wallet.Confirmations)) {
		return l.spend(ctx, amount, call, after)
	}
	if err != nil {
		return nil, err
	}
	result, err := outcome.Wait(ctx, l.Wallet.Sender, id, l.Wallet.Confirmations, nil)
	return result, l.Unapproved(ctx, amount, err)
}

// HashOf is the hash by which the provider is told what Transfer came to. Where no receipt is shown, and the channel has what it has
// with the deposit at least, that is the newest version's: any may be the one that was mined, and the provider goes by the
// contract as well.
func (l *Deposits) HashOf(ctx context.Context, kind chain.Kind, after int, least uint256.Int, mined *chain.Result, cause error) (*common.Hash, error) {
	if mined != nil && cause == nil {
		return &mined.Hash, nil
	}
	if !errors.Is(cause, outcome.ErrUnseen) {
		return nil, cause
	}
	seen, err := l.Look(ctx, l.Wallet.Confirmations)
	if err != nil || !seen.There || seen.Deposit.Lt(&least) {
		return nil, errors.Join(cause, err)
	}
	id, err := l.Outgoing(ctx, kind, after)
	if err != nil || id == "" { // its receipt came after all, and says that it reverted
		return nil, errors.Join(cause, err)
	}
	hash, err := outcome.Newest(ctx, l.Wallet.Sender, id)
	return &hash, err
}

// spend is Transfer while no other rental approves or spends.
func (l *Deposits) spend(ctx context.Context, amount uint256.Int, call chain.Call, after int) (*chain.Result, error) {
	release, err := l.account.spending.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	id, err := l.Outgoing(ctx, call.Kind, after)
	if err == nil && id == "" {
		if err = outcome.Allow(ctx, l.Wallet.Token, l.Wallet.Sender, l.Terms.Escrow, amount, l.Wallet.Confirmations); err == nil {
			err = l.pledge(ctx, func() error {
				id, err = l.Wallet.Sender.SubmitAfter(ctx, call)
				return err
			})
		}
	}
	if err != nil {
		return nil, l.Unapproved(ctx, amount, err)
	}
	result, err := outcome.Wait(ctx, l.Wallet.Sender, id, l.Wallet.Confirmations, nil)
	return result, l.Unapproved(ctx, amount, err)
}

// Unapproved says of a deposit that reverted that the approval made for it is gone, where it is: only the payer's key replaces or
// spends it, so that another program has that key.
func (l *Deposits) Unapproved(ctx context.Context, amount uint256.Int, err error) error {
	var refused *chain.Revert
	var reverted *chain.Reverted
	if !errors.As(err, &refused) && !errors.As(err, &reverted) {
		return err
	}
	left, failed := l.Wallet.Token.Allowance(ctx, l.Wallet.Sender.Address(), l.Terms.Escrow)
	if failed != nil || !left.Lt(&amount) {
		return err
	}
	return fmt.Errorf("%w: of the %s approved for this deposit the escrow may take %s: another program with the key of %s approved or deposited meanwhile; "+
		"one key belongs to one running renter: end the other one, or give it a key of its own", err, l.Wallet.Format(amount), l.Wallet.Format(left), l.Wallet.Sender.Address())
}

// pledge runs sign, which commits money to the channel, unless payments on it were
// ended, by whichever Rental of it: then its error is channel.ErrClosing. Between
// the decision for a deposit and its signature lie answers of endpoints, which may
// take their time; our own top-up would take a close request back.
func (l *Deposits) pledge(ctx context.Context, sign func() error) error {
	release, err := l.account.pledging.acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := l.Pledgeable(ctx); err != nil {
		return err
	}
	return sign()
}

// Pledgeable is channel.ErrClosing where payments on the channel were ended, or
// the chain showed a close request.
func (l *Deposits) Pledgeable(ctx context.Context) error {
	paid, err := l.Payer.State(ctx, l.ID)
	if err == nil && (paid.Closed || paid.Status == channel.Closing) {
		err = fmt.Errorf("channel %s: %w: nothing more is deposited", l.ID, channel.ErrClosing)
	}
	return err
}

// EndPayments has nothing more signed for the channel. It comes before a close is
// signed or asked for.
func (l *Deposits) EndPayments(ctx context.Context) error {
	release, err := l.account.pledging.acquire(ctx)
	if err != nil {
		return err
	}
	defer release()
	_, err = l.Payer.Close(ctx, l.ID)
	return err
}

// Outgoing finds a call about this channel in the outbox, one that may still
// succeed, after the first `after` of its kind; "" if there is none.
func (l *Deposits) Outgoing(ctx context.Context, kind chain.Kind, after int) (chain.TxID, error) {
	all, err := l.Wallet.Sender.Find(ctx, l.ID)
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

// Authorize signs an ERC-3009 authorization for the escrow and nobody else. The
// nonce commits to what the money is for; the token takes it once.
func (l *Deposits) Authorize(ctx context.Context, value uint256.Int, nonce common.Hash) (*wire.Authorization, wire.Bytes, error) {
	separator, err := l.Wallet.Token.DomainSeparator(ctx)
	if err != nil {
		return nil, nil, err
	}
	now, err := l.Escrow.Now(ctx)
	if err != nil {
		return nil, nil, err
	}
	if err := chain.CheckClock(l.Wallet.Now(), now, l.Row.Terms.ChainID, l.Wallet.ClockOff); err != nil { // an endpoint that lies could make it good for years
		return nil, nil, err
	}
	var signed chain.Authorization
	err = l.pledge(ctx, func() error {
		signed, err = chain.SignAuthorization(ctx, l.Wallet.Key, separator, channel.Authorization{
			From: l.Row.Terms.Payer, To: l.Row.Terms.Escrow, Value: value, Nonce: nonce,
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
