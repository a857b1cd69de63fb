// Package provider is the side of paid GPU time that sells: a Server that rents out GPUs and is paid for what it metered. Package
// sdk/renter rents from it; where the GPUs are on other hosts, package sdk/node meters them there.
//
// A Server is an http.Handler. New takes a Config: the chain's RPC, the Escrow, the Token, the payee's Key, a Database (vouchers are in
// it, and they are money), a price of one GPU-hour, and a Source that meters, which is package metering/nvml or, to try things out,
// metering/sim. Serve it, and call Run beside it: that watches the chain and settles. How a renter reaches its GPU is a gpu.Allocator's
// to say.
//
// What a provider publishes is a signed offer: the price, the least deposit, the credit (GPU time that it serves ahead of vouchers, and
// the most that it can lose), and how often it meters. A lease keeps the offer that it began under.
//
// Amounts in configurations are units of the token, such as "2.50"; those in results are its base units. Config.X402 and package
// sdk/x402/x402client speak x402 instead.
package provider
