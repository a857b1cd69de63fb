// Package slots meters devices that several leases share, by the request.
//
// A request holds one slot from its acceptance to its last byte. A slot's second
// costs gpus/slots of a GPU-second, so that the price is known before, and all
// slots together cost what the GPUs do. What is billed of a request is the time
// between its ends in which every device of the service was seen healthy, by the
// pairs of readings that a [usage.Meter] bills. A request that fails costs
// nothing, its time so far included.
//
// [Meter] counts and refuses. It reads no clock, calls nobody and starts no
// goroutine: times are given, in nanoseconds of the monotonic clock that readings
// are stamped with. [Books] are the renter's side, and [Contradiction] is what
// anybody can check of what was signed.
package slots
