package sdk

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
	"github.com/gpupay/gpupay/sdk/tower"
)

// ProviderConfig says what a provider rents out, for how much, and what it
// risks. The fields of the first group are needed; the zero value of every
// other field is its default.
type ProviderConfig struct {
	RPC             string         // JSON-RPC endpoint: http, https, ws or wss; several of one chain with commas between them
	Escrow          common.Address // the ChannelEscrow contract
	Token           common.Address // what renters pay in
	Key             channel.Signer // the payee's: signs offers, records and settlements, and pays their gas
	Database        string         // path of the SQLite file, or postgres://.. for several gateways; it holds vouchers, which are money
	PricePerGPUHour string         // in units of the token, such as "2.50"
	Source          metering.Source
	Allocator       gpu.Allocator // a gpu.HostAllocator over Source if nil

	// HighWater is the path of a file that remembers the newest usage record that
	// was signed of each lease, so that a Database which was restored from a backup
	// is found out and signs no second record of one number. Back it up with the
	// key, and do not restore it with the database. Database with ".signed" behind
	// it if empty; for PostgreSQL the metering key's address with ".signed" behind it
	// in $STATE_DIRECTORY, $XDG_STATE_HOME/gpupay or ~/.local/state/gpupay. Gateways
	// on one host may share it.
	HighWater string

	// Retention is how long usage records are kept in the database after the last
	// lease of their channel ended; for ever if zero, at least a day. Then the
	// channel's bundle is written into the directory Archive and its records are
	// deleted; nothing is deleted of a channel that is not closed and settled, or
	// that is disputed. See Provider.Prune.
	Retention time.Duration
	Archive   string

	// PastKeys are payee's keys from before Key, those of channels that are not
	// closed yet: only the key that a channel names as its payee can close it
	// together with its payer. They sign closes, and the claims and refunds of
	// channels of x402, which Key sends: they need no coin. What is vouchered in our
	// own channels is settled without them. All of it goes to the address that a
	// channel names.
	PastKeys []channel.Signer

	// Nodes meter in place of Source and Allocator, each on the host of its GPUs,
	// and this gateway keeps what they state. Each signs with a key of its own,
	// which Key binds to the node's leases, one by one, and to no others.
	Nodes        []NodeLink
	NodeIdentity nodekeys.Identity // a gateway's, that the nodes' nodekeys.CA issued

	// What the provider risks for one lease: service that was given and not
	// vouchered. Also published in the offer, so that it is whole seconds, at least
	// one and four of Tick. 60 s of GPU time if zero.
	Credit time.Duration
	// How long what a payer owes on a closed channel, where no voucher can pay it any
	// more, is off its credit: from the channel's last lease on. Then it is written
	// off, when the payer asks for its next lease. 24 h if zero; until the operator
	// forgives it (Provider.Forgive) if negative.
	DebtKept time.Duration
	// The least deposit that opens a channel, in units of the token: it should
	// be worth the gas of settling it, and is at least what of a channel is settled
	// (Settlement.LeastRow). The price of ten minutes if empty.
	MinDeposit string
	// The least that is worth a transaction of the provider's, in units of the
	// token: no top-up is sent for a renter, no part of an x402 deposit given back
	// and, unless a payer wants out, nothing fetched (Settlement.Dust) of less. Of
	// one channel the share of it is fetched that a row's gas is of a settlement's,
	// some 23% (Settlement.LeastRow), or more. A tenth of MinDeposit if empty; "0"
	// is no bound.
	MinTransfer string
	// The least by which a voucher must grow, in units of the token; it bounds how
	// many signatures a payer has us check and store. Renters are told it in each
	// challenge; one that pays exactly what is charged, and a close's, may grow by less.
	// One base unit if empty, at most a quarter of what Credit is worth.
	MinVoucherDelta string

	// The offer says these in milliseconds, so that they are whole ones.
	Tick           time.Duration // between readings; 1 s if zero
	MaxGap         time.Duration // a longer interval is not billed; 3 s if zero, at least two of Tick
	RecordEvery    time.Duration // between usage records; 5 s if zero, at least 50 ms and Tick
	SuspendTimeout time.Duration // an unpaid lease ends after it, restarts included; 5 min if zero
	CallTimeout    time.Duration // of an allocator's command; 30 s if zero
	AliveEvery     time.Duration // between looks at whether what was allocated is alive, where the Allocator says (Liveness): dead time of as much is billed; 10 s if zero
	Takeover       time.Duration // how long a gateway may be silent before others on its database take its leases; 10 s if zero
	OfferTTL       time.Duration // how long an offer stays good for a new lease, at most, and half of it at least; 24 h if zero

	ChainID        uint64        // refuse any other chain; not checked if zero
	Confirmations  uint64        // before a deposit counts; 1 (the block it is in) if zero
	Finality       uint64        // blocks that no re-org undoes: what the chain says and these books do not know counts for good after so many; 32 if zero
	Poll           time.Duration // between looks at the chain; 2 s if zero
	OpenTimeout    time.Duration // how long a renter's request waits for them; 60 s if zero
	NoGasless      bool          // do not send renters' ERC-3009 deposits: they need gas of their own
	MinGrace       time.Duration // refuse an escrow, or X402.WithdrawDelay, with less time to settle; chain.GraceFloor if zero: 2 h, on local chains 10 min
	ClockTolerance time.Duration // between our clock and the chain's; 2 min if zero
	// The most that a transaction of ours offers for a unit of gas, in wei;
	// chain.DefaultMaxFee of the chain if nil (500 gwei on most).
	MaxFee     *big.Int
	Settlement settle.Policy
	X402       *X402Config             // takes payments of stock x402 clients too; nil: it does not
	Limits     Limits                  // what strangers may cost: requests, waits and gas
	OnSettled  func(settle.Settlement) // after each settlement; may be nil

	// TrustedProxies are the reverse proxies in front of the provider, by address or
	// network, such as "127.0.0.1" and "10.0.0.0/8". By them, and by nobody else, is
	// believed who a request is from (X-Forwarded-For, or Forwarded where that is
	// missing) and whether it came by TLS (X-Forwarded-Proto, or Forwarded): Limits
	// count by that address. None if empty: then all clients of a proxy are one.
	TrustedProxies []string
	// PublicURL is where clients reach the provider, such as
	// "https://gpus.example.org", with the path that a proxy takes away: what x402's
	// offers name. As the request was addressed if empty.
	PublicURL string
	// AllowedOrigins are the web origins whose scripts may use the provider from a
	// browser (CORS), such as "https://app.example.org". All may if nil: nothing here
	// goes by cookies, so that a script can do no more than its own keys can. None
	// may if empty and not nil.
	AllowedOrigins []string

	Watchtowers     []string      // URLs of watchtowers (see package tower) that are told the newest vouchers, which anybody may see
	WatchtowerEvery time.Duration // how often at most; 10 s if zero

	MeterKey metering.Signer // signs usage records; Key if nil
	Realm    string          // of the challenges; "gpupay" if empty
	Clock    metering.Clock  // the system's if nil
	Log      *slog.Logger    // slog.Default() if nil
	Backend  chain.Backend   // instead of RPC: a client that is already connected

	stuck, resend time.Duration // of the Sender of transactions, in tests; its own if zero
	mounts        []mount       // schemes beside those of the product, in tests
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
func (c ProviderConfig) withDefaults() ProviderConfig {
	c.Credit = cmp.Or(c.Credit, time.Minute)
	c.DebtKept = cmp.Or(c.DebtKept, defaultDebtKept)
	c.Tick = cmp.Or(c.Tick, metering.DefaultTick)
	c.MaxGap = cmp.Or(c.MaxGap, metering.DefaultMaxGap)
	c.RecordEvery = cmp.Or(c.RecordEvery, defaultRecordEvery)
	c.SuspendTimeout = cmp.Or(c.SuspendTimeout, 5*time.Minute)
	c.CallTimeout = cmp.Or(c.CallTimeout, 30*time.Second)
	c.AliveEvery = cmp.Or(c.AliveEvery, defaultAliveEvery)
	c.Takeover = cmp.Or(c.Takeover, 10*time.Second)
	c.OfferTTL = cmp.Or(c.OfferTTL, 24*time.Hour)
	c.Confirmations = cmp.Or(c.Confirmations, 1)
	c.Finality = cmp.Or(c.Finality, 32)
	c.Poll = cmp.Or(c.Poll, 2*time.Second)
	c.OpenTimeout = cmp.Or(c.OpenTimeout, time.Minute)
	c.ClockTolerance = cmp.Or(c.ClockTolerance, 2*time.Minute)
	c.Realm = cmp.Or(c.Realm, "gpupay")
	if proxies, err := limit.ParseProxies(c.TrustedProxies); err == nil && c.Limits.ClientIP == nil { // else check says what is wrong
		c.Limits.ClientIP = proxies.Client
	}
	c.Limits = c.Limits.withDefaults()
	if c.MeterKey == nil {
		c.MeterKey = c.Key
	}
	if c.Clock == nil {
		c.Clock = metering.System
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c
}

func (c ProviderConfig) check() error {
	switch {
	case c.RPC == "" && c.Backend == nil:
		return errors.New("provider: RPC is empty: give the URL of a JSON-RPC endpoint")
	case c.Escrow == (common.Address{}):
		return errors.New("provider: Escrow is empty: give the address of the ChannelEscrow contract")
	case c.Token == (common.Address{}):
		return errors.New("provider: Token is empty: give the address of the token to be paid in")
	case c.Key == nil:
		return errors.New("provider: Key is nil: give the payee's key")
	case c.Database == "":
		return errors.New("provider: Database is empty: give the path of a file; it will hold vouchers, which are money")
	case c.Source == nil && len(c.Nodes) == 0:
		return errors.New("provider: Source is nil: give nvml.Open(..) or, to try things out, sim.New(1)")
	case len(c.Nodes) > 0 && (c.Source != nil || c.Allocator != nil):
		return errors.New("provider: Nodes meter: leave Source and Allocator nil, or run a node on this host, too")
	case len(c.Nodes) > 0 && c.X402 != nil:
		return errors.New("provider: X402 is paid by windows that a node does not cut: leave Nodes empty, or X402 nil")
	case c.Retention < 0 || c.Retention > 0 && c.Retention < 24*time.Hour:
		return fmt.Errorf("provider: Retention (%s) must be zero (for ever) or at least a day", c.Retention)
	case c.Retention > 0 && c.Archive == "":
		return errors.New("provider: Retention deletes usage records: name the directory Archive, where they are written before")
	case c.Takeover < time.Second:
		return fmt.Errorf("provider: Takeover (%s) must be at least a second: less takes leases from gateways that are only slow", c.Takeover)
	case c.AliveEvery < 0:
		return fmt.Errorf("provider: AliveEvery (%s) must not be negative", c.AliveEvery)
	case c.MaxGap < 2*c.Tick:
		return fmt.Errorf("provider: MaxGap (%s) must be at least two of Tick (%s): a reading that is a little late, or takes long, would bill nothing", c.MaxGap, c.Tick)
	case c.RecordEvery < c.Tick:
		return fmt.Errorf("provider: RecordEvery (%s) is shorter than Tick (%s)", c.RecordEvery, c.Tick)
	case c.RecordEvery < metering.MinRecordEvery:
		return fmt.Errorf("provider: RecordEvery (%s) must be at least %s: renters refuse more, which would fill their disks", c.RecordEvery, metering.MinRecordEvery)
	case c.Credit < time.Second || c.Credit%time.Second != 0:
		return fmt.Errorf("provider: Credit (%s) must be whole seconds, at least one: so the offer says it", c.Credit)
	case min(c.Tick, c.MaxGap, c.RecordEvery) < 0 || c.Tick%time.Millisecond != 0 || c.MaxGap%time.Millisecond != 0 || c.RecordEvery%time.Millisecond != 0:
		return fmt.Errorf("provider: Tick (%s), MaxGap (%s) and RecordEvery (%s) must be whole milliseconds: so the offer says them", c.Tick, c.MaxGap, c.RecordEvery)
	case c.Credit < 4*c.Tick:
		return fmt.Errorf("provider: Credit (%s) must be at least four ticks (%s): less suspends every lease at once", c.Credit, 4*c.Tick)
	}
	if _, err := limit.ParseProxies(c.TrustedProxies); err != nil {
		return fmt.Errorf("provider: TrustedProxies: %w", err)
	}
	if err := errors.Join(checkPublicURL(c.PublicURL), cors.Origins(c.AllowedOrigins).Check()); err != nil {
		return err
	}
	if err := tower.CheckURLs(c.Watchtowers); err != nil {
		return fmt.Errorf("provider: Watchtowers: %w", err)
	}
	return errors.Join(c.Settlement.Check(), c.Limits.check())
}

// connect dials the chain and checks everything about it that could cost
// money later.
// graceFloor is the least time to settle that is accepted of an escrow and given to x402's clients.
func (c ProviderConfig) graceFloor(e *chain.Escrow) time.Duration {
	return cmp.Or(c.MinGrace, chain.GraceFloor(e.ChainID()))
}

func (c ProviderConfig) connect(ctx context.Context) (*chain.Escrow, *chain.Token, error) {
	backend := chain.Checked(c.Backend)
	if c.Backend == nil {
		var err error
		if backend, err = chain.Connect(ctx, c.RPC, c.Log); err != nil {
			return nil, nil, err
		}
	}
	if c.ChainID != 0 {
		if err := chain.CheckChainID(ctx, backend, c.ChainID); err != nil {
			return nil, nil, err
		}
	}
	escrow, err := chain.NewEscrow(ctx, backend, c.Escrow)
	if err != nil {
		return nil, nil, err
	}
	floor := c.graceFloor(escrow)
	if c.X402 != nil && c.X402.WithdrawDelay != 0 && c.X402.WithdrawDelay < floor {
		return nil, nil, fmt.Errorf("%w: X402.WithdrawDelay is %s, at least %s is needed on chain %d (MinGrace)", chain.ErrGrace, c.X402.WithdrawDelay, floor, escrow.ChainID())
	}
	if err := errors.Join(escrow.CheckGrace(floor), escrow.CheckClock(ctx, c.ClockTolerance), escrow.CheckHistory(ctx, c.Confirmations)); err != nil {
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
