// Package verify is the payer's side of metering: a [Checker] refuses every usage
// record that the payer's own clock, the offer's price and terms or the chain of
// records does not allow.
package verify
