package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/units"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// WalletError says that the key holds less of the token than a rental begins with. Nothing was signed. It is a wallet.ErrBalance.
type WalletError struct {
	Address  common.Address // to which the token is sent
	Token    common.Address
	Symbol   string
	Decimals uint8
	ChainID  uint64
	Needs    uint256.Int // at least, in base units
}

func (e *WalletError) Error() string {
	return fmt.Sprintf("the wallet %s holds too little: a provider is paid from $%s on. Send it %s", e.Address, units.Format(e.Needs, e.Decimals), e.What())
}

// What names the token and its chain.
func (e *WalletError) What() string {
	return fmt.Sprintf("%s (token %s on %s)", e.Symbol, e.Token, chainName(e.ChainID))
}

func (e *WalletError) Unwrap() error { return wallet.ErrBalance }

// chainName is what people call a chain, and its id.
func chainName(id uint64) string {
	names := map[uint64]string{1: "Ethereum", 10: "OP Mainnet", 137: "Polygon", 8453: "Base", 42161: "Arbitrum One", 84532: "Base Sepolia", 11155111: "Sepolia"}
	if name, ok := names[id]; ok {
		return fmt.Sprintf("%s, chain %d", name, id)
	}
	return fmt.Sprintf("chain %d", id)
}

// Missing is a candidate that is not among the endpoints.
type Missing struct {
	URL   string
	Err   error     // why: a *WalletError, a wallet.ErrPrice, or the provider's; nil: it was not asked yet
	Again time.Time // when it is asked again; the zero time: at once
}

// lookEvery bounds how often requests have a balance or a provider be looked at, and fundedEvery is how often a balance is without one.
const (
	lookEvery   = 2 * time.Second
	fundedEvery = 30 * time.Second
)

// Missing says of each candidate of some models that is not among Endpoints why. It is for a request that finds none: it has silent
// providers be asked again, and looks whether a wallet that held too little holds enough now, each every two seconds at most.
func (p *Pool) Missing(ctx context.Context, models []string) []Missing {
	p.mu.Lock()
	var sites []*site
	for _, c := range p.candidates {
		if s := p.site(c.URL); slices.Contains(models, c.Model) && !slices.Contains(sites, s) {
			sites = append(sites, s)
		}
	}
	p.mu.Unlock()
	p.funded(ctx, sites, lookEvery)
	var all []Missing
	for _, s := range sites {
		if m, missing := s.missing(); missing {
			all = append(all, m)
		}
	}
	return all
}

// funded has sites whose rentals failed for want of money be tried again once the wallet holds what they need. It looks once in every.
func (p *Pool) funded(ctx context.Context, sites []*site, every time.Duration) {
	if !slices.ContainsFunc(sites, func(s *site) bool { return s.wants() != nil }) {
		return
	}
	p.mu.Lock()
	wait := time.Since(p.looked) < every
	if !wait {
		p.looked = time.Now()
	}
	p.mu.Unlock()
	if wait {
		return
	}
	has, err := p.client.Token().Balance(ctx, p.client.Address())
	if err != nil {
		p.log.Warn("what is in the wallet is not known now", "err", err)
		return
	}
	for _, s := range sites {
		if short := s.wants(); short != nil && !has.Lt(&short.Needs) {
			s.mu.Lock()
			s.short = nil
			s.mu.Unlock()
		}
	}
}

// wantOf is an opening's error, as a WalletError where its deposit is more than the wallet holds.
func (s *site) wantOf(ctx context.Context, deposit string, err error) error {
	if !errors.Is(err, wallet.ErrBalance) {
		return err
	}
	token := s.p.client.Token()
	needs, wrong := units.Parse(deposit, token.Decimals)
	if wrong != nil {
		return err
	}
	id, failed := s.p.client.Wallet().Backend.ChainID(ctx)
	e := &WalletError{Address: s.p.client.Address(), Token: token.Address, Symbol: token.Symbol, Decimals: token.Decimals, Needs: needs}
	if failed == nil {
		e.ChainID = id.Uint64()
	}
	return e
}

func (s *site) wants() *WalletError {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.short
}

// missing says why the site is no endpoint, and has it be asked again if its offer is what is missing.
func (s *site) missing() (m Missing, missing bool) {
	if _, ok := s.terms(); ok {
		return m, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch m.URL = s.url; {
	case s.short != nil:
		m.Err = s.short
	case time.Now().Before(s.retry):
		m.Err, m.Again = s.failed, s.retry
	default:
		m.Err, m.Again = s.silent, s.next
		if time.Since(s.asked) >= lookEvery {
			select {
			case s.wake <- struct{}{}:
				m.Again = time.Time{}
			default: // it is being asked
			}
		}
	}
	return m, true
}
