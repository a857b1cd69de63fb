package channel_test

import (
	"errors"
	"testing"

	"github.com/gpupay/gpupay/channel"
)

// A session's voucher is a debt; of one that is a ceiling what was charged may be claimed, and never its last base unit.
func TestPayable(t *testing.T) {
	for _, row := range []struct {
		name            string
		scheme          channel.Scheme
		accepted, spent uint64
		want            uint64
	}{
		{"session, paid in advance", channel.Session, 100, 40, 100},
		{"session, on credit", channel.Session, 100, 140, 100},
		{"ceiling, a part of it used", channel.BatchSettlement, 100, 40, 40},
		{"ceiling, all but one used", channel.BatchSettlement, 100, 99, 99},
		{"ceiling, used up", channel.BatchSettlement, 100, 100, 99},
		{"ceiling, a late reading went over it", channel.BatchSettlement, 100, 130, 99},
		{"ceiling, nothing signed", channel.BatchSettlement, 0, 30, 0},
		{"no scheme", 99, 100, 100, 0},
	} {
		s := channel.State{Terms: channel.Terms{Scheme: row.scheme}, Accepted: units(row.accepted), Spent: units(row.spent)}
		if got := s.Payable(); got != units(row.want) {
			t.Errorf("%s: %s is payable, want %d", row.name, got.Dec(), row.want)
		}
	}
}

// What the schemes ask of terms beyond the parts that all have.
func TestTermsOfASchemeAreChecked(t *testing.T) {
	session := testTerms("1")
	batch := session
	batch.Scheme, batch.PayeeAuthorizer, batch.WithdrawDelay = channel.BatchSettlement, session.Payee, 900
	change := func(of channel.Terms, f func(*channel.Terms)) channel.Terms { f(&of); return of }
	for name, row := range map[string]struct {
		terms channel.Terms
		fine  bool
	}{
		"session":                    {session, true},
		"session with an authorizer": {change(session, func(t *channel.Terms) { t.PayeeAuthorizer = t.Payee }), false},
		"session with a delay":       {change(session, func(t *channel.Terms) { t.WithdrawDelay = 900 }), false},
		"batch":                      {batch, true},
		"batch, 30 days":             {change(batch, func(t *channel.Terms) { t.WithdrawDelay = 30 * 24 * 3600 }), true},
		"batch, no authorizer":       {change(batch, func(t *channel.Terms) { t.PayeeAuthorizer = [20]byte{} }), false},
		"batch, too short a delay":   {change(batch, func(t *channel.Terms) { t.WithdrawDelay = 899 }), false},
		"batch, too long a delay":    {change(batch, func(t *channel.Terms) { t.WithdrawDelay = 30*24*3600 + 1 }), false},
		"a scheme that is not there": {change(batch, func(t *channel.Terms) { t.Scheme = 2 }), false},
	} {
		if err := row.terms.Validate(); (err == nil) != row.fine || (err != nil && !errors.Is(err, channel.ErrTerms)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	domain := channel.BatchSettlement.Domain(batch.ChainID, batch.Escrow)
	if err := domain.Holds(batch); err != nil {
		t.Error(err)
	}
	if err := domain.Holds(session); !errors.Is(err, channel.ErrTerms) {
		t.Errorf("a domain of one scheme takes a channel of another: %v", err)
	}
}
