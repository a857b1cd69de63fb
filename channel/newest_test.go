package channel_test

import (
	"context"
	"errors"
	"testing"

	"github.com/gpupay/gpupay/channel"
)

// TestAcceptNewest: what waits together counts as its newest good voucher does,
// in whatever order it came.
func TestAcceptNewest(t *testing.T) {
	ctx := context.Background()
	terms := testTerms("0x1")
	id := terms.ID()
	good := func(n uint64) channel.Voucher { return sign(t, testDomain, payerKey, id, units(n)) }
	junk := func(n uint64) channel.Voucher { return sign(t, testDomain, payeeKey, id, units(n)) }
	broken := good(9)
	broken.Signature = broken.Signature[:64]
	for name, c := range map[string]struct {
		vouchers []channel.Voucher
		outcome  channel.Outcome
		accepted uint64
		err      error
	}{
		"nothing waits":              {nil, 0, 5, nil},
		"in order":                   {[]channel.Voucher{good(6), good(7), good(8)}, channel.Accepted, 8, nil},
		"out of order":               {[]channel.Voucher{good(7), good(8), good(6)}, channel.Accepted, 8, nil},
		"superseded is not verified": {[]channel.Voucher{junk(6), good(8)}, channel.Accepted, 8, nil},
		"newest is a stranger's":     {[]channel.Voucher{good(6), good(7), junk(8)}, channel.Accepted, 7, channel.ErrSigner},
		"two newest are no good":     {[]channel.Voucher{broken, good(6), junk(8)}, channel.Accepted, 6, channel.ErrSigner},
		"same amount, one forged":    {[]channel.Voucher{good(8), junk(8)}, channel.Accepted, 8, channel.ErrSigner},
		"none is good":               {[]channel.Voucher{junk(7), junk(8)}, 0, 5, channel.ErrSigner},
		"newest is over the deposit": {[]channel.Voucher{good(99), good(101)}, channel.Accepted, 99, channel.ErrExceedsDeposit},
		"newest is no amount":        {[]channel.Voucher{{ChannelID: id}}, 0, 5, channel.ErrAmount},
		"known already":              {[]channel.Voucher{good(4), good(5)}, channel.Replayed, 5, nil},
		"old":                        {[]channel.Voucher{good(3), good(4)}, channel.Stale, 5, nil},
		"of two channels":            {[]channel.Voucher{good(6), sign(t, testDomain, payerKey, testTerms("0x2").ID(), units(7))}, 0, 5, errAny},
	} {
		t.Run(name, func(t *testing.T) {
			p := &channel.Payee{Store: openStore(t).Payee(), Domain: testDomain}
			for _, known := range []channel.Terms{terms, testTerms("0x2")} {
				if _, err := p.Register(ctx, known, channel.ChainView{Deposit: units(100)}); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := p.Accept(ctx, good(5)); err != nil {
				t.Fatal(err)
			}
			first := append([]channel.Voucher(nil), c.vouchers...)
			r, err := p.AcceptNewest(ctx, c.vouchers)
			if r.Outcome != c.outcome || (c.err == nil) != (err == nil) || (c.err != nil && c.err != errAny && !errors.Is(err, c.err)) {
				t.Errorf("%s, %v; want %s, %v", r.Outcome, err, c.outcome, c.err)
			}
			if s, err := p.State(ctx, id); err != nil || s.Accepted != units(c.accepted) {
				t.Errorf("kept %s, %v; want %d", s.Accepted.Dec(), err, c.accepted)
			} else if err := testDomain.Verify(s.Voucher(), terms.Signer()); err != nil {
				t.Errorf("kept what cannot be settled: %v", err)
			}
			for i, v := range c.vouchers {
				if v.Cumulative != first[i].Cumulative {
					t.Error("the caller's slice was sorted")
				}
			}
		})
	}
}

// TestAcceptNewestAsksOnceWhatGoesForAll: a channel that is over is over for all
// that wait.
func TestAcceptNewestAsksOnceWhatGoesForAll(t *testing.T) {
	ctx := context.Background()
	terms := testTerms("0x1")
	p := &channel.Payee{Store: openStore(t).Payee(), Domain: testDomain}
	if _, err := p.Register(ctx, terms, channel.ChainView{Deposit: units(100), Finalized: true}); err != nil {
		t.Fatal(err)
	}
	_, err := p.AcceptNewest(ctx, []channel.Voucher{
		sign(t, testDomain, payerKey, terms.ID(), units(6)), sign(t, testDomain, payerKey, terms.ID(), units(7))})
	var several interface{ Unwrap() []error }
	if !errors.Is(err, channel.ErrFinalized) || !errors.As(err, &several) || len(several.Unwrap()) != 1 {
		t.Errorf("%v, want that the channel is finalized, once", err)
	}
}

var errAny = errors.New("any error")
