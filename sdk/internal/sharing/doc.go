// Package sharing runs the requests of leases that share devices. A Service holds its devices itself: they are sampled once for all of
// its leases, and given to none. A request takes a slot by the bearer token of its lease and gives it back when it is over; one
// [slots.Meter] bills it. What a lease may use is its Owner's to say, who knows the money. Prompts and answers do not come here, and
// tokens are kept as their hashes.
package sharing
