package main

import (
	"time"

	"github.com/gpupay/gpupay/internal/cli"
)

// serveFields are the flags behind what is configured.
var serveFields = cli.Fields{
	"RPC": "rpc", "Escrow": "escrow", "Token": "token", "Database": "db", "HighWater": "high-water", "HTTP.PublicURL": "public-url",
	"Records.Retention": "retention", "Records.Archive": "archive", "Takeover": "takeover", "PricePerGPUHour": "price", "Classes": "price", "Share": "slots", "Deposits.Min": "min-deposit",
	"Terms.Credit": "credit", "Terms.DebtKept": "debt-kept", "Metering.RecordEvery": "record-every", "Terms.SuspendTimeout": "suspend-timeout",
	"X402": "x402", "X402.Window": "x402-window", "Chain.ID": "chain-id", "Chain.Confirmations": "confirmations", "Chain.Finality": "finality", "Chain.Poll": "poll",
	"Chain.MinGrace": "min-grace", "Chain.MaxFee": "max-fee", "Settlement.Interval": "settle-every", "Settlement.MaxAge": "settle-age",
	"Watchtowers.URLs": "watchtowers", "Watchtowers.Every": "watchtower-every", "Nodes.Links": "nodes", "Nodes.Identity": "node-identity",
	"Terms.MinTransfer": "min-transfer", "Payout": "payout", "Payout.Reserve": "payout-reserve", "ReservedSettlements": "reserved-settlements", "HTTP.TrustedProxies": "trusted-proxies",
}

// listenOn is where a provider listens, behind a proxy.
const listenOn = "127.0.0.1:8402"

func newServe(app *cli.App) *serve {
	s := &serve{flags: app.Flags("serve", "provider")}
	c, f, l := &s.config, s.flags, &s.config.Limits

	f.Group("What is asked for, and on which terms")
	f.Text(&c.PricePerGPUHour, "price", "2.50", "price of one GPU for an hour, in units of the token; of several kinds `NAME=PRICE,..`, such as H100=2.50,A100=1.20, by what their names contain")
	f.Bool(&s.free, "free", "with --price 0: give GPU time away")
	f.Text(&c.Deposits.Min, "min-deposit", "", "least deposit, in units of the token; ten minutes' price if empty")
	f.Duration(&c.Terms.Credit, "credit", time.Minute, "GPU time served ahead of vouchers, at most: what a renter can cost you")
	f.Duration(&c.Terms.DebtKept, "debt-kept", 0, "how long what a payer owes on a closed channel is off its credit; 0 for the default, 24h; negative until --forgive")
	f.Duration(&c.Metering.RecordEvery, "record-every", 5*time.Second, "time between usage records")
	f.Duration(&c.Terms.SuspendTimeout, "suspend-timeout", 5*time.Minute, "an unpaid lease ends after it")
	f.Bool(&s.x402, "x402", "take payments of stock x402 clients too")
	f.Duration(&s.window, "x402-window", 0, "GPU time that one of their requests pays for; 0 for the default")

	f.Group("GPUs")
	f.Text(&s.gpu, "gpu", "nvml", "where GPUs come from: nvml, sim, sim:N, or auto")
	s.hooks.Register(f)
	f.Text(&s.nodes, "nodes", "", "`NAME=URL,..` of nodes that meter in place of this host")
	f.Path(&s.identity, "node-identity", "", "with --nodes: `folder` of this gateway's certificate, that 'gpupay node --issue' made")
	s.upstream.register(f)
	f.Group("Renters come here")
	s.domain = f.Domain(&s.listen, listenOn)
	f.Text(&c.HTTP.PublicURL, "public-url", "", "`URL` at which clients reach this provider, such as https://gpus.example.org; what the proxy says if empty")
	f.TrustedProxies(&c.HTTP.TrustedProxies)
	f.Text(&s.admin, "admin", "127.0.0.1:9402", "`address` of /metrics and /healthz; empty for none. Do not open it to the world")

	f.Group("Chain and money")
	f.RPC(&c.RPC, ": http, https, ws or wss")
	f.Address(&c.Escrow, "escrow", "the ChannelEscrow contract")
	f.Address(&c.Token, "token", "the token to be paid in")
	f.Uint64(&c.Chain.ID, "chain-id", 0, "refuse any other chain")
	f.Uint64(&c.Chain.Confirmations, "confirmations", 1, "blocks before a deposit counts; 1 is the block it is in")
	f.Uint64(&c.Chain.Finality, "finality", 32, "blocks that no re-org undoes: what the chain says and the database does not know counts for good after so many")
	f.Duration(&c.Chain.Poll, "poll", 2*time.Second, "time between looks at the chain")
	f.Duration(&c.Chain.MinGrace, "min-grace", 0, "refuse an escrow with a shorter grace period: it is the time you have to settle after a close request; 0 for the default, 2h, or 10m on a local chain")
	f.Duration(&c.Settlement.Interval, "settle-every", 0, "how often settlement is considered; 0 for the default")
	f.Duration(&c.Settlement.MaxAge, "settle-age", 0, "settle what has waited that long; 0 for the default")
	s.outgoing(f)
	f.Text(&c.Terms.MinTransfer, "min-transfer", "", "least that is worth a transaction, in units of the token: no top-up is sent and nothing settled of less; a tenth of --min-deposit if empty, 0 for no bound")
	f.Int(&l.ReservedSettlements, "reserved-settlements", 0, "how many settlements the key's coin must pay for before anything is sent for a renter; 0 for the default, 20; negative for none")
	f.Coins(&l.SponsoredGasPerPayer, &l.SponsoredGas, "sponsored-gas", "0.01,0.1", "native coin that what is sent for renters may cost a day: `for one payer,for all`")
	f.List(&c.Watchtowers.URLs, "watchtowers", "`URLs` of watchtowers that are told the newest vouchers, separated by commas")
	f.Duration(&c.Watchtowers.Every, "watchtower-every", 0, "how often at most; 0 for the default")

	f.Group("What is kept")
	f.Path(&c.Database, "db", "gpupay-provider.db", "`path` of the database, or postgres://user@host/name for several gateways over one: it holds vouchers, which are money")
	f.Path(&c.Records.HighWater, "high-water", "", "`path` of the file that remembers which records were signed, beside the database and never restored with it; the database's with .signed if empty, in the state directory for PostgreSQL")
	f.Duration(&c.Records.Retention, "retention", 0, "how long usage records are kept in the database after their channel is closed; 0 for ever")
	f.Path(&c.Records.Archive, "archive", "", "`directory` that a channel's bundle is written into before its records are deleted")
	f.Duration(&c.Takeover, "takeover", 10*time.Second, "with PostgreSQL: how long this gateway may be silent before others take its leases")
	f.Bool(&s.drain, "drain", "when stopped, end all leases and settle; without it leases go on after a restart")

	f.Key()
	f.Log("info")
	f.Actions("Once, at the start")
	f.Address(&s.forgive, "forgive", "write off what this payer owes on closed channels")
	return s
}

// outgoing adds the flags of what leaves the key's address: fees, and what goes to the cold one.
func (s *serve) outgoing(f *cli.Flags) {
	f.MaxFee(&s.config.Chain.MaxFee)
	p := &s.config.Payout
	f.Address(&p.To, "payout", "cold address that what was settled is moved to; it stays on the key's if empty")
	f.Text(&p.Reserve, "payout-reserve", "", "what stays on the key's address, in units of the token; gas is paid in coin and needs none")
	f.Duration(&p.Every, "payout-every", 0, "time between looks at what there is to move; 0 for the default, 1h")
}
