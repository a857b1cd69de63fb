// Package leases measures one gateway with many open leases: memory, processors, how long a voucher waits for its
// acknowledgement and how late a device is read, and how all of it grows with the number of leases. The payers are in this
// process: what they cost does not count, and vouchers are signed before they are due.
package leases
