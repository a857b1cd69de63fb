package renter

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/units"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// topUpPause lies between two tries to top up: the deposit lasts for a while
// yet, and a provider that refuses would be asked at every record.
const topUpPause = 10 * time.Second

// mayTopUp reports whether a top-up is on its way, or the renter allowed one, a
// cap leaves room for it and, as of the newest look, the balance covers it.
func (l *deposits) mayTopUp() bool {
	step := l.step()
	return l.row.TopUp != nil || !step.IsZero() && !l.lowBalance
}

// committed is what counts against the caps: what is in the channel, whatever an
// endpoint says of it at least what we moved into it, and all that signed
// authorizations may still move into it, whoever has them and whether or not they
// were ever sent.
func (l *deposits) committed() uint256.Int {
	sum, moved := l.row.outstanding(), l.row.moved()
	there := u256.Max(l.row.Deposit, moved)
	return *sum.Add(&sum, &there)
}

// step is the next top-up: what was asked for, within the cap per lease.
func (l *deposits) step() uint256.Int {
	if l.row.Options.TopUp == "" {
		return uint256.Int{}
	}
	step, err := units.Parse(l.row.Options.TopUp, l.r.w.Token.Decimals)
	committed := l.committed()
	if err != nil || !committed.Lt(&l.r.w.Caps.PerChannel) {
		return uint256.Int{}
	}
	var room uint256.Int
	room.Sub(&l.r.w.Caps.PerChannel, &committed)
	step = u256.Min(step, room)
	if least := l.leastTopUp(); step.Lt(&least) {
		return uint256.Int{} // it would be refused, again and again
	}
	return step
}

// leastTopUp is the least that the provider sends for us. What we send ourselves
// has no bound.
func (l *deposits) leastTopUp() uint256.Int {
	return leastTopUp(l.offer.Offer, l.row.topUpType())
}

func leastTopUp(o wire.Offer, kind string) uint256.Int {
	if o.MinTopUp == nil || kind != wire.TypeAuthorization {
		return uint256.Int{}
	}
	return o.MinTopUp.Int
}

// topUpType is how the next top-up gets onto the chain: as the open did, until our coin did not pay for one. From then on the
// provider sends them: our own are told apart by how many top-ups were before them, all of which the outbox has then.
func (row *rentalRow) topUpType() string {
	switch {
	case row.Coinless:
		return wire.TypeAuthorization
	case row.Funding == nil:
		return ""
	}
	return row.Funding.Type
}

// whyNoTopUp says that the last top-up would be one that the provider refuses; ""
// where it is not that.
func (l *deposits) whyNoTopUp() string {
	least := l.leastTopUp()
	room := u256.SaturatingSub(l.r.w.Caps.PerChannel, l.committed())
	if l.row.Options.TopUp == "" || !room.Lt(&least) {
		return ""
	}
	return fmt.Sprintf(" (Caps.PerLease leaves room for less than the %s that this provider sends at least)", l.r.w.Format(least))
}

// room is how much of a top-up all caps leave room for.
func (l *deposits) room(ctx context.Context, step uint256.Int) (uint256.Int, error) {
	most, cap, err := l.payer.Room(ctx, l.row.Terms)
	if err != nil {
		return step, err
	}
	committed := l.committed()
	if !most.Gt(&committed) {
		l.lowBalance = true
		return step, fmt.Errorf("%w: %s leaves no room for a top-up: raise the cap, or get back what lies in other channels", ErrBudget, wallet.CapField(cap))
	}
	most.Sub(&most, &committed)
	step = u256.Min(step, most)
	if least := l.leastTopUp(); step.Lt(&least) {
		l.lowBalance = true
		return step, fmt.Errorf("%w: %s leaves room for a top-up of %s, this provider sends none under %s: raise the cap, or get back what lies in other channels",
			ErrBudget, wallet.CapField(cap), l.r.w.Format(step), l.r.w.Format(least))
	}
	return step, nil
}

// topUp adds to the deposit. The intent is on disk before anything is signed,
// and what was signed is sent again unchanged after a crash: the money moves
// once.
func (l *payments) topUp(ctx context.Context) error {
	if l.aside {
		return nil // it is under way
	}
	if l.row.TopUp == nil {
		if _, err := l.room(ctx, l.step()); err != nil {
			return err
		}
	}
	if time.Since(l.topped) < topUpPause {
		return nil
	}
	began, followed := l.awake.Now(), l.followed
	defer func() { // our own doing took the time, not the provider's silence
		l.topped = time.Now()
		l.listened = l.listened.Add(l.awake.Since(began) - (l.followed - followed))
	}()
	if l.row.TopUp != nil {
		return l.finishTopUp(ctx)
	}
	if err := l.r.w.Vet(ctx, l.row.Terms.Payee, peer.SiteOf(l.row.URL)); err != nil {
		l.lowBalance = true // what is in the channel is used up, and closes it
		return fmt.Errorf("channel %s: no top-up is made: %w", l.id, err)
	}
	step, err := l.nextStep(ctx)
	if err != nil || step.IsZero() {
		return err
	}
	deposit := l.committed()
	deposit.Add(&deposit, &step)
	if err := l.payer.Fund(ctx, l.id, deposit); err != nil {
		return err
	}
	kind := l.row.topUpType()
	if kind == wire.TypeAuthorization {
		if err := l.skipUsed(ctx, step); err != nil {
			return err
		}
	}
	amount, salt := wire.NewAmount(step), l.topUpSalt()
	l.row.Before = l.row.Deposit
	l.row.TopUp = &wire.Payload{
		Action: wire.ActionTopUp, Type: kind, ChannelID: l.id, AdditionalDeposit: &amount, Salt: &salt,
	}
	if err := l.save(ctx); err != nil {
		return err
	}
	fault.Point(fault.TopUpStored)
	return l.finishTopUp(ctx)
}

// nextStep is step after a look at the chain, if the balance covers it and no
// transaction of ours is on its way that moves money into the channel.
func (l *deposits) nextStep(ctx context.Context) (uint256.Int, error) {
	if _, err := l.look(ctx, l.r.w.Confirmations); err != nil {
		return uint256.Int{}, err
	}
	sent, err := l.r.w.Sender.Find(ctx, l.id)
	if err != nil {
		return uint256.Int{}, err
	}
	for _, tx := range sent {
		if tx.State == chain.Pending && (tx.Call.Kind == chain.Open || tx.Call.Kind == chain.TopUp) {
			return uint256.Int{}, fmt.Errorf("channel %s: a deposit of ours is on its way in transaction %s: %w", l.id, tx.ID, wallet.ErrNotYet)
		}
	}
	step, err := l.room(ctx, l.step())
	if err != nil {
		return step, err
	}
	balance, err := l.r.w.Token.Balance(ctx, l.row.Terms.Payer)
	if err != nil {
		return uint256.Int{}, err
	}
	if l.lowBalance = balance.Lt(&step); l.lowBalance {
		return uint256.Int{}, fmt.Errorf("%w: %s has %s, the top-up is %s", wallet.ErrBalance, l.row.Terms.Payer, l.r.w.Format(balance), l.r.w.Format(step))
	}
	return step, nil
}

// topUpSalt numbers top-ups, so that two equal ones are two.
func (l *deposits) topUpSalt() (salt common.Hash) {
	binary.BigEndian.PutUint64(salt[24:], l.row.TopUps+1)
	return salt
}

// maxUsed is how many top-ups that were made already are looked for at a time.
const maxUsed = 64

// skipUsed counts the top-ups that a database from before them does not know: their authorizations are used, and would move
// nothing again. It tries so many at a time: an endpoint that says it of each holds up no payment.
func (l *deposits) skipUsed(ctx context.Context, step uint256.Int) error {
	for tried := 0; ; tried++ {
		if tried == maxUsed {
			return transient{fmt.Errorf("channel %s: the RPC endpoint says that %d authorizations of a top-up were used already, up to number %d: where you did not make so many, it lies: take another",
				l.id, tried, l.row.TopUps)}
		}
		used, err := l.r.w.Token.AuthorizationUsed(ctx, l.terms.Payer, channel.TopUpNonce(l.id, step, l.terms.Payer, l.topUpSalt()))
		if err != nil || !used {
			return err
		}
		l.row.TopUps++
	}
}

// finishTopUp goes on with a top-up wherever it stands. That the deposit grew
// says nothing about ours: anybody may add a base unit. The outbox knows our own
// transaction, and the token an authorization.
func (l *payments) finishTopUp(ctx context.Context) error {
	if l.row.TopUp == nil {
		return nil
	}
	failed, stopped := l.signTopUp(ctx)
	if stopped != nil {
		return stopped
	}
	if errors.Is(failed, channel.ErrClosing) {
		return l.dropTopUp(ctx)
	}
	if failed != nil {
		return transient{failed}
	}
	fault.Point(fault.TopUpSigned)
	if failed, stopped = l.handIn(ctx); stopped != nil {
		return stopped
	}
	seen, err := l.look(ctx, l.r.w.Confirmations)
	if err != nil {
		return transient{err}
	}
	arrived, err := l.arrived(ctx, seen)
	if err != nil {
		return transient{err}
	}
	if !arrived {
		return l.unfunded(ctx, seen, failed)
	}
	if _, err := l.payer.Observe(ctx, l.id, seen.ChainView); err != nil {
		return err
	}
	if l.row.TopUp.Hash != nil {
		l.row.Moved.Add(&l.row.Moved, &l.row.TopUp.AdditionalDeposit.Int)
	}
	l.row.TopUp = nil
	l.row.TopUps++
	l.r.w.Log.Info("topped up", "channel", l.id, "deposit", seen.Deposit.Dec())
	return l.save(ctx)
}

// handIn gives the provider a top-up, which takes as long as its transaction. It has a challenge of its own: the
// rental's changes meanwhile. That the provider may have it is on disk before.
func (l *payments) handIn(ctx context.Context) (failed, stopped error) {
	p, gpus, payload := l.peer, l.row.GPUs, *l.row.TopUp
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
	if l.row.give(payload.Authorization) {
		if err := l.save(ctx); err != nil {
			return err, nil
		}
	}
	credential := wire.Credential{Challenge: c, Source: wire.Source(l.terms.ChainID, l.terms.Payer), Payload: payload}
	return l.beside(ctx, func(ctx context.Context) error {
		if payload.Authorization != nil { // signed before, and not to be handed out after a leave
			if err := l.pledgeable(ctx); err != nil {
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

// arrived reports whether the chain had the top-up when it was seen. A receipt,
// which may be one endpoint's word, does not do without the deposit.
func (l *deposits) arrived(ctx context.Context, seen sight) (bool, error) {
	var least uint256.Int
	if least.Add(&l.row.Before, &l.row.TopUp.AdditionalDeposit.Int); seen.Deposit.Lt(&least) {
		return false, nil
	}
	if a := l.row.TopUp.Authorization; a != nil {
		return seen.used[a.Nonce], nil
	}
	sent, err := l.r.w.Sender.Find(ctx, l.id)
	if err != nil {
		return false, err
	}
	for _, tx := range sent {
		if tx.Hash == *l.row.TopUp.Hash && tx.State != chain.Pending { // the node that was asked may be behind it
			return tx.Succeeded && seen.block.Uint64() >= tx.Block, nil
		}
	}
	return false, nil
}

// signTopUp makes what moves the money, once: our own transaction, or an
// authorization.
func (l *payments) signTopUp(ctx context.Context) (failed, stopped error) {
	payload := *l.row.TopUp
	if payload.Hash != nil || payload.Authorization != nil {
		return nil, nil
	}
	step := payload.AdditionalDeposit.Int
	if payload.Type == wire.TypeHash {
		call, after := l.escrow.TopUpCall(l.terms, step), int(l.row.TopUps)
		var result *chain.Result
		failed, stopped = l.beside(ctx, func(ctx context.Context) (err error) {
			result, err = l.transfer(ctx, step, call, after)
			return err
		})
		if stopped == nil && errors.Is(failed, chain.ErrFunds) {
			failed = l.sponsor(ctx, &payload, failed)
		}
		if failed != nil || stopped != nil {
			return failed, stopped
		}
		if result != nil {
			payload.Hash = &result.Hash
		}
	}
	if payload.Type == wire.TypeAuthorization {
		nonce := channel.TopUpNonce(l.id, step, l.row.Terms.Payer, *payload.Salt)
		if payload.Authorization, payload.Signature, failed = l.authorize(ctx, step, nonce); failed != nil {
			return failed, nil
		}
		l.row.promised(payload.Authorization)
	}
	l.row.TopUp = &payload
	return l.save(ctx), nil
}

// sponsor has the provider send a top-up that our coin does not pay for, and those after it: a little coin is as good as none,
// and nothing was sent. That it does is on disk before anything is signed for it, and no transaction of ours is made beside it.
func (l *deposits) sponsor(ctx context.Context, topUp *wire.Payload, cause error) error {
	if !l.row.Sponsored {
		return fmt.Errorf("channel %s: %w: this provider sends no deposits for others, send %s some: %w", l.id, wallet.ErrNoGas, l.r.Address(), cause)
	}
	step, known := topUp.AdditionalDeposit.Int, l.row.TopUps
	if least := leastTopUp(l.offer.Offer, wire.TypeAuthorization); step.Lt(&least) {
		return fmt.Errorf("channel %s: %w: send %s some: the top-up is %s, and this provider sends none under %s: %w",
			l.id, wallet.ErrNoGas, l.r.Address(), l.r.w.Format(step), l.r.w.Format(least), cause)
	}
	if err := l.skipUsed(ctx, step); err != nil {
		l.row.TopUps = known // our own are counted from here, if the coin comes
		return err
	}
	salt := l.topUpSalt()
	topUp.Type, topUp.Salt = wire.TypeAuthorization, &salt
	kept := *topUp
	l.row.TopUp, l.row.Coinless = &kept, true
	l.r.w.Log.Info("the coin does not pay for a top-up: the provider sends it, and those after it", "channel", l.id)
	return l.save(ctx)
}

// dropTopUp forgets a top-up of a channel that we closed before it was signed. It
// was neither handed out nor sent, and its number is free for another.
func (l *deposits) dropTopUp(ctx context.Context) error {
	l.row.TopUp = nil
	if err := l.payer.Fund(ctx, l.id, l.committed()); err != nil {
		return err
	}
	l.r.w.Log.Info("top-up is not made: the channel was closed meanwhile", "channel", l.id)
	return l.save(ctx)
}

// unfunded is a top-up that is not on the chain. An authorization that ended
// unused never will be, and the next one is another.
func (l *deposits) unfunded(ctx context.Context, seen sight, cause error) error {
	failed := transient{fmt.Errorf("channel %s: the top-up has not arrived: %w", l.id, errors.Join(cause, wallet.ErrNotYet))}
	if l.row.TopUp.Authorization == nil || !seen.ended(l.row.TopUp.Authorization) {
		return errors.Join(failed, l.save(ctx))
	}
	l.row.TopUp = nil
	l.row.TopUps++
	if err := l.payer.Fund(ctx, l.id, l.committed()); err != nil && !errors.Is(err, channel.ErrClosing) {
		return err
	}
	return errors.Join(failed, l.save(ctx))
}
