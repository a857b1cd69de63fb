// Package leases measures one gateway with many open leases: memory, processors, how long a voucher waits for its
// acknowledgement and how late a device is read, and how all of it grows with the number of leases.
//
// The gateway is a process of its own, an sdk.Provider behind an HTTP server and nothing else (the command gateway). This
// process has the chain and the payers: what they cost does not count. Vouchers are signed before they are due.
//
// So many channels are not opened one by one. The chain begins with an escrow contract in whose storage they are open,
// and the database is written as a gateway leaves it that was ended after it had let the leases: channels by the
// payee's own code, leases as rows. The gateway that is measured takes them up as it does after any restart.
package leases
