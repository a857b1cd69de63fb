package sdk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/sdk/units"
	"github.com/gpupay/gpupay/sdk/wire"
)

// topUpPause lies between two tries to top up: the deposit lasts for a while
// yet, and a provider that refuses would be asked at every record.
const topUpPause = 10 * time.Second

// mayTopUp reports whether the renter allowed a top-up and a cap leaves room
// for one.
func (l *Rental) mayTopUp() bool {
	step := l.step()
	return !step.IsZero()
}

// step is the next top-up: what was asked for, within the cap.
func (l *Rental) step() uint256.Int {
	if l.row.Options.TopUp == "" || l.poor {
		return uint256.Int{}
	}
	step, err := units.Parse(l.row.Options.TopUp, l.r.token.Decimals)
	if err != nil || !l.row.Deposit.Lt(&l.r.caps.PerChannel) {
		return uint256.Int{}
	}
	var room uint256.Int
	room.Sub(&l.r.caps.PerChannel, &l.row.Deposit)
	return lesser(step, room)
}

// room is how much of a top-up the caps leave room for.
func (l *Rental) room(ctx context.Context, step uint256.Int) (uint256.Int, error) {
	most, cap, err := l.payer.Room(ctx, l.row.Terms)
	if err != nil {
		return step, err
	}
	if !most.Gt(&l.row.Deposit) {
		l.poor = true
		return step, fmt.Errorf("%w: %s leaves no room for a top-up: raise the cap, or get back what lies in other channels", ErrBudget, capField(cap))
	}
	most.Sub(&most, &l.row.Deposit)
	return lesser(step, most), nil
}

// topUp adds to the deposit. The intent is on disk before anything is signed,
// and what was signed is sent again unchanged after a crash: the money moves
// once.
func (l *Rental) topUp(ctx context.Context) error {
	var step uint256.Int
	if l.row.TopUp == nil {
		var err error
		if step, err = l.room(ctx, l.step()); err != nil {
			return err
		}
	}
	if time.Since(l.topped) < topUpPause {
		return nil
	}
	began := time.Now()
	defer func() { // our own doing took the time, not the provider's silence
		l.topped = time.Now()
		l.heard = l.heard.Add(l.topped.Sub(began))
	}()
	if l.row.TopUp != nil {
		return l.finishTopUp(ctx)
	}
	balance, err := l.r.token.Balance(ctx, l.row.Terms.Payer)
	if err != nil {
		return err
	}
	if balance.Lt(&step) {
		l.poor = true
		return fmt.Errorf("%w: %s has %s, the top-up is %s", ErrBalance, l.row.Terms.Payer, l.r.units(balance), l.r.units(step))
	}
	var deposit uint256.Int
	deposit.Add(&l.row.Deposit, &step)
	if err := l.payer.Fund(ctx, l.id, deposit); err != nil {
		return err
	}
	amount, salt := wire.NewAmount(step), l.topUpSalt()
	l.row.TopUp = &wire.Payload{
		Action: wire.ActionTopUp, Type: l.row.Funding.Type, ChannelID: l.id, AdditionalDeposit: &amount, Salt: &salt,
	}
	if err := l.save(ctx); err != nil {
		return err
	}
	fault.Point(fault.TopUpStored)
	return l.finishTopUp(ctx)
}

// topUpSalt numbers top-ups, so that two equal ones are two.
func (l *Rental) topUpSalt() (salt common.Hash) {
	binary.BigEndian.PutUint64(salt[24:], l.row.TopUps+1)
	return salt
}

// finishTopUp goes on with a top-up wherever it stands.
func (l *Rental) finishTopUp(ctx context.Context) error {
	if l.row.TopUp == nil {
		return nil
	}
	if err := l.signTopUp(ctx); err != nil {
		return transient{err}
	}
	fault.Point(fault.TopUpSigned)
	_, _, sendErr := l.post(ctx, *l.row.TopUp, "", chainTimeout)
	view, err := l.escrow.View(ctx, l.id, nil)
	if err != nil {
		return transient{err}
	}
	if !view.Deposit.Gt(&l.row.Deposit) {
		return l.unfunded(ctx, sendErr)
	}
	if _, err := l.payer.Observe(ctx, l.id, view); err != nil {
		return err
	}
	l.row.Deposit, l.row.TopUp = view.Deposit, nil
	l.row.TopUps++
	l.r.config.Log.Info("topped up", "channel", l.id, "deposit", view.Deposit.Dec())
	return l.save(ctx)
}

// signTopUp makes what moves the money, once: our own transaction, or an
// authorization.
func (l *Rental) signTopUp(ctx context.Context) error {
	payload := *l.row.TopUp
	if payload.Hash != nil || payload.Authorization != nil {
		return nil
	}
	step := payload.AdditionalDeposit.Int
	if payload.Type == wire.TypeHash {
		if err := l.allow(ctx, step); err != nil {
			return err
		}
		result, err := l.once(ctx, l.escrow.TopUpCall(l.row.Terms, step), int(l.row.TopUps))
		if err != nil {
			return err
		}
		payload.Hash = &result.Hash
	} else {
		var err error
		nonce := channel.TopUpNonce(l.id, step, l.row.Terms.Payer, *payload.Salt)
		if payload.Authorization, payload.Signature, err = l.authorize(ctx, step, nonce); err != nil {
			return err
		}
	}
	l.row.TopUp = &payload
	return l.save(ctx)
}

// unfunded is a top-up that is not on the chain. An authorization that expired
// never will be, and the next one is another.
func (l *Rental) unfunded(ctx context.Context, cause error) error {
	failed := transient{fmt.Errorf("channel %s: the top-up has not arrived: %w", l.id, errors.Join(cause, errNotYet))}
	if l.row.TopUp.Authorization == nil {
		return failed
	}
	now, err := l.escrow.Now(ctx)
	if err != nil || uint64(now.Unix()) < l.row.TopUp.Authorization.ValidBefore.Uint64() {
		return failed
	}
	l.row.TopUp = nil
	l.row.TopUps++
	if err := l.payer.Fund(ctx, l.id, l.row.Deposit); err != nil {
		return err
	}
	return errors.Join(failed, l.save(ctx))
}

var errNotYet = errors.New("the chain does not show it")
