package proxy

import (
	"context"
	"net/http"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk/units"
)

// MoneyStatus is where the payer's money is. Amounts are dollars; where they are not Known now all are empty, those of Providers too.
type MoneyStatus struct {
	Known      bool          `json:"known"`
	Wallet     string        `json:"wallet,omitempty"`
	Parked     string        `json:"parked,omitempty"`     // at providers: Owed and Refundable
	Owed       string        `json:"owed,omitempty"`       // to them, for what they served
	Refundable string        `json:"refundable,omitempty"` // of it, what comes back
	Paid       string        `json:"paid,omitempty"`       // that providers have had until now, those that hold nothing any more, too
	Promised   string        `json:"promised,omitempty"`   // of the wallet's, what is on its way to providers
	Alone      bool          `json:"alone"`                // what comes back does so also where a provider does not help
	Providers  []ParkedMoney `json:"providers"`
}

// ParkedMoney is what lies at one provider; one may hold several.
type ParkedMoney struct {
	Provider   string    `json:"provider"`
	State      string    `json:"state"`
	Parked     string    `json:"parked,omitempty"`
	Owed       string    `json:"owed,omitempty"`
	Refundable string    `json:"refundable,omitempty"` // at least
	Paid       string    `json:"paid,omitempty"`
	Back       time.Time `json:"back_by,omitzero"` // when Refundable is back at the latest, were it asked back now; zero: nothing comes back, or with the provider's help alone
}

// moneyTimeout bounds how long the chain is asked for it.
const moneyTimeout = 6 * time.Second

// whereMoneyIs asks the chain, which costs it a request for each provider that holds something.
func (s *Server) whereMoneyIs(r *http.Request) *MoneyStatus {
	ctx, cancel := context.WithTimeout(r.Context(), moneyTimeout)
	defer cancel()
	m, err := s.config.Pool.Money(ctx)
	st := &MoneyStatus{Known: err == nil, Providers: []ParkedMoney{}}
	dollars := func(n uint256.Int) string { return units.Format(n, s.config.Decimals) }
	if err != nil {
		s.config.Log.Warn("where the money is is not known now", "err", err)
		dollars = func(uint256.Int) string { return "" }
	}
	st.Wallet, st.Parked, st.Owed, st.Refundable = dollars(m.Wallet), dollars(m.Parked), dollars(m.Owed), dollars(m.Refundable)
	st.Paid, st.Promised, st.Alone = dollars(m.Settled), dollars(m.Promised), m.Coin
	for _, c := range m.Channels {
		st.Providers = append(st.Providers, ParkedMoney{
			Provider: redact.URL(c.URL), State: string(c.Phase), Back: c.From,
			Parked: dollars(c.Parked), Owed: dollars(c.Owed), Refundable: dollars(c.Refundable), Paid: dollars(c.Settled),
		})
	}
	return st
}
