package paystream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	"github.com/gpupay/gpupay/sdk/wire"
)

// topUpPause lies between two tries to top up: the deposit lasts for a while
// yet, and a provider that refuses would be asked at every record.
const topUpPause = 10 * time.Second

// TopUp adds to the deposit. The intent is on disk before anything is signed,
// and what was signed is sent again unchanged after a crash: the money moves
// once.
func (l *Lease) TopUp(ctx context.Context) error {
	if l.aside {
		return nil // it is under way
	}
	if l.Row.TopUp == nil {
		if _, err := l.Room(ctx, l.Step()); err != nil {
			return err
		}
	}
	if time.Since(l.Topped) < topUpPause {
		return nil
	}
	began, followed := l.awake.Now(), l.followed
	defer func() { // our own doing took the time, not the provider's silence
		l.Topped = time.Now()
		l.listened = l.listened.Add(l.awake.Since(began) - (l.followed - followed))
	}()
	if l.Row.TopUp != nil {
		return l.FinishTopUp(ctx)
	}
	if err := l.Wallet.Vet(ctx, l.Row.Terms.Payee, peer.SiteOf(l.Row.URL)); err != nil {
		l.LowBalance = true // what is in the channel is used up, and closes it
		return fmt.Errorf("channel %s: no top-up is made: %w", l.ID, err)
	}
	step, err := l.NextStep(ctx)
	if err != nil || step.IsZero() {
		return err
	}
	deposit := l.Committed()
	deposit.Add(&deposit, &step)
	if err := l.Payer.Fund(ctx, l.ID, deposit); err != nil {
		return err
	}
	kind := l.Row.TopUpType()
	if kind == wire.TypeAuthorization {
		if err := l.SkipUsed(ctx, step); err != nil {
			return err
		}
	}
	amount, salt := wire.NewAmount(step), l.TopUpSalt()
	l.Row.Before = l.Row.Deposit
	l.Row.TopUp = &wire.Payload{
		Action: wire.ActionTopUp, Type: kind, ChannelID: l.ID, AdditionalDeposit: &amount, Salt: &salt,
	}
	if err := l.Save(ctx); err != nil {
		return err
	}
	fault.Point(fault.TopUpStored)
	return l.FinishTopUp(ctx)
}

// FinishTopUp goes on with a top-up wherever it stands. That the deposit grew
// says nothing about ours: anybody may add a base unit. The outbox knows our own
// transaction, and the token an authorization.
func (l *Lease) FinishTopUp(ctx context.Context) error {
	if l.Row.TopUp == nil {
		return nil
	}
	failed, stopped := l.SignTopUp(ctx)
	if stopped != nil {
		return stopped
	}
	if errors.Is(failed, channel.ErrClosing) {
		return l.DropTopUp(ctx)
	}
	if failed != nil {
		return rental.Transient(failed)
	}
	fault.Point(fault.TopUpSigned)
	if failed, stopped = l.handIn(ctx); stopped != nil {
		return stopped
	}
	seen, err := l.Look(ctx, l.Wallet.Confirmations)
	if err != nil {
		return rental.Transient(err)
	}
	arrived, err := l.Arrived(ctx, seen)
	if err != nil {
		return rental.Transient(err)
	}
	if !arrived {
		return l.Unfunded(ctx, seen, failed)
	}
	if _, err := l.Payer.Observe(ctx, l.ID, seen.ChainView); err != nil {
		return err
	}
	if l.Row.TopUp.Hash != nil {
		l.Row.Moved.Add(&l.Row.Moved, &l.Row.TopUp.AdditionalDeposit.Int)
	}
	l.Row.TopUp = nil
	l.Row.TopUps++
	l.Wallet.Log.Info("topped up", "channel", l.ID, "deposit", seen.Deposit.Dec())
	return l.Save(ctx)
}

// handIn gives the provider a top-up, which takes as long as its transaction. It has a challenge of its own: the
// rental's changes meanwhile. That the provider may have it is on disk before.
func (l *Lease) handIn(ctx context.Context) (failed, stopped error) {
	p, gpus, payload := l.Peer, l.Row.GPUs, *l.Row.TopUp
	ctx, cancel := context.WithTimeout(ctx, peer.ChainTimeout)
	defer cancel()
	var c wire.Challenge
	failed, stopped = l.beside(ctx, func(ctx context.Context) (err error) {
		c, _, err = p.Challenge(ctx, gpus)
		return err
	})
	if failed != nil || stopped != nil {
		return failed, stopped
	}
	if l.Row.Give(payload.Authorization) {
		if err := l.Save(ctx); err != nil {
			return err, nil
		}
	}
	credential := wire.Credential{Challenge: c, Source: wire.Source(l.Terms.ChainID, l.Terms.Payer), Payload: payload}
	return l.beside(ctx, func(ctx context.Context) error {
		if payload.Authorization != nil { // signed before, and not to be handed out after a leave
			if err := l.Pledgeable(ctx); err != nil {
				return err
			}
		}
		resp, err := p.Send(ctx, http.MethodPost, gpus, credential, nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, err = p.Body(resp)
		return err
	})
}

// SignTopUp makes what moves the money, once: our own transaction, or an
// authorization.
func (l *Lease) SignTopUp(ctx context.Context) (failed, stopped error) {
	payload := *l.Row.TopUp
	if payload.Hash != nil || payload.Authorization != nil {
		return nil, nil
	}
	step := payload.AdditionalDeposit.Int
	if payload.Type == wire.TypeHash {
		call, after := l.Escrow.TopUpCall(l.Terms, step), int(l.Row.TopUps)
		var result *chain.Result
		failed, stopped = l.beside(ctx, func(ctx context.Context) (err error) {
			result, err = l.Transfer(ctx, step, call, after)
			return err
		})
		if stopped == nil && errors.Is(failed, chain.ErrFunds) {
			failed = l.Sponsor(ctx, &payload, failed)
		}
		if stopped == nil {
			least := l.Row.Before
			payload.Hash, failed = l.HashOf(ctx, chain.TopUp, after, *least.Add(&least, &step), result, failed)
		}
		if failed != nil || stopped != nil {
			return failed, stopped
		}
	}
	if payload.Type == wire.TypeAuthorization {
		nonce := channel.TopUpNonce(l.ID, step, l.Row.Terms.Payer, *payload.Salt)
		if payload.Authorization, payload.Signature, failed = l.Authorize(ctx, step, nonce); failed != nil {
			return failed, nil
		}
		l.Row.Promised(payload.Authorization)
	}
	l.Row.TopUp = &payload
	return l.Save(ctx), nil
}
