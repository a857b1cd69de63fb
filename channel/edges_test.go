package channel_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
)

// TestJudgeSaysWhatAcceptWould: money is moved on its word, for a channel that need not be kept yet.
func TestJudgeSaysWhatAcceptWould(t *testing.T) {
	p, id := newPayee(t)
	terms := testTerms("0x02")
	s := channel.State{ID: terms.ID(), Terms: terms, Status: channel.Open, Deposit: units(1000), Accepted: units(500)}
	for name, c := range map[string]struct {
		voucher channel.Voucher
		want    channel.Outcome
		err     error
	}{
		"new":              {sign(t, testDomain, payerKey, s.ID, units(600)), channel.Accepted, nil},
		"the newest again": {sign(t, testDomain, payerKey, s.ID, units(500)), channel.Replayed, nil},
		"stale":            {sign(t, testDomain, payerKey, s.ID, units(499)), channel.Stale, nil},
		"over the deposit": {sign(t, testDomain, payerKey, s.ID, units(1001)), 0, channel.ErrExceedsDeposit},
		"another's":        {sign(t, testDomain, strangerKey, s.ID, units(600)), 0, channel.ErrSigner},
		"another channel":  {sign(t, testDomain, payerKey, id, units(600)), 0, channel.ErrTerms},
		"over 96 bits":     {channel.Voucher{ChannelID: s.ID, Cumulative: uint256.Int{0, 1 << 40}}, 0, channel.ErrAmount},
	} {
		if got, err := p.Judge(context.Background(), s, c.voucher); got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %s, %v; want %s, %v", name, got, err, c.want, c.err)
		}
	}
	if _, err := p.State(context.Background(), s.ID); !errors.Is(err, channel.ErrUnknown) {
		t.Errorf("judging kept the channel: %v", err)
	}
}

// TestSettledVoucherIsKept: what the chain settled in full is given out again as it was, without asking the key.
func TestSettledVoucherIsKept(t *testing.T) {
	p, key, id := newPayer(t)
	first := pay(t, p, id, 400)
	if _, err := p.Observe(context.Background(), id, channel.ChainView{Deposit: units(1000), Settled: units(400)}); err != nil {
		t.Fatal(err)
	}
	if again := pay(t, p, id, 400); string(again.Signature) != string(first.Signature) || key.asked != 1 {
		t.Errorf("the key was asked %d times", key.asked)
	}
}

// overtaker pays more while it signs.
type overtaker struct {
	channel.Signer
	once func()
}

func (o *overtaker) Sign(ctx context.Context, digest common.Hash) ([]byte, error) {
	if once := o.once; once != nil {
		o.once = nil
		once()
	}
	return o.Signer.Sign(ctx, digest)
}

// TestOvertakenVoucherIsNotGivenOut: the newest voucher on disk would not be the newest that was sent.
func TestOvertakenVoucherIsNotGivenOut(t *testing.T) {
	p, _, id := newPayer(t)
	o := &overtaker{Signer: payerKey}
	p.Signer, o.once = o, func() { pay(t, p, id, 500) }
	if v, err := p.Pay(context.Background(), id, units(400)); !errors.Is(err, channel.ErrLower) {
		t.Errorf("a voucher for %s after one for 500: %v", v.Cumulative.Dec(), err)
	}
	if s := payerState(t, p, id); s.Signed != units(500) || len(s.Signature) == 0 {
		t.Errorf("signed %s", s.Signed.Dec())
	}
}

// mislaid is a store that cannot say what lies in other channels.
type mislaid struct{ channel.PayerStore }

var errMislaid = errors.New("disk on fire")

func (m mislaid) Create(ctx context.Context, s channel.PayerState, day string, allow func(channel.Budget) error) (channel.PayerState, error) {
	return m.PayerStore.Create(ctx, s, day, func(b channel.Budget) error {
		b.Locked = func() (own, payee, all uint256.Int, err error) { return own, payee, all, errMislaid }
		return allow(b)
	})
}

// TestUnknownStakeAllowsNothing: caps that cannot be counted are not caps that allow.
func TestUnknownStakeAllowsNothing(t *testing.T) {
	p, _, _ := newPayer(t)
	p.Store = mislaid{p.Store}
	terms := testTerms("0x02")
	if err := p.Open(context.Background(), terms, units(1)); !errors.Is(err, errMislaid) {
		t.Errorf("a deposit whose caps cannot be read: %v", err)
	}
	if _, err := p.State(context.Background(), terms.ID()); !errors.Is(err, channel.ErrUnknown) {
		t.Errorf("it is kept: %v", err)
	}
}

// TestTermsNeedTheirChain: an id without a chain would be the same on all.
func TestTermsNeedTheirChain(t *testing.T) {
	terms := testTerms("0x01")
	terms.ChainID = 0
	if err := terms.Validate(); !errors.Is(err, channel.ErrTerms) {
		t.Errorf("terms of no chain: %v", err)
	}
}

// TestKeyPrintsItsAddress: and nothing else, whatever the verb.
func TestKeyPrintsItsAddress(t *testing.T) {
	for _, verb := range []string{"%v", "%s", "%+v", "%d"} {
		if got := fmt.Sprintf(verb, *payerKey); !strings.HasSuffix(got, payerKey.Address().Hex()) {
			t.Errorf("%s prints %q", verb, got)
		}
	}
}
