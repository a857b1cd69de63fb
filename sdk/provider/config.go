package provider

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/cors"
	"github.com/gpupay/gpupay/sdk/limit"
	"github.com/gpupay/gpupay/sdk/node/nodekeys"
	"github.com/gpupay/gpupay/sdk/settle"
	"github.com/gpupay/gpupay/sdk/sweep"
	"github.com/gpupay/gpupay/sdk/tower"
)

// Config says what a provider rents out, for how much, and what it risks. RPC to PricePerGPUHour are needed, and one of Source and
// Nodes; the zero value of every other field is its default.
type Config struct {
	// RPC is the JSON-RPC endpoint: http, https, ws or wss; several of one chain with commas between them.
	RPC string
	// Escrow is the ChannelEscrow contract.
	Escrow common.Address
	// Token is what renters pay in; all amounts are in its units.
	Token common.Address
	// Key is the payee's: it signs offers, records and settlements, and pays their gas.
	Key channel.Signer
	// Database is the path of the SQLite file, or postgres://.. for several gateways. It holds vouchers, which are money.
	Database string
	// PricePerGPUHour is in units of the token, such as "2.50".
	PricePerGPUHour string
	// Classes are the kinds of GPUs that are rented out, each with a price: one offer is made for each, and where there are several a
	// renter says which it wants. None if empty: then all GPUs must be of one kind.
	Classes []Class
	// Share has leases share the GPUs by slots, where there are no Classes.
	Share Share
	// Source meters the GPUs of this host.
	Source metering.Source
	// Allocator hands them out; a gpu.HostAllocator over Source if nil.
	Allocator gpu.Allocator

	Terms       Terms         // what the provider risks for a lease
	Deposits    Deposits      // what opens a channel
	Metering    Metering      // how GPU time is read and recorded
	Commands    Commands      // of the Allocator
	Records     Records       // what is kept of usage records, and for how long
	Chain       Chain         // how the chain is looked at
	Settlement  settle.Policy // when vouchers are fetched
	Payout      sweep.Policy  // moves what was settled to a cold address; nothing if zero
	X402        *X402         // takes payments of stock x402 clients too; nil: no new ones, and what was paid before is claimed
	Limits      Limits        // what strangers may cost: requests, waits and gas
	HTTP        HTTP          // where clients reach the provider
	Nodes       Nodes         // meter in place of Source and Allocator
	Watchtowers Watchtowers   // are told the newest vouchers

	// PastKeys are payee's keys from before Key, those of channels that are not closed yet: only the key that a channel names as its
	// payee can close it together with its payer. They sign closes, and the claims and refunds of channels of x402, which Key sends:
	// they need no coin. What is vouchered in our own channels is settled without them. All of it goes to the address that a channel
	// names.
	PastKeys []channel.Signer
	// Takeover is how long a gateway may be silent before others on its Database take its leases; 10 s if zero, at least 1 s.
	Takeover time.Duration
	// OnSettled hears of each settlement; may be nil.
	OnSettled func(settle.Settlement)
	// Log is slog.Default() if nil.
	Log *slog.Logger

	mounts []mount // schemes of tests, beside the provider's own
}

// Terms are what a provider risks for one lease, and what it publishes in its offer.
type Terms struct {
	// Credit is the service that is given and not vouchered, in GPU time. The offer says it in whole seconds: at least one, and four
	// of Metering.Tick. 60 s if zero.
	Credit time.Duration
	// DebtKept is how long what a payer owes on a closed channel, where no voucher can pay it any more, is off its credit: from the
	// channel's last lease on. Then it is written off, when the payer asks for its next lease. 24 h if zero; until the operator
	// forgives it (Server.Forgive) if negative.
	DebtKept time.Duration
	// MinTransfer is the least that is worth a transaction of the provider's, in units of the token: no top-up is sent for a renter,
	// no part of an x402 deposit given back and, unless a payer wants out, nothing fetched (Settlement.Dust) of less. Of one channel
	// the share of it is fetched that a row's gas is of a settlement's, some 23% (Settlement.LeastRow), or more. A tenth of
	// Deposits.Min if empty; "0" is no bound.
	MinTransfer string
	// MinVoucherDelta is the least by which a voucher must grow, in units of the token; it bounds how many signatures a payer has us
	// check and store. Renters are told it in each challenge; one that pays exactly what is charged, and a close's, may grow by less.
	// One base unit if empty, at most a quarter of what Credit is worth.
	MinVoucherDelta string
	// SuspendTimeout is after how long an unpaid lease ends, restarts included; 5 min if zero, not negative.
	SuspendTimeout time.Duration
	// OfferTTL is how long an offer stays good for a new lease, at most, and half of it at least; 24 h if zero, not negative.
	OfferTTL time.Duration
}

// Deposits are what opens a channel.
type Deposits struct {
	// Min is the least deposit that opens a channel, in units of the token: it should be worth the gas of settling it, and is at
	// least what of a channel is settled (Settlement.LeastRow). The price of ten minutes if empty; "0" is no bound:
	// then a new address has a new credit for no locked money.
	Min string
	// Timeout is how long a renter's request waits for Chain.Confirmations of its deposit; 60 s if zero, not negative.
	Timeout time.Duration
	// NoGasless sends no renters' ERC-3009 deposits: they need gas of their own.
	NoGasless bool
}

// Metering is how GPU time is read and recorded. The offer says Tick, MaxGap and RecordEvery in milliseconds, so that they are whole ones.
type Metering struct {
	// Tick is the time between readings; 1 s if zero.
	Tick time.Duration
	// MaxGap is the longest interval that is billed; 3 s if zero, at least two of Tick.
	MaxGap time.Duration
	// RecordEvery is the time between usage records; 5 s if zero, at least 50 ms and Tick.
	RecordEvery time.Duration
	// Key signs usage records; Config.Key if nil.
	Key metering.Signer
	// Clock is the system's if nil.
	Clock metering.Clock
}

// Commands bound what an Allocator runs.
type Commands struct {
	// Timeout is of one command; 30 s if zero, not negative.
	Timeout time.Duration
	// AliveEvery is the time between looks at whether what was allocated is alive, where the Allocator says (gpu.Liveness): dead time
	// of as much is billed. 10 s if zero, not negative.
	AliveEvery time.Duration
}

// Records are what is kept of usage records, and for how long.
type Records struct {
	// HighWater is the path of a file that remembers the newest usage record that was signed of each lease, so that a Database which
	// was restored from a backup is found out and signs no second record of one number. Back it up with the key, and do not restore
	// it with the database. Database with ".signed" behind it if empty; for PostgreSQL the metering key's address with ".signed"
	// behind it in $STATE_DIRECTORY, $XDG_STATE_HOME/gpupay or ~/.local/state/gpupay. Gateways on one host may share it.
	HighWater string
	// Retention is how long usage records are kept in the database after the last lease of their channel ended; for ever if zero, at
	// least a day. Then the channel's bundle is written into the directory Archive and its records are deleted; nothing is deleted of
	// a channel that is not closed and settled, or that is disputed. See Server.Prune.
	Retention time.Duration
	// Archive is the directory of those bundles; needed with Retention.
	Archive string
}

// Chain is how the chain is looked at, and what a transaction may cost.
type Chain struct {
	// ID refuses any other chain; not checked if zero.
	ID uint64
	// Confirmations is after how many blocks a deposit counts; 1 (the block it is in) if zero.
	Confirmations uint64
	// Finality is after how many blocks no re-org undoes one: what the chain says and these books do not know counts for good then.
	// 32 if zero.
	Finality uint64
	// Poll is the time between looks; 2 s if zero, not negative.
	Poll time.Duration
	// MinGrace refuses an escrow, or X402.WithdrawDelay, with less time to settle; chain.GraceFloor if zero: 2 h, on local chains
	// 10 min. Not negative.
	MinGrace time.Duration
	// ClockTolerance is the most that our clock and the chain's may differ; 2 min if zero, not negative.
	ClockTolerance time.Duration
	// MaxFee is the most that a transaction of ours offers for a unit of gas, in wei; chain.DefaultMaxFee of the chain if nil (500
	// gwei on most).
	MaxFee *big.Int
	// Backend is a client that is already connected, instead of RPC.
	Backend chain.Backend

	stuck, resend time.Duration // of the Sender of transactions, in tests; its own if zero
}

// HTTP is where clients reach the provider, and whom it believes about them.
type HTTP struct {
	// TrustedProxies are the reverse proxies in front of the provider, by address or network, such as "127.0.0.1" and "10.0.0.0/8".
	// By them, and by nobody else, is believed who a request is from (X-Forwarded-For, or Forwarded where that is missing) and
	// whether it came by TLS (X-Forwarded-Proto, or Forwarded): Limits count by that address. None if empty: then all clients of a
	// proxy are one.
	TrustedProxies []string
	// PublicURL is where clients reach the provider, such as "https://gpus.example.org", with the path that a proxy takes away: what
	// x402's offers name. As the request was addressed if empty.
	PublicURL string
	// AllowedOrigins are the web origins whose scripts may use the provider from a browser (CORS), such as "https://app.example.org".
	// All may if nil: nothing here goes by cookies, so that a script can do no more than its own keys can. None may if empty and not
	// nil.
	AllowedOrigins []string
	// Realm is of the challenges; "gpupay" if empty.
	Realm string
}

// Nodes meter in place of Source and Allocator, each on the host of its GPUs, and this gateway keeps what they state. Each signs with a
// key of its own, which Config.Key binds to the node's leases, one by one, and to no others.
type Nodes struct {
	// Links are how each is reached; none if empty.
	Links []NodeLink
	// Identity is a gateway's, that the nodes' nodekeys.CA issued.
	Identity nodekeys.Identity
}

// Watchtowers (see package tower) are told the newest vouchers, which anybody may see.
type Watchtowers struct {
	// URLs are theirs; none if empty.
	URLs []string
	// Every is how often they are told at most; 10 s if zero, not negative.
	Every time.Duration
}

const (
	defaultRecordEvery = 5 * time.Second
	defaultAliveEvery  = 10 * time.Second
)

// defaultDebtKept is how long a debt counts that no voucher can pay any more. A
// stranger has the credit with each new address, so that asking longer would keep
// nobody out but who is known.
const defaultDebtKept = 24 * time.Hour

// withDefaults fills in the defaults; check says what is missing.
func (c Config) withDefaults() Config {
	c.Terms.Credit = cmp.Or(c.Terms.Credit, time.Minute)
	c.Terms.DebtKept = cmp.Or(c.Terms.DebtKept, defaultDebtKept)
	c.Metering.Tick = cmp.Or(c.Metering.Tick, metering.DefaultTick)
	c.Metering.MaxGap = cmp.Or(c.Metering.MaxGap, metering.DefaultMaxGap)
	c.Metering.RecordEvery = cmp.Or(c.Metering.RecordEvery, defaultRecordEvery)
	c.Terms.SuspendTimeout = cmp.Or(c.Terms.SuspendTimeout, 5*time.Minute)
	c.Commands.Timeout = cmp.Or(c.Commands.Timeout, 30*time.Second)
	c.Commands.AliveEvery = cmp.Or(c.Commands.AliveEvery, defaultAliveEvery)
	c.Takeover = cmp.Or(c.Takeover, 10*time.Second)
	c.Terms.OfferTTL = cmp.Or(c.Terms.OfferTTL, 24*time.Hour)
	c.Chain.Confirmations = cmp.Or(c.Chain.Confirmations, 1)
	c.Chain.Finality = cmp.Or(c.Chain.Finality, 32)
	c.Chain.Poll = cmp.Or(c.Chain.Poll, 2*time.Second)
	c.Deposits.Timeout = cmp.Or(c.Deposits.Timeout, time.Minute)
	c.Chain.ClockTolerance = cmp.Or(c.Chain.ClockTolerance, 2*time.Minute)
	c.HTTP.Realm = cmp.Or(c.HTTP.Realm, "gpupay")
	if proxies, err := limit.ParseProxies(c.HTTP.TrustedProxies); err == nil && c.Limits.ClientIP == nil { // else check says what is wrong
		c.Limits.ClientIP = proxies.Client
	}
	c.Limits = c.Limits.withDefaults()
	if c.Metering.Key == nil {
		c.Metering.Key = c.Key
	}
	if c.Metering.Clock == nil {
		c.Metering.Clock = metering.System
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c
}

func (c Config) check() error {
	switch {
	case c.RPC == "" && c.Chain.Backend == nil:
		return errors.New("provider: RPC is empty: give the URL of a JSON-RPC endpoint")
	case c.Escrow == (common.Address{}):
		return errors.New("provider: Escrow is empty: give the address of the ChannelEscrow contract")
	case c.Token == (common.Address{}):
		return errors.New("provider: Token is empty: give the address of the token to be paid in")
	case c.Key == nil:
		return errors.New("provider: Key is nil: give the payee's key")
	case c.Database == "":
		return errors.New("provider: Database is empty: give the path of a file; it will hold vouchers, which are money")
	case c.Source == nil && len(c.Nodes.Links) == 0:
		return errors.New("provider: Source is nil: give nvml.Open(..) or, to try things out, sim.New(1)")
	case len(c.Nodes.Links) > 0 && (c.Source != nil || c.Allocator != nil):
		return errors.New("provider: Nodes meter: leave Source and Allocator nil, or run a node on this host, too")
	case len(c.Nodes.Links) > 0 && c.X402 != nil:
		return errors.New("provider: X402 is paid by windows that a node does not cut: leave Nodes.Links empty, or X402 nil")
	case c.Records.Retention < 0 || c.Records.Retention > 0 && c.Records.Retention < 24*time.Hour:
		return fmt.Errorf("provider: Records.Retention (%s) must be zero (for ever) or at least a day", c.Records.Retention)
	case c.Records.Retention > 0 && c.Records.Archive == "":
		return errors.New("provider: Records.Retention deletes usage records: name the directory Records.Archive, where they are written before")
	case c.Takeover < time.Second:
		return fmt.Errorf("provider: Takeover (%s) must be at least a second: less takes leases from gateways that are only slow", c.Takeover)
	case c.Metering.MaxGap < 2*c.Metering.Tick:
		return fmt.Errorf("provider: Metering.MaxGap (%s) must be at least two of Metering.Tick (%s): a reading that is a little late, or takes long, would bill nothing", c.Metering.MaxGap, c.Metering.Tick)
	case c.Metering.RecordEvery < c.Metering.Tick:
		return fmt.Errorf("provider: Metering.RecordEvery (%s) is shorter than Metering.Tick (%s)", c.Metering.RecordEvery, c.Metering.Tick)
	case c.Metering.RecordEvery < metering.MinRecordEvery:
		return fmt.Errorf("provider: Metering.RecordEvery (%s) must be at least %s: renters refuse more, which would fill their disks", c.Metering.RecordEvery, metering.MinRecordEvery)
	case c.Terms.Credit < time.Second || c.Terms.Credit%time.Second != 0:
		return fmt.Errorf("provider: Terms.Credit (%s) must be whole seconds, at least one: so the offer says it", c.Terms.Credit)
	case min(c.Metering.Tick, c.Metering.MaxGap, c.Metering.RecordEvery) < 0 || c.Metering.Tick%time.Millisecond != 0 || c.Metering.MaxGap%time.Millisecond != 0 || c.Metering.RecordEvery%time.Millisecond != 0:
		return fmt.Errorf("provider: Metering.Tick (%s), Metering.MaxGap (%s) and Metering.RecordEvery (%s) must be whole milliseconds: so the offer says them", c.Metering.Tick, c.Metering.MaxGap, c.Metering.RecordEvery)
	case c.Terms.Credit < 4*c.Metering.Tick:
		return fmt.Errorf("provider: Terms.Credit (%s) must be at least four ticks (%s): less suspends every lease at once", c.Terms.Credit, 4*c.Metering.Tick)
	}
	if _, err := limit.ParseProxies(c.HTTP.TrustedProxies); err != nil {
		return fmt.Errorf("provider: HTTP.TrustedProxies: %w", err)
	}
	if err := errors.Join(checkPublicURL(c.HTTP.PublicURL), cors.Origins(c.HTTP.AllowedOrigins).Check()); err != nil {
		return err
	}
	if err := tower.CheckURLs(c.Watchtowers.URLs); err != nil {
		return fmt.Errorf("provider: Watchtowers.URLs: %w", err)
	}
	own := []common.Address{c.Key.Address()}
	for _, key := range c.PastKeys {
		own = append(own, key.Address())
	}
	if err := c.Payout.Check(c.Token, c.Escrow, own...); err != nil {
		return fmt.Errorf("provider: Payout: %w", err)
	}
	return errors.Join(c.checkClasses(), c.checkShares(), c.checkTimes(), c.Settlement.Check(), c.Limits.check())
}

// checkTimes refuses times below zero, which nothing can wait for.
func (c Config) checkTimes() error {
	for _, time := range []struct {
		field string
		is    time.Duration
	}{
		{"Terms.SuspendTimeout", c.Terms.SuspendTimeout}, {"Terms.OfferTTL", c.Terms.OfferTTL}, {"Deposits.Timeout", c.Deposits.Timeout},
		{"Commands.Timeout", c.Commands.Timeout}, {"Commands.AliveEvery", c.Commands.AliveEvery}, {"Chain.Poll", c.Chain.Poll},
		{"Chain.MinGrace", c.Chain.MinGrace}, {"Chain.ClockTolerance", c.Chain.ClockTolerance}, {"Watchtowers.Every", c.Watchtowers.Every},
	} {
		if time.is < 0 {
			return fmt.Errorf("provider: %s (%s) must not be negative", time.field, time.is)
		}
	}
	return nil
}

// graceFloor is the least time to settle that is accepted of an escrow and given to x402's clients.
func (c Config) graceFloor(e *chain.Escrow) time.Duration {
	return cmp.Or(c.Chain.MinGrace, chain.GraceFloor(e.ChainID()))
}

// connect dials the chain and checks everything about it that could cost money later.
func (c Config) connect(ctx context.Context) (*chain.Escrow, *chain.Token, error) {
	backend := chain.Checked(c.Chain.Backend)
	if c.Chain.Backend == nil {
		var err error
		if backend, err = chain.Connect(ctx, c.RPC, c.Log); err != nil {
			return nil, nil, err
		}
	}
	if c.Chain.ID != 0 {
		if err := chain.CheckChainID(ctx, backend, c.Chain.ID); err != nil {
			return nil, nil, err
		}
	}
	escrow, err := chain.NewEscrow(ctx, backend, c.Escrow)
	if err != nil {
		return nil, nil, err
	}
	floor := c.graceFloor(escrow)
	if c.X402 != nil && c.X402.WithdrawDelay != 0 && c.X402.WithdrawDelay < floor {
		return nil, nil, fmt.Errorf("%w: X402.WithdrawDelay is %s, at least %s is needed on chain %d (Chain.MinGrace)", chain.ErrGrace, c.X402.WithdrawDelay, floor, escrow.ChainID())
	}
	if err := errors.Join(escrow.CheckGrace(floor), escrow.CheckClock(ctx, c.Chain.ClockTolerance), escrow.CheckHistory(ctx, c.Chain.Confirmations)); err != nil {
		return nil, nil, err
	}
	token, err := chain.NewToken(ctx, backend, c.Token)
	return escrow, token, err
}

// NodeLink is how a gateway reaches a node.
type NodeLink struct {
	Name string // as the node's identity was issued: leases are kept under it, so it stays when the address changes
	URL  string // https
}
