// Package sdk is where to look for what pays for GPU time. It holds no code: each part is a package of its own.
//
//	provider          rents out GPUs over HTTP and is paid for what it metered: Server, an http.Handler
//	renter            rents them: quote, rent, check, pay, top up, close, leave
//	x402/x402client   pays x402 servers: an http.RoundTripper, and GPU time by ticks
//	wallet            what both pay from: a key, a token, caps, a database
//	node              meters the GPUs of one host for gateways elsewhere
//	gpu               who gets which GPU
//	audit             verifies what either side kept
//	ledger            what either side earned and paid, a line each
//	doctor            what a provider lacks, and how to mend it
//	tower             settles for a provider that is down
//	settle, chain     when what is vouchered is fetched, and the chain it is fetched from
//	sweep             moves what was settled to a cold address
//	wire, x402        the formats of the two schemes
//	limit, units      rate limits; amounts and prices
//	service           an HTTP server that ends well
//	acme              its certificate for a domain
//	fund              how a person fills a wallet of this machine
//	route             which endpoint answers a request for the least money, waiting included
//
// Payment channels are package channel, GPU time is package metering. The example is a provider and a renter in one program;
// those of the README are two.
package sdk
