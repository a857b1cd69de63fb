package renter

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
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// maxSilence is how long a stream may carry nothing at all, keep-alives
// included, before it is taken for dead and attached to again. A provider sends
// a comment each 15 s.
const maxSilence = 45 * time.Second

// Run pays for the lease until it ends: it checks every usage record, signs
// vouchers for what the records say, tops up within the caps, and attaches again
// when the stream breaks.
//
// It returns nil when the lease has ended or Close or Leave takes over,
// channel.ErrClosing when SignLeave has ended payments, ErrBudget when the money set aside is used up (Close then, and everything is
// paid), ErrSilent when the provider stays away, a *Dispute when it lied, and
// the context's error.
func (l *Rental) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	release, err := l.claim(ctx)
	if err != nil {
		return err
	}
	defer release()
	if !l.running(cancel) {
		return nil
	}
	defer l.running(nil)
	if l.row.Phase == PhaseDisputed {
		return &wallet.Dispute{Channel: l.id, Reason: errors.New(l.row.Dispute)}
	}
	if l.row.Phase != PhaseRunning {
		return fmt.Errorf("channel %s: the rental is %s: only a running one can be paid for", l.id, l.row.Phase)
	}
	defer l.detach()
	go l.awake.Run(ctx)
	l.hear() // the provider's silence counts from here, not ours
	if err = l.unpaid(ctx); err == nil {
		err = l.payLoop(ctx)
	}
	if ctx.Err() != nil && l.interrupted() {
		return l.unpaid(ctx)
	}
	if errors.Is(err, channel.ErrClosing) {
		l.giveBack(ctx)
	}
	return err
}

// hear notes that a record came, or that one is waited for from now on.
func (l *checks) hear() { l.heard, l.listened = time.Now(), l.awake.Now() }

// running lets Close and Leave stop a Run; it reports false if one of them
// waits already.
func (l *ledger) running(stop context.CancelFunc) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stop = stop
	return l.waiting == 0
}

func (l *ledger) interrupted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.waiting > 0
}

// payLoop attaches and follows, again and again, until there is a reason to
// stop.
func (l *payments) payLoop(ctx context.Context) error {
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
		case l.row.Ended != "":
			return errors.Join(l.payExact(ctx), l.save(ctx))
		case !isTransient(err):
			return err
		}
		if gone, finalErr := l.gone(ctx, err); gone {
			return finalErr
		}
		if l.awake.Since(l.listened) > l.r.w.Patience {
			return l.silent(ctx, err)
		}
		wait := pace.Next()
		boundlog.Warn(l.r.w.Log, "lease's stream broke: attaching again", l.id, err, "retry", wait)
		if err := chain.Pause(ctx, wait); err != nil {
			return err
		}
	}
}

// gone looks at the chain when the provider says that the channel is closed.
func (l *leaseStream) gone(ctx context.Context, cause error) (bool, error) {
	if !errors.Is(cause, &wire.ChannelFinalized) && !errors.Is(cause, &wire.ChannelNotFound) {
		return false, nil
	}
	view, err := l.escrow.View(ctx, l.id, nil)
	if err != nil || (!view.Finalized && view.CloseRequestedAt == 0) {
		return false, nil
	}
	l.row.Ended = "the channel is closed on the chain"
	return true, errors.Join(l.stopClock(ctx), l.save(ctx))
}

// silent gives up on a provider that says nothing. Nothing is owed for the
// time, so it is no dispute; that it happened is kept.
func (l *leaseStream) silent(ctx context.Context, cause error) error {
	err := fmt.Errorf("channel %s: %w: no usage record for %s", l.id, peer.ErrSilent, l.r.w.Patience)
	// Without the cause, which the provider words: silences are one piece of evidence, however many there are.
	kept := l.r.w.Keep(ctx, wallet.Evidence{Channel: l.id, URL: l.row.URL, Reason: err.Error(), At: l.r.w.Now()})
	if cause != nil {
		err = fmt.Errorf("%w (%w)", err, cause)
	}
	return errors.Join(err, kept)
}

// session is one stream: attach, bring the provider up to date, follow.
func (l *payments) session(ctx context.Context) error {
	if l.feed == nil {
		if err := l.reattach(ctx); err != nil {
			return err
		}
	}
	defer l.detach()
	if l.row.Ended != "" {
		return nil
	}
	if err := l.finishTopUp(ctx); err != nil && !isTransient(err) {
		return err
	}
	if err := l.pay(ctx); err != nil {
		return err
	}
	return l.follow(ctx, nil)
}

// reattach shows the provider the newest voucher it should have and takes the
// stream up behind the newest record we have.
func (l *leaseStream) reattach(ctx context.Context) error {
	voucher, err := l.newest(ctx)
	if err != nil {
		return err
	}
	amount := wire.NewAmount(voucher.Cumulative)
	shown := wire.Payload{Action: wire.ActionVoucher, ChannelID: l.id, CumulativeAmount: &amount, Signature: voucher.Signature}
	secret := l.row.Secret
	err = l.attach(ctx, shown)
	if secret != "" && errors.Is(err, &wire.VerificationFailed) { // replaced meanwhile: a proof does without it
		err = l.attach(ctx, shown)
	}
	return err
}

// follow handles events and clocks until the stream ends, or something else does.
func (l *payments) follow(ctx context.Context, until <-chan struct{}) error {
	due := time.NewTicker(l.row.Options.PayEvery)
	defer due.Stop()
	look := time.NewTicker(min(time.Second, l.r.w.Patience/4+time.Millisecond))
	defer look.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-until:
			return nil
		case e, ok := <-l.feed.Events:
			if !ok {
				return l.broken(ctx, l.feed.Err)
			}
			err = l.handle(ctx, e)
		case <-due.C:
			err = l.pay(ctx)
		case <-look.C:
			err = l.watch(ctx)
		}
		if err != nil || l.row.Ended != "" {
			return err
		}
	}
}

// beside does what may take long while the stream is followed: records are paid, and silence is noticed. stopped is why the
// stream is not followed any more, and do was cut off. do must use nothing that events change.
func (l *payments) beside(ctx context.Context, do func(context.Context) error) (failed, stopped error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		failed = do(ctx)
	}()
	if l.feed != nil {
		began := l.awake.Now()
		l.aside = true
		stopped = l.follow(ctx, done)
		l.aside = false
		l.followed += l.awake.Since(began)
		if stopped == nil && l.row.Ended != "" {
			stopped = transient{fmt.Errorf("channel %s: the lease ended meanwhile", l.id)}
		}
		if stopped != nil {
			cancel()
		}
	}
	<-done
	return failed, stopped
}

// handle is one event. Names that we do not know are left alone: they are of a
// newer provider.
func (l *payments) handle(ctx context.Context, e wire.Event) error {
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

func (l *payments) status(ctx context.Context, document []byte) error {
	var s wire.Status
	if err := exactjson.Unmarshal(document, &s); err != nil {
		return l.dispute(ctx, fmt.Errorf("%w: status: %w", peer.ErrProtocol, err), document)
	}
	l.service = peer.Printable(s.State)
	if s.State == wire.StateEnded {
		l.row.Ended = cmp.Or(peer.Printable(s.Reason), "ended by the provider")
		return errors.Join(l.stopClock(ctx), l.save(ctx))
	}
	l.show(ctx)
	return nil
}

// usage checks a record and, if it is right, keeps it, before it is paid.
func (l *payments) usage(ctx context.Context, document []byte) error {
	before := l.row.Checker.Sequence
	if err := l.check(ctx, document); err != nil || l.row.Checker.Sequence == before {
		return err
	}
	if l.row.Checker.Final {
		l.row.Ended = cmp.Or(l.row.Ended, "the final record is here")
		return l.save(ctx)
	}
	if l.urgent() {
		if err := l.pay(ctx); err != nil {
			return err
		}
	}
	return l.budget(ctx)
}

// watch is what only the clock can notice.
func (l *payments) watch(ctx context.Context) error {
	if !l.demand.since.IsZero() && l.awake.Since(l.demand.since) > l.r.w.Patience {
		return l.dispute(ctx, fmt.Errorf("%w: it wants %s and no record says more than %s", peer.ErrDemand,
			l.demand.required.Dec(), l.demand.explained.Dec()), l.demand.document)
	}
	if l.row.TopUp != nil {
		if err := l.topUp(ctx); err != nil && !isTransient(err) {
			return err
		}
	} else if l.service == wire.StateSuspended { // no record comes, after which a top-up that failed would be tried again
		if err := l.budget(ctx); err != nil {
			return err
		}
	}
	if l.awaitsTopUp() {
		l.listened = l.awake.Now()
	}
	if l.awake.Since(l.listened) > l.r.w.Patience {
		return l.silent(ctx, nil)
	}
	if l.unanswered() {
		return transient{fmt.Errorf("channel %s: %w: no receipt for a voucher of %s for %s", l.id, peer.ErrSilent, l.sent.Dec(), peer.AnswerTimeout)}
	}
	if l.feed.Silence() > maxSilence {
		return transient{fmt.Errorf("channel %s: %w: not even a keep-alive for %s", l.id, peer.ErrSilent, maxSilence)}
	}
	return nil
}

// awaitsTopUp reports whether the lease is suspended until a top-up of ours, as while our endpoint is sick: that no record comes
// is not the provider's silence.
func (l *payments) awaitsTopUp() bool {
	need, err := l.reserve()
	if err != nil || l.service != wire.StateSuspended || !l.mayTopUp() {
		return false
	}
	owed := l.owed()
	return need.Add(&need, &owed).Gt(&l.row.Deposit)
}

// payExact pays what the last records say, exactly.
func (l *payments) payExact(ctx context.Context) error {
	_, err := l.payUpTo(ctx, u256.Min(l.owed(), l.row.Deposit))
	var cap *channel.CapError
	if errors.As(err, &cap) {
		return fmt.Errorf("channel %s: %w: %w", l.id, ErrBudget, err)
	}
	return err
}
