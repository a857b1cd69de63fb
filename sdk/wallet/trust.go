package wallet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/internal/billed"
	"github.com/gpupay/gpupay/sdk/internal/peer"
)

// A wallet reads of each rental, and of each account with an x402 server, whom it distrusts
// and what it was billed for: both count whichever way somebody is paid.

// rentalTrust is what of a rental's row a wallet reads.
type rentalTrust struct {
	URL     string        `json:"url"`
	Terms   channel.Terms `json:"terms"`
	Spans   []billed.Span `json:"spans"`
	Dispute string        `json:"dispute"`
	OfSite  bool          `json:"ofSite"`
}

// accountTrust is what of an x402 account's row a wallet reads.
type accountTrust struct {
	ID      common.Hash       `json:"channel"`
	Spans   []billed.Span     `json:"spans"`
	Dispute string            `json:"dispute"`
	Accused map[string]string `json:"accused"` // by site
	payee   common.Address
}

// Vet refuses a site that was caught, and a payee that its signatures convict, whichever way it was paid.
func (w *Wallet) Vet(ctx context.Context, payee common.Address, site string) error {
	if err := w.Store.vetAccounts(ctx, payee, site); err != nil {
		return err
	}
	return w.Store.vetRentals(ctx, payee, site)
}

// vetAccounts refuses a site that was caught over x402, and a payee whose signature proves what it was caught at.
func (s Store) vetAccounts(ctx context.Context, payee common.Address, site string) error {
	accounts, err := s.accounts(ctx, `WHERE payee = ? OR channel IN (SELECT channel FROM x402_sites WHERE site = ?)`, lowerHex(payee), site)
	if err != nil {
		return err
	}
	for _, a := range accounts {
		if a.Dispute != "" {
			return &Dispute{Channel: a.ID, Reason: errors.New(a.Dispute)}
		}
		if reason, ok := a.Accused[site]; ok {
			return &Dispute{Channel: a.ID, Reason: errors.New(reason)}
		}
	}
	return nil
}

// vetRentals refuses a site that a rental caught which is not over, and a payee whose signature proves what it was caught at.
func (s Store) vetRentals(ctx context.Context, payee common.Address, site string) error {
	rentals, err := s.rentals(ctx, `WHERE state NOT IN ('closed', 'finished')`)
	if err != nil {
		return err
	}
	for _, r := range rentals {
		if r.Dispute == "" { // whatever phase a Close in vain left it in
			continue
		}
		if r.Terms.Payee == payee && !r.OfSite || peer.SiteOf(r.URL) == site {
			return &Dispute{Channel: r.Terms.ID(), Reason: errors.New(r.Dispute)}
		}
	}
	return nil
}

// recall takes up what the wallet was billed for, by whomever it paid.
func (w *Wallet) recall(ctx context.Context) error {
	rentals, err := w.Store.rentals(ctx, ``)
	if err != nil {
		return err
	}
	for _, r := range rentals {
		w.Billed.Keep(r.Terms.Payee, r.Terms.ID(), r.Spans)
	}
	accounts, err := w.Store.accounts(ctx, ``)
	for _, a := range accounts {
		w.Billed.Keep(a.payee, a.ID, a.Spans)
	}
	return err
}

func (s Store) rentals(ctx context.Context, where string) ([]rentalTrust, error) {
	var documents []string
	if err := s.DB.View().SelectContext(ctx, &documents, `SELECT document FROM rentals `+where); err != nil {
		return nil, fmt.Errorf("reading rentals: %w", err)
	}
	all := make([]rentalTrust, len(documents))
	for i, document := range documents {
		if err := json.Unmarshal([]byte(document), &all[i]); err != nil {
			return nil, fmt.Errorf("a rental on disk does not parse; restore the database from its backup: %w", err)
		}
	}
	return all, nil
}

func (s Store) accounts(ctx context.Context, where string, args ...any) ([]accountTrust, error) {
	var rows []struct {
		Document string `db:"document"`
		Payee    string `db:"payee"`
	}
	view := s.DB.View()
	if err := view.SelectContext(ctx, &rows, view.Rebind(`SELECT document, payee FROM x402_slates `+where+` ORDER BY channel`), args...); err != nil {
		return nil, fmt.Errorf("reading x402 slates: %w", err)
	}
	all := make([]accountTrust, len(rows))
	for i, row := range rows {
		if err := json.Unmarshal([]byte(row.Document), &all[i]); err != nil {
			return nil, fmt.Errorf("an x402 slate on disk does not parse; restore the database from its backup: %w", err)
		}
		all[i].payee = common.HexToAddress(row.Payee)
	}
	return all, nil
}

func lowerHex(a common.Address) string { return strings.ToLower(a.Hex()) }
