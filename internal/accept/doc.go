// Package accept holds a payee's word against the contract's: its tests give the same vouchers, right ones and mutated
// ones, to channel.Payee and to the escrow's real code, on anvil and in an EVM inside the process. What the payee accepts
// the contract must pay.
package accept
