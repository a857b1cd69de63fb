package channel_test

import (
	"context"
	"errors"
	"testing"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
)

// A payee takes no channel of another escrow, and no voucher for one that another payee keeps in the same store: it could
// settle neither.
func TestTermsOfAnotherEscrow(t *testing.T) {
	p, _ := newPayee(t)
	ctx := context.Background()
	terms := testTerms("0x07")
	terms.Escrow = common.Address{0xee}
	view := channel.ChainView{Deposit: units(1000)}
	if _, err := p.Register(ctx, terms, view); !errors.Is(err, channel.ErrTerms) {
		t.Errorf("registering: %v, want %v", err, channel.ErrTerms)
	}
	other := &channel.Payee{Store: p.Store, Domain: channel.EscrowDomain(terms.ChainID, terms.Escrow)}
	if _, err := other.Register(ctx, terms, view); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Accept(ctx, sign(t, testDomain, payerKey, terms.ID(), units(10))); !errors.Is(err, channel.ErrTerms) {
		t.Errorf("a voucher: %v, want %v", err, channel.ErrTerms)
	}
	if s, err := other.State(ctx, terms.ID()); err != nil || !s.Accepted.IsZero() {
		t.Errorf("it was accepted: %+v, %v", s, err)
	}
}
