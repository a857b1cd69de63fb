package provider

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// past is copies of the files of a pair whose programs were down.
type past struct{ provider, renter testrig.Files }

func (p *pair) copy() past {
	p.Helper()
	p.down()
	defer p.resume()
	return past{testrig.CopyFiles(p.T, p.config.Database, p.config.Database+".signed"), testrig.CopyFiles(p.T, p.database)}
}

// resume starts both sides and takes the rental up, if there is one.
func (p *pair) resume() {
	p.Helper()
	p.up()
	rental, err := p.renter.Resume(p.Context(), p.rental.ID())
	if err != nil {
		p.Fatal(err)
	}
	p.rental = rental
}

// useUp has the lease used and paid for beyond what a renter that remembers none of it lets it owe.
func (p *pair) useUp() {
	p.Helper()
	ctx, stop := context.WithCancel(p.Context())
	done := renterrig.Background(ctx, p.rental)
	s := p.rental.Snapshot()
	target := s.Owed.Uint64() + 2*uint64((p.config.Terms.Credit+p.config.Metering.MaxGap)/time.Millisecond)
	testrig.Eventually(p.T, "use", func() bool { s := p.rental.Snapshot(); return s.Paid.Uint64() >= target || len(done) > 0 })
	stop()
	<-done
}

// oldRenter is a pair with a small credit.
func oldRenter(t *testing.T, options renter.Options, change ...func(*Config)) *pair {
	return newPairWith(t, options, func(c *Config) {
		c.Terms.Credit, c.Metering.MaxGap, c.Terms.SuspendTimeout = time.Second, 150*time.Millisecond, 20*time.Second
		for _, change := range change {
			change(c)
		}
	})
}

// TestRenterFromBeforeItsCredit: a renter whose database is from before more was used than the credit and a late reading is
// shown its own newest voucher. It accuses nobody, what was used is paid, and no more; whether it runs on or closes, whatever
// became of the lease meanwhile, and whatever the provider remembers. At a node each lease has its own meter, also one that was forgotten.
func TestRenterFromBeforeItsCredit(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ side, since, then string }{
		{"renter", "ran on", "closes"},
		{"renter", "ran on", "runs"},
		{"renter", "ended", "closes"},
		{"renter", "settled", "closes"},
		{"renter", "ended, another began", "closes"},
		{"renter", "ended, another began", "runs"},
		{"renter", "ended, another began", "reopens"},
		{"renter", "closed", "closes"},
		{"both", "ran on", "closes"},
		{"both", "settled", "runs"},
		{"provider older", "settled", "closes"},
		{"provider newer", "ran on", "closes"},
		{"provider newer", "settled", "runs"},
		{"renter of a node", "ran on", "runs"},
		{"renter of a node", "ended, another began", "closes"},
		{"renter of a node", "ended, another began", "runs"},
		{"renter of a node", "ended, another began", "reopens"},
		{"both, of a node", "settled", "runs"},
	} {
		t.Run(test.side+", lease "+test.since+", "+test.then, func(t *testing.T) {
			change := func(*Config) {}
			side, ofNode := strings.CutSuffix(test.side, "of a node")
			if test.side = strings.TrimRight(side, ", "); ofNode {
				change = newOutpost(t).link
			}
			p := oldRenter(t, renter.Options{Deposit: "0.3", TopUp: "0.1", PayEvery: 50 * time.Millisecond}, change)
			if p.provider.Offer().NamesMeter() == ofNode {
				t.Fatalf("the offer is of version %d", p.provider.Offer().Version)
			}
			p.goOn(3)
			first := p.copy()
			p.useUp()
			second := first
			if strings.HasPrefix(test.side, "provider ") {
				second = p.copy()
				p.useUp()
			}
			p.since(test.since)
			p.down()
			switch test.side {
			case "both", "provider newer":
				second.provider.Restore(t)
				first.renter.Restore(t)
			case "provider older":
				first.provider.Restore(t)
				second.renter.Restore(t)
			case "renter":
				first.renter.Restore(t)
			}
			p.up()
			p.checkPaid(test.then)
		})
	}
}

// since is what became of a lease after the copy.
func (p *pair) since(what string) {
	p.Helper()
	id := p.rental.ID()
	var err error
	switch what {
	case "ended":
		err = p.end(id)
	case "ended, another began":
		if err = p.end(id); err == nil {
			err = errors.Join(p.rental.Run(p.Context()), p.rental.Reopen(p.Context()))
			p.useUp()
		}
	case "settled":
		err = p.provider.Settle(p.Context())
	case "closed":
		_, err = p.rental.Close(p.Context())
	}
	if err != nil {
		p.Fatal(err)
	}
}

// checkPaid has the renter go on and close, and looks at all accounts.
func (p *pair) checkPaid(then string) {
	p.Helper()
	id := p.rental.ID()
	known, err := p.provider.payee.State(p.Context(), id)
	if err != nil {
		p.Fatal(err)
	}
	rental, err := p.renter.Resume(p.Context(), id)
	if err != nil {
		p.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(p.Context(), time.Minute)
	defer cancel()
	if then == "reopens" {
		if err := rental.Reopen(ctx); err != nil {
			p.Errorf("reopening: %v", err)
		}
	}
	if then != "closes" {
		done := renterrig.Background(ctx, rental)
		testrig.Eventually(p.T, "records", func() bool {
			s := rental.Snapshot()
			return s.Owed.Gt(&known.Spent) && s.Service == wire.StateActive || len(done) > 0
		})
	}
	closed, err := rental.Close(ctx)
	if err != nil {
		p.Errorf("closing: %v", err)
	}
	after, err := p.provider.payee.State(p.Context(), id)
	if err != nil {
		p.Fatal(err)
	}
	if used := u256.Max(after.Spent, known.Spent); closed.Settled != used {
		p.Errorf("the payee has %s of %s, its books before %+v, closed %+v", closed.Settled.Dec(), used.Dec(), known, closed)
	}
	earned, left := p.balance(p.config.Key.Address()), p.balance(p.payer.Address())
	if earned != closed.Settled.Uint64() || earned+left != 1_000_000 {
		p.Errorf("the payee has %d, the payer %d, closed %+v", earned, left, closed)
	}
	if kept, err := p.renter.Evidence(p.Context(), id); err != nil || len(kept) != 0 {
		p.Errorf("the renter accuses an honest provider: %v, %v", reasons(kept), err)
	}
}

func reasons(kept []wallet.Evidence) (all []string) {
	for _, e := range kept {
		all = append(all, e.Reason)
	}
	return all
}

// TestRestoredRenterEndsWithoutAStream: a renter whose database is from before its vouchers ends the rental, whether its provider's
// stream is to be had or not, which of what was used it had paid in advance or not. Its newest voucher counts before the final
// record does: nobody is accused, no more is paid than was used or signed for before, and no debt is left behind that is none, which
// the payee's other leases here would lack credit for.
func TestRestoredRenterEndsWithoutAStream(t *testing.T) {
	t.Parallel()
	for paid, prepay := range map[string]time.Duration{"in advance": 100 * time.Second, "by records": 0} {
		for _, then := range []string{"closes", "signs a leave"} {
			for _, lease := range []string{"runs", "ended"} {
				for _, attach := range []string{"stream", "no stream"} {
					t.Run("paid "+paid+", "+then+", lease "+lease+", "+attach, func(t *testing.T) {
						p := newPairWith(t, renter.Options{Deposit: "0.3", PayEvery: 50 * time.Millisecond}, func(c *Config) {
							c.Terms.Credit, c.Metering.MaxGap, c.Metering.RecordEvery = 2*time.Second, 150*time.Millisecond, 15*time.Second
						})
						old := p.anew(nil)
						p.prepay(prepay)
						before := p.use(3*time.Second, lease == "ended")
						p.anew(old)
						p.front.full.Store(attach == "no stream")
						p.wantNoDebt(before, then, func() bool { // without a stream only the last record is, and may come after others
							return then == "closes" && attach == "stream" || prepay > 0 && p.recordsOf(before.ID) == 1
						})
					})
				}
			}
		}
	}
}

// prepay starts the renter anew with another prepayment.
func (p *pair) prepay(prepay time.Duration) {
	p.Helper()
	if err := p.renter.Close(); err != nil {
		p.Fatal(err)
	}
	changeRental(p.T, p.database, p.rental.ID(), "$.options.prepay", int64(prepay))
	p.anew(nil)
}

// anew starts the renter anew, on a copy of its database where there is one. It returns a copy of what was there.
func (p *pair) anew(old testrig.Files) testrig.Files {
	p.Helper()
	if err := p.renter.Close(); err != nil {
		p.Fatal(err)
	}
	was := testrig.CopyFiles(p.T, p.database)
	old.Restore(p.T)
	p.renter = p.rig.renter(p.T, p.database)
	var err error
	if p.rental, err = p.renter.Rental(p.Context(), p.rental.ID()); err != nil {
		p.Fatal(err)
	}
	return was
}

// use has the rental run until so much is used, and its lease end then. It returns what its provider has of the channel.
func (p *pair) use(used time.Duration, ends bool) channel.State {
	p.Helper()
	l := p.provider.leases.Running(p.rental.ID())
	ctx, stop := context.WithCancel(p.Context())
	done := renterrig.Background(ctx, p.rental)
	waitFor(p.T, func() bool { return l.Meter.Allocated() > int64(used) || len(done) > 0 })
	stop()
	<-done
	if ends {
		if err := l.End(p.Context(), lease.Stop{Reason: "a test ends it"}); err != nil {
			p.Fatal(err)
		}
	}
	s, err := p.provider.payee.State(p.Context(), p.rental.ID())
	if err != nil || s.Accepted.IsZero() {
		p.Fatal(s, err)
	}
	return s
}

// wantNoDebt has a rental end. If its records are shown, what they say is what was used.
func (p *pair) wantNoDebt(before channel.State, then string, isShown func() bool) {
	p.Helper()
	var closed renter.Closing
	var err error
	if then == "closes" {
		closed, err = p.rental.Close(p.Context())
	} else {
		_, err = p.rental.SignLeave(p.Context())
	}
	if err != nil {
		p.Errorf("it %s: %v", then, err)
	}
	after, err := p.provider.payee.State(p.Context(), before.ID)
	if err != nil {
		p.Fatal(err)
	}
	s, most, shown := p.rental.Snapshot(), u256.Max(after.Spent, before.Accepted), isShown()
	if s.Owed.Gt(&after.Spent) || shown && s.Owed != after.Spent {
		p.Errorf("%s are owed by record %d, %s were used", s.Owed.Dec(), s.Sequence, after.Spent.Dec())
	}
	if s.Paid.Gt(&most) || s.Paid.Lt(&before.Accepted) || closed.Settled.Gt(&most) {
		p.Errorf("%s are signed for, of %s that were before and %s that were used; closed %+v", s.Paid.Dec(), before.Accepted.Dec(), after.Spent.Dec(), closed)
	}
	if kept, err := p.renter.Evidence(p.Context(), before.ID); err != nil || len(kept) != 0 {
		p.Errorf("the renter accuses an honest provider: %v, %v", reasons(kept), err)
	}
	if shown && then == "closes" && s.Owed.Gt(&s.Paid) {
		p.Errorf("a debt of %s is left with %s signed for", s.Owed.Dec(), s.Paid.Dec())
	}
}

// recordsOf counts what its provider signed of a channel.
func (p *pair) recordsOf(id common.Hash) (n int) {
	p.Helper()
	db := p.provider.db.View()
	if err := db.Get(&n, db.Rebind(`SELECT COUNT(*) FROM records JOIN leases ON id = lease WHERE channel = ?`), id.Hex()); err != nil {
		p.Fatal(err)
	}
	return n
}
