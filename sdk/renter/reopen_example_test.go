package renter_test

import (
	"context"
	"log"

	"github.com/gpupay/gpupay/sdk/renter"
)

// A renter that began to leave changes its mind before the grace period is over.
func ExampleRental_Reopen() {
	var (
		ctx    = context.Background()
		rental *renter.Rental // from Client.Rental
	)
	if err := rental.Reopen(ctx); err != nil {
		log.Fatal(err)
	}
	log.Printf("lease %s: %s", rental.Snapshot().Lease, rental.Access())
	if err := rental.Run(ctx); err != nil {
		log.Fatal(err)
	}
}
