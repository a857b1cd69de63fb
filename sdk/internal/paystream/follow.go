package paystream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/exactjson"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/boundlog"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// maxSilence is how long a stream may carry nothing at all, keep-alives
// included, before it is taken for dead and attached to again. A provider sends
// a comment each 15 s.
const maxSilence = 45 * time.Second

// hear notes that a record came, or that one is waited for from now on.
func (l *checks) hear() { l.Heard, l.listened = time.Now(), l.awake.Now() }

// PayLoop attaches and follows, again and again, until there is a reason to
// stop.
func (l *Lease) PayLoop(ctx context.Context) error {
	go l.awake.Run(ctx)
	l.hear() // the provider's silence counts from here, not ours
	pace := chain.Backoff{Least: 200 * time.Millisecond, Most: 15 * time.Second}
	for {
		began := time.Now()
		err := l.session(ctx)
		if time.Since(began) > 15*time.Second {
			pace.Reset() // it was there for a while: this is another outage
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case l.Row.Ended != "":
			return errors.Join(l.PayExact(ctx), l.Save(ctx))
		case !rental.IsTransient(err):
			return err
		}
		if gone, finalErr := l.Gone(ctx, err); gone {
			return finalErr
		}
		if l.awake.Since(l.listened) > l.Wallet.Patience {
			return l.Silent(ctx, err)
		}
		wait := pace.Next()
		boundlog.Warn(l.Wallet.Log, "lease's stream broke: attaching again", l.ID, err, "retry", wait)
		if err := chain.Pause(ctx, wait); err != nil {
			return err
		}
	}
}

// Gone looks at the chain when the provider says that the channel is closed.
func (l *leaseStream) Gone(ctx context.Context, cause error) (bool, error) {
	if !errors.Is(cause, &wire.ChannelFinalized) && !errors.Is(cause, &wire.ChannelNotFound) {
		return false, nil
	}
	view, err := l.Escrow.View(ctx, l.ID, nil)
	if err != nil || (!view.Finalized && view.CloseRequestedAt == 0) {
		return false, nil
	}
	l.Row.Ended = "the channel is closed on the chain"
	return true, errors.Join(l.StopClock(ctx), l.Save(ctx))
}

// Silent gives up on a provider that says nothing. Nothing is owed for the
// time, so it is no dispute; that it happened is kept.
func (l *leaseStream) Silent(ctx context.Context, cause error) error {
	err := fmt.Errorf("channel %s: %w: no usage record for %s", l.ID, peer.ErrSilent, l.Wallet.Patience)
	// Without the cause, which the provider words: silences are one piece of evidence, however many there are.
	kept := l.Wallet.Keep(ctx, wallet.Evidence{Channel: l.ID, URL: l.Row.URL, Reason: err.Error(), At: l.Wallet.Now()})
	if cause != nil {
		err = fmt.Errorf("%w (%w)", err, cause)
	}
	return errors.Join(err, kept)
}

// session is one stream: attach, bring the provider up to date, follow.
func (l *Lease) session(ctx context.Context) error {
	if l.Feed == nil {
		if err := l.Reattach(ctx); err != nil {
			return err
		}
	}
	defer l.Detach()
	if l.Row.Ended != "" {
		return nil
	}
	if err := l.FinishTopUp(ctx); err != nil && !rental.IsTransient(err) {
		return err
	}
	if err := l.pay(ctx); err != nil {
		return err
	}
	return l.Follow(ctx, nil)
}

// Reattach shows the provider the newest voucher it should have and takes the
// stream up behind the newest record we have.
func (l *leaseStream) Reattach(ctx context.Context) error {
	voucher, err := l.Newest(ctx)
	if err != nil {
		return err
	}
	amount := wire.NewAmount(voucher.Cumulative)
	shown := wire.Payload{Action: wire.ActionVoucher, ChannelID: l.ID, CumulativeAmount: &amount, Signature: voucher.Signature}
	secret := l.Row.Secret
	err = l.Attach(ctx, shown)
	if secret != "" && errors.Is(err, &wire.VerificationFailed) { // replaced meanwhile: a proof does without it
		err = l.Attach(ctx, shown)
	}
	return err
}

// Follow handles events and clocks until the stream ends, or something else does.
func (l *Lease) Follow(ctx context.Context, until <-chan struct{}) error {
	due := time.NewTicker(l.Row.Options.PayEvery)
	defer due.Stop()
	look := time.NewTicker(min(time.Second, l.Wallet.Patience/4+time.Millisecond))
	defer look.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-until:
			return nil
		case e, ok := <-l.Feed.Events:
			if !ok {
				return l.broken(ctx, l.Feed.Err)
			}
			err = l.Handle(ctx, e)
		case <-due.C:
			err = l.pay(ctx)
		case <-l.Requests.Hurry:
			err = l.pay(ctx)
		case <-look.C:
			err = l.watch(ctx)
		}
		if err != nil || l.Row.Ended != "" {
			return err
		}
	}
}

// beside does what may take long while the stream is followed: records are paid, and silence is noticed. stopped is why the
// stream is not followed any more, and do was cut off. do must use nothing that events change.
func (l *Lease) beside(ctx context.Context, do func(context.Context) error) (failed, stopped error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		failed = do(ctx)
	}()
	if l.Feed != nil {
		began := l.awake.Now()
		l.aside = true
		stopped = l.Follow(ctx, done)
		l.aside = false
		l.followed += l.awake.Since(began)
		if stopped == nil && l.Row.Ended != "" {
			stopped = rental.Transient(fmt.Errorf("channel %s: the lease ended meanwhile", l.ID))
		}
		if stopped != nil {
			cancel()
		}
	}
	<-done
	return failed, stopped
}

// Handle is one event. Names that we do not know are left alone: they are of a
// newer provider.
func (l *Lease) Handle(ctx context.Context, e wire.Event) error {
	switch e.Name {
	case wire.EventUsage:
		return l.usage(ctx, e.Data)
	case wire.EventNeedVoucher:
		return l.needed(ctx, e.Data)
	case wire.EventStatus:
		return l.status(ctx, e.Data)
	case peer.EventAccepted:
		return l.accepted(ctx, e.Data)
	case wire.EventProblem:
		l.notTaken(e.Data)
	}
	return nil
}

func (l *Lease) status(ctx context.Context, document []byte) error {
	var s wire.Status
	if err := exactjson.Unmarshal(document, &s); err != nil {
		return l.Dispute(ctx, fmt.Errorf("%w: status: %w", peer.ErrProtocol, err), document)
	}
	l.Service = peer.Printable(s.State)
	if s.State == wire.StateEnded {
		l.Row.Ended = cmp.Or(peer.Printable(s.Reason), "ended by the provider")
		return errors.Join(l.StopClock(ctx), l.Save(ctx))
	}
	l.Show(ctx)
	return nil
}

// usage checks a record and, if it is right, keeps it, before it is paid.
func (l *Lease) usage(ctx context.Context, document []byte) error {
	before := l.Row.Checker.Sequence
	if err := l.Check(ctx, document); err != nil || l.Row.Checker.Sequence == before {
		return err
	}
	if l.Row.Checker.Final {
		l.Row.Ended = cmp.Or(l.Row.Ended, "the final record is here")
		return l.Save(ctx)
	}
	if l.urgent() {
		if err := l.pay(ctx); err != nil {
			return err
		}
	}
	return l.Budget(ctx)
}

// watch is what only the clock can notice.
func (l *Lease) watch(ctx context.Context) error {
	if !l.Demand.since.IsZero() && l.awake.Since(l.Demand.since) > l.Wallet.Patience {
		return l.Dispute(ctx, fmt.Errorf("%w: it wants %s and no record says more than %s", peer.ErrDemand,
			l.Demand.required.Dec(), l.Demand.explained.Dec()), l.Demand.document)
	}
	if l.Row.TopUp != nil {
		if err := l.TopUp(ctx); err != nil && !rental.IsTransient(err) {
			return err
		}
	} else if l.Service == wire.StateSuspended { // no record comes, after which a top-up that failed would be tried again
		if err := l.Budget(ctx); err != nil {
			return err
		}
	}
	if l.awaitsTopUp() {
		l.listened = l.awake.Now()
	}
	if l.awake.Since(l.listened) > l.Wallet.Patience {
		return l.Silent(ctx, nil)
	}
	if l.unanswered() {
		return rental.Transient(fmt.Errorf("channel %s: %w: no receipt for a voucher of %s for %s", l.ID, peer.ErrSilent, l.sent.Dec(), peer.AnswerTimeout))
	}
	if l.Feed.Silence() > maxSilence {
		return rental.Transient(fmt.Errorf("channel %s: %w: not even a keep-alive for %s", l.ID, peer.ErrSilent, maxSilence))
	}
	return nil
}

// awaitsTopUp reports whether the lease is suspended until a top-up of ours, as while our endpoint is sick: that no record comes
// is not the provider's silence.
func (l *Lease) awaitsTopUp() bool {
	need, err := l.reserve()
	if err != nil || l.Service != wire.StateSuspended || !l.MayTopUp() {
		return false
	}
	owed := l.Owed()
	return need.Add(&need, &owed).Gt(&l.Row.Deposit)
}

// PayExact pays what the last records say, exactly.
func (l *Lease) PayExact(ctx context.Context) error {
	_, err := l.payUpTo(ctx, u256.Min(l.Owed(), l.Row.Deposit))
	var cap *channel.CapError
	if errors.As(err, &cap) {
		return fmt.Errorf("channel %s: %w: %w", l.ID, rental.ErrBudget, err)
	}
	return err
}
