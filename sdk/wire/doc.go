// Package wire holds the formats that a renter and a provider exchange over
// HTTP: the 402 challenge, the credential that answers it, the receipt, the
// problem documents, the server-sent events and the signed offer; and the
// request to close that a renter signs for anyone to send.
//
// The formats follow two public drafts, draft-httpauth-payment-00 (the
// Payment authentication scheme) and draft-evm-session-00 (method evm, intent
// session). What gpupay adds to them is named where it stands: the lease
// secret and the proof of access, because a settled voucher is public calldata
// and so proves nothing about who is speaking.
//
// Everything here is a pure function of its input. Parsers are strict: an
// unknown action, a number that is not a canonical decimal, or an oversized
// header is an error that says which field is wrong.
package wire
