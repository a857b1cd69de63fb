package reserve

import (
	"context"
	"fmt"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/gpu"
)

// Books has a Book for each class of devices: what is kept of one class is nothing to the others.
type Books map[string]*Book

func (b Books) of(class string) (*Book, error) {
	if book := b[class]; book != nil {
		return book, nil
	}
	return nil, fmt.Errorf("%w: no GPU of class %q is rented out any more: ask again for the price", gpu.ErrNoCapacity, class)
}

// Room refuses more devices of a class than are free: see Book.
func (b Books) Room(ctx context.Context, class string, id common.Hash, gpus, back int) error {
	book, err := b.of(class)
	if err != nil {
		return err
	}
	return book.Room(ctx, id, gpus, back)
}

// Reserve keeps GPUs of a class for a channel: see Book.
func (b Books) Reserve(ctx context.Context, class string, id common.Hash, gpus, back int) (*Reservation, error) {
	book, err := b.of(class)
	if err != nil {
		return nil, err
	}
	return book.Reserve(ctx, id, gpus, back)
}

// Seated is a reservation for a lease of a class that begins now: see Book. One of another class is given back.
func (b Books) Seated(ctx context.Context, s *Reservation, class string, id common.Hash, gpus int) (*Reservation, error) {
	book, err := b.of(class)
	if s != nil && s.in != book {
		s.Release()
		s = nil
	}
	if err != nil {
		return nil, err
	}
	return book.Seated(ctx, s, id, gpus)
}

// Taken ends what is kept for a channel whose lease has its GPUs.
func (b Books) Taken(id common.Hash) {
	for _, book := range b {
		book.Taken(id)
	}
}
