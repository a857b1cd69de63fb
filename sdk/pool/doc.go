// Package pool keeps rentals of shared GPUs at several providers, under one daily budget.
//
// A Pool reserves in a [budget.Books] what a request may cost, before it is sent, in one transaction for the whole and for its local
// key; sends it through the rental of its endpoint, which is opened by the first request with the smallest deposit; and corrects what
// counts by its own clock, and then by the provider's signed records. Rentals that nobody uses are closed, what is deposited at a
// provider that vanishes is got back without it, and a process that was killed goes on with what is on disk: Open takes up each shared
// rental of its Client. The Client's Caps stand before its key, whatever the budget says.
//
//	p, err := pool.Open(ctx, pool.Config{Client: client, File: "pool.db", Budget: "20"})
//	err = p.Set(candidates)                            // offers are fetched, and believed once they are verified
//	hold, err := p.Reserve(ctx, "ci", endpoint, most)  // *budget.ExceededError where the day does not hold it
//	res, err := hold.RoundTrip(request)                // one; it is ended where it would cost more than most
//	err = hold.Done(ctx, cost)
//
// A request counts in the UTC day in which it was reserved, also one that runs over midnight. One that ended counts at what the pool
// measured, or at what its caller says if that is more; one that failed in a way that no provider can bill counts nothing; and each is
// corrected to what was billed as soon as a record names it, some seconds later. Beside each reservation of a day, key and channel the
// pool keeps aside two seconds of a slot, by which a provider's bill may honestly or not pass the renter's own clock.
//
// A program of one's own that pays through a pool has log.SetOutput drop what net/http's client says: behind an answer whose Content-Length is
// too short it prints the rest, which is a provider's words and may be a prompt, by the standard logger. Programs of gpupay do.
//
// Amounts in a Config are units of the token, such as "2.50"; those in results are base units or [route.Nano].
package pool
