// Package gateway is what the benchmarks measure from outside: a process of its own that is an provider.Server behind an HTTP
// server and nothing else (Main), with leases that run, on a chain that the measuring process has.
//
// So many channels are not opened one by one. The chain begins with an escrow contract in whose storage they are open,
// and the database is written as a gateway leaves it that was ended after it had let the leases: channels by the
// payee's own code, leases as rows. The gateway that is measured takes them up as it does after any restart.
package gateway
