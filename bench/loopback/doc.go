// Package loopback measures payments that renters make over HTTP: the gateway is an provider.Server behind an HTTP server in a
// process of its own, with a lease that runs and is metered each second for every renter; the renters are another process.
package loopback
