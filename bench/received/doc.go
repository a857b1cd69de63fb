// Package received measures a payment received: a voucher that was verified and is kept, in one process, from 1 to 1,024
// channels. What is measured is what a Provider runs, channel.Payee over channel/store, beside payees of the shapes that are
// usual elsewhere.
package received
