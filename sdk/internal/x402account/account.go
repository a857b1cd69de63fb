// Package x402account keeps the accounts of a wallet's channels with x402 servers, in the wallet's database: what the server
// charged, the deposit that may still arrive, the tick that was not answered, and the usage records that were checked.
package x402account

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/internal/ticks"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/x402"
)

// Account is what a channel with an x402 server must not forget, beside what was signed. Amounts are base units.
type Account struct {
	ID    common.Hash    `json:"channel"`
	URL   string         `json:"url"`
	Payee common.Address `json:"payee"`
	// Site is the only one that is paid from it, Salt the client's that its own is made of. In older databases there is none: then
	// it is the site of URL, which was paid first, and the channel's own salt. Sites were paid from it, under whatever name.
	Site  string      `json:"site,omitempty"`
	Salt  common.Hash `json:"salt,omitzero"`
	Sites []string    `json:"sites,omitempty"`
	// Deposit is one that was signed and is not known to have arrived. It is sent
	// again as it is, until it has arrived or has expired: the money moves once.
	Deposit *x402.Deposit `json:"deposit,omitempty"`
	Leaving bool          `json:"leaving,omitempty"` // being got back without the server
	// Withdrawal is the one of all that was free by which the channel is being left; nil before it was asked for. What was
	// deposited since is left there.
	Withdrawal *Withdrawal `json:"withdrawal,omitempty"`
	Dispute    string      `json:"dispute,omitempty"` // what the server was caught at: nothing more is paid
	// Accused are the sites that were caught at what no signature of the payee proves, and at what: whoever runs one may have named
	// another's payee in its 402. They are not paid; the payee is, elsewhere.
	Accused map[string]string `json:"accused,omitempty"`
	ticks.Book

	version int64 // of the row that was read; zero: there was none
}

// Withdrawal is one of all that was free, as the account remembers it.
type Withdrawal struct {
	Deposit uint256.Int `json:"deposit"` // in the channel when it was asked for
	Before  int         `json:"before"`  // how many of the channel's we had begun by then
}

// Violation is what a payee was caught at, or else its sites, one after the other.
func (a Account) Violation() string {
	if a.Dispute != "" {
		return a.Dispute
	}
	return strings.Join(slices.Sorted(maps.Values(a.Accused)), "; ")
}

// PaidSite is the only one that is paid from a channel.
func (a Account) PaidSite() string {
	if a.Site == "" {
		return peer.SiteOf(a.URL)
	}
	return a.Site
}

// Turn is the turn of an account's channel.
func (a Account) Turn(t channel.Terms) wallet.TurnKey {
	salt := a.Salt
	if a.Site == "" {
		salt = t.Salt
	}
	return wallet.TurnOf(t, salt, a.PaidSite())
}

// AddSite notes a site that is about to be paid from a channel.
func (a *Account) AddSite(site string, payee common.Address) (isNew bool) {
	a.Payee = payee
	if isNew = !slices.Contains(a.Sites, site); isNew {
		a.Sites = append(a.Sites, site)
	}
	return isNew
}

// write writes an account over the one that was read.
func (a *Account) write(tx *sqlx.Tx, document string) error {
	done, err := tx.Exec(tx.Rebind(`INSERT INTO x402_slates (channel, url, payee, document, updated_at, version) VALUES (?, ?, ?, ?, ?, 1)
		ON CONFLICT (channel) DO UPDATE SET payee = excluded.payee, document = excluded.document, updated_at = excluded.updated_at,
		version = x402_slates.version + 1 WHERE x402_slates.version = ?`),
		a.ID.Hex(), a.URL, strings.ToLower(a.Payee.Hex()), document, time.Now().UnixMilli(), a.version)
	if err != nil {
		return err
	}
	if n, err := done.RowsAffected(); err != nil || n != 1 {
		return errors.Join(ErrStale, err)
	}
	for _, site := range append([]string{a.PaidSite()}, a.Sites...) {
		if _, err := tx.Exec(tx.Rebind(`INSERT INTO x402_sites (site, channel) VALUES (?, ?) ON CONFLICT DO NOTHING`), site, a.ID.Hex()); err != nil {
			return err
		}
	}
	return nil
}
