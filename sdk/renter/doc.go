// Package renter rents GPUs and pays for what it checked.
//
// A Client takes a Config, whose Caps bound the price, and what may be spent in a
// lease, in a day and with one provider: they are on disk and checked before its
// Key signs. Rent checks an offer, deposits and begins a lease; Rental.Run checks
// each usage record and signs a voucher for it; Rental.Close pays what is left and
// waits for the refund. After a crash Resume goes on, and Leave gets the deposit
// back without the provider.
//
// Amounts in configurations are units of the token, such as "2.50"; those in
// results are its base units.
package renter
