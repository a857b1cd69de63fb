// Package channel is the off-chain half of a payment channel: the payer signs
// vouchers for a growing total, the payee checks and keeps the newest one.
//
// A channel is a deposit in the escrow contract. Its id is the hash of its
// Terms. A Voucher says "of this channel's deposit, this much in all is the
// payee's"; only the newest counts, so losing an old one loses nothing and
// presenting one twice pays once.
//
// The payee holds a Payee: Register a channel that was read from the chain,
// Observe what the chain says later, Accept vouchers, Charge what was served.
// The payer holds a Payer: Open a channel before it is funded, Pay, Close.
// Both keep their state in a store (package channel/store has SQLite).
//
// What it promises:
//
//   - What Accept accepts, the contract settles: one signature rule, one digest,
//     bounds of 96 bits, never more than the deposit that was observed.
//   - An accepted voucher and a charge are on disk before the call returns.
//   - The payer's caps stand before its key, and a signed voucher is on disk
//     before it is returned. A lower total never leaves it after a higher one.
//   - Amounts are values in the token's base units. Nothing hands out a pointer
//     into the state.
//
// A settled voucher is public (it stands in the transaction's calldata). It
// proves what is owed, never who is speaking.
package channel
