package channel_test

import (
	"errors"
	"testing"

	"github.com/gpupay/gpupay/channel"
)

// TestCloseAndKeep: while a payee's own close is on its way no voucher counts, whatever is observed. What came of nothing
// is undone, and of nothing else: not what the payer asked the chain for, and not an end.
func TestCloseAndKeep(t *testing.T) {
	type step func(*channel.Payee) (channel.State, error)
	p, id := newPayee(t)
	see := func(at uint64, over bool) step {
		return func(p *channel.Payee) (channel.State, error) {
			return p.Observe(t.Context(), id, channel.ChainView{Deposit: units(1000), CloseRequestedAt: at, Finalized: over})
		}
	}
	shut := func(p *channel.Payee) (channel.State, error) { return p.Close(t.Context(), id) }
	keep := func(p *channel.Payee) (channel.State, error) { return p.Keep(t.Context(), id) }
	amount := uint64(0)
	for i, c := range []struct {
		do        step
		want      channel.Status
		requested bool
	}{
		{keep, channel.Open, false},
		{shut, channel.Closing, false},
		{see(0, false), channel.Closing, false}, // the chain does not have it yet
		{shut, channel.Closing, false},
		{keep, channel.Open, false},
		{see(1, false), channel.Closing, true}, // the payer's request, in the second after 1970
		{keep, channel.Closing, true},
		{see(0, false), channel.Open, false}, // a re-org took it away
		{shut, channel.Closing, false},
		{see(0, true), channel.Finalized, false},
		{keep, channel.Finalized, false},
		{shut, channel.Finalized, false},
	} {
		s, err := c.do(p)
		if err != nil || s.Status != c.want || s.CloseRequested() != c.requested {
			t.Errorf("step %d: %s, requested %v, %v; want %s", i, s.Status, s.CloseRequested(), err, c.want)
		}
		amount += 10
		_, err = p.Accept(t.Context(), sign(t, testDomain, payerKey, id, units(amount)))
		if counts := err == nil; counts != (c.want == channel.Open) {
			t.Errorf("step %d, on a channel that is %s: %v", i, c.want, err)
		}
		if c.want == channel.Closing && !errors.Is(err, channel.ErrClosing) {
			t.Errorf("step %d: %v", i, err)
		}
	}
}
