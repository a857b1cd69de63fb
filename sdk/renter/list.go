package renter

import (
	"context"

	"github.com/gpupay/gpupay/sdk/wallet"
)

// Rentals lists what is not finished: each may hold money. Resume takes one up
// again.
//
// A rental that is closed stays in the list until no re-org can undo that; each
// call looks, and one that was undone is open again.
func (r *Client) Rentals(ctx context.Context) ([]State, error) {
	rows, err := r.store.unfinished(ctx)
	if err != nil {
		return nil, err
	}
	for _, row := range rows {
		if row.Phase != PhaseClosed {
			continue
		}
		l, err := r.Rental(ctx, row.Terms.ID())
		if err == nil {
			_, err = l.over(ctx)
		}
		if err != nil {
			return nil, err
		}
	}
	if rows, err = r.store.unfinished(ctx); err != nil {
		return nil, err
	}
	for i, row := range rows {
		if row.Phase == PhaseOpening && row.until() != 0 {
			rows[i] = r.opening(ctx, row)
		}
	}
	return r.store.paid(ctx, rows), nil
}

// opening is a rental that is being opened as the chain shows it, where that has its channel: the deposit is promised no more.
// Nothing is kept: whoever opens it may be at work. An endpoint that does not answer changes nothing.
func (r *Client) opening(ctx context.Context, row rentalRow) rentalRow {
	l, err := r.Rental(ctx, row.Terms.ID())
	if err != nil {
		return row
	}
	if seen, err := l.look(ctx, r.w.Confirmations); err != nil || !seen.there {
		return row
	}
	return l.row
}

// History lists all rentals, the finished ones too, oldest first. Rental finds
// each of them again.
func (r *Client) History(ctx context.Context) ([]State, error) {
	rows, err := r.store.list(ctx, `ORDER BY updated_at`)
	return r.store.paid(ctx, rows), err
}

// RentalsFile lists what is not finished in a renter's database. The program that
// owns the database may run meanwhile; what it does not have yet is not there.
func RentalsFile(ctx context.Context, path string) ([]State, error) {
	s, err := wallet.ReadFile(ctx, path)
	if err != nil {
		return nil, err
	}
	defer s.DB.Close()
	return rentalStore{s}.states(ctx)
}

func (s rentalStore) states(ctx context.Context) ([]State, error) {
	rows, err := s.unfinished(ctx)
	if err != nil {
		return nil, err
	}
	return s.paid(ctx, rows), nil
}

// paid adds what vouchers say to what the rentals do.
func (s rentalStore) paid(ctx context.Context, rows []rentalRow) []State {
	states := make([]State, len(rows))
	for i, row := range rows {
		states[i] = row.state()
		if paid, err := s.DB.Payer().Load(ctx, row.Terms.ID()); err == nil {
			states[i].Paid = paid.Signed
		}
	}
	return states
}
