// Package x402 holds what is said over HTTP in version 2 of x402, scheme
// batch-settlement: the offer of a 402 answer, the payment that follows it, and
// the receipt. Each is JSON in base64 in one header.
//
// It exists so that stock clients can pay our provider and our renter can pay
// stock servers, so it is lenient where they need that and nowhere else: fields
// that nobody here knows are ignored, and a renter echoes them as it found them.
// Where there is money it is strict. An amount is a canonical decimal of at most
// 96 bits, an id is 32 bytes, a signature 65; a name that stands twice in an
// object, or differs from ours in case, is never read as ours: two programs that
// read one message differently are how money goes missing.
//
// Everything here is a pure function of its input. A reader of it learns what a
// stranger claims; signatures are for channel.Domain, balances for the chain.
package x402
