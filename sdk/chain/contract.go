package chain

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
)

// A Contract is an escrow contract as the payee's side needs it: to believe deposits, to notice withdrawals, and to fetch
// what was vouchered. Watcher, settler and payee drive any contract through it, whatever its scheme.
type Contract interface {
	Backend() Backend
	ChainID() uint64
	Address() common.Address
	// Domain is what vouchers for this contract are signed under; it holds terms of no other scheme.
	Domain() channel.Domain
	// Grace is the least time between a payer's wish to have its money back and its getting it.
	Grace() time.Duration

	// Confirmed reads channels; see Confirmed. It also returns the number of the newest block it read.
	Confirmed(ctx context.Context, ids []common.Hash, confirmations uint64) ([]Confirmed, uint64, error)
	// Fresh is Confirmed for one who keeps what it says without watching the chain: an answer from before one that a Fresh
	// read is asked for again, and is ErrBehind in the end.
	Fresh(ctx context.Context, ids []common.Hash, confirmations uint64) ([]Confirmed, uint64, error)
	// Touched lists the channels that the contract says anything about in the blocks from..to, both included.
	Touched(ctx context.Context, from, to uint64) (map[common.Hash]bool, error)
	// Record runs f while no other Record of this contract runs. Whoever reads views and stores them does both inside, so
	// that an older reading never lands on top of a newer one.
	Record(f func() error) error

	// SettlementCall settles the newest voucher of channels of one payee and one token in one transaction.
	SettlementCall(ctx context.Context, states []channel.State) (Call, error)
	// Skipped reads from a settlement's receipt which channels it left out.
	Skipped(receipt *types.Receipt) []Skipped
	// SettlementGas is about what a settlement and its payout cost, in gas, and what each channel in it costs besides, once
	// every channel and the payee have been paid before.
	SettlementGas() (batch, channel uint64)
	// PayoutCall fetches what settlements have set aside for a payee, and says how much that is: zero where nothing waits.
	PayoutCall(ctx context.Context, payee, token common.Address) (Call, Due, error)
}

// Due is what waits in a contract to be paid out, in base units: the most that one of two endpoints says.
type Due struct {
	uint256.Int
	Sure   uint256.Int // what both say
	Known  uint64      // the block as of which the one that is behind says it
	Newest uint64      // and the other
}

// due asks two endpoints what waits, as of the newest block of each.
func due(ctx context.Context, backend Backend, read func(ctx context.Context, b Backend, block *big.Int) (uint256.Int, error)) (Due, error) {
	said, err := two(ctx, backend, func(ctx context.Context, b Backend) (Due, error) {
		head, err := b.BlockNumber(ctx)
		if err != nil {
			return Due{}, fmt.Errorf("chain: reading the block number: %w", err)
		}
		amount, err := read(ctx, b, new(big.Int).SetUint64(head))
		return Due{amount, amount, head, head}, err
	})
	if err != nil {
		return Due{}, err
	}
	d := said[0].say
	for _, other := range said[1:] {
		o := other.say
		if o.Known == d.Known && !o.Eq(&d.Int) {
			contradict(backend, fmt.Sprintf("what is to be paid out at block %d", d.Known), said[0].by+" says "+d.Dec(), other.by+" says "+o.Dec())
		}
		if o.Gt(&d.Int) {
			d.Int = o.Int
		} else {
			d.Sure = o.Int
		}
		d.Known, d.Newest = min(d.Known, o.Known), max(d.Newest, o.Newest)
	}
	return d, nil
}

var _ Contract = (*Escrow)(nil)

// SettlementCall is SettleCall for one channel and SettleBatchCall for several. A channel whose signer is a contract
// account can only be settled alone.
func (p *packer) SettlementCall(_ context.Context, states []channel.State) (Call, error) {
	if len(states) == 1 {
		return p.SettleCall(states[0].Terms, states[0].Accepted, states[0].Signature), nil
	}
	return p.SettleBatchCall(states[0].Terms.Payee, states[0].Terms.Token, states)
}

// SettlementGas is what receipts say: see docs/contracts.md.
func (e *Escrow) SettlementGas() (batch, channel uint64) { return 38_500, 11_500 }

// recorder makes readings land in the order in which they were made, and refuses those that go back in time.
type recorder struct {
	mu sync.Mutex

	seen   sync.Mutex
	newest uint64    // the newest block that was read
	at     time.Time // when it was
}

// ErrBehind is an endpoint that answers for a block from before one that was read already. Books that went back to it
// would forget deposits that are there, and settlements that were made.
var ErrBehind = errors.New("the RPC endpoint is behind")

// What an endpoint is given to catch up. After behindFor the chain itself is taken to have gone back.
const (
	behindTries = 4
	behindPause = 50 * time.Millisecond
	behindFor   = time.Minute
)

// reached says whether a block is not from before one that was read.
func (r *recorder) reached(head uint64) error {
	r.seen.Lock()
	defer r.seen.Unlock()
	if head < r.newest && time.Since(r.at) < behindFor {
		return fmt.Errorf("%w: it answers for block %d, and %d was read before", ErrBehind, head, r.newest)
	}
	r.newest, r.at = head, time.Now()
	return nil
}

// Record runs f while no other Record runs.
func (r *recorder) Record(f func() error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return f()
}

// A Confirmed view separates what a payee must hear at once from what it may rely on.
type Confirmed struct {
	// View is what to act on: the deposit as of the confirmed block (never above the newest), and settlement, close
	// request and finality as of the newest block.
	View channel.ChainView
	// Latest is all of it as of the newest block; a deposit above View's waits for its confirmations.
	Latest channel.ChainView
	// Newer is what the endpoint that is further says alone of its newest block: nothing to rely on where it is Disputed.
	Newer channel.ChainView
	// Disputed is whether two endpoints say different things, be it that one is late: the cautious answer stands in View and
	// Latest until they agree, so the channel is to be read again.
	Disputed bool
	// Known is the newest block up to which all who were asked have read: what is disputed and happened before it, one of them
	// denies.
	Known uint64
}

// Pending reports whether the newest block says something that is not yet confirmed.
func (c Confirmed) Pending() bool { return !c.View.Deposit.Eq(&c.Latest.Deposit) }

// viewsAt reads n channels at a block of a backend. ErrNoContract says that there was no contract at that block.
type viewsAt func(ctx context.Context, backend Backend, block *big.Int) ([]channel.ChainView, error)

// A reading is what one endpoint says of channels.
type reading struct {
	head         uint64
	known        uint64 // the older head of two
	latest, deep []channel.ChainView
	newer        []channel.ChainView // latest, of the one of two that is further
	disputed     []bool              // where two endpoints say different things of the newest block of each; nil where one was asked
}

// fresh reads again while the answer is from before one that was read already, and is ErrBehind in the end.
func (r *recorder) fresh(ctx context.Context, read func() ([]Confirmed, uint64, error)) ([]Confirmed, uint64, error) {
	for try := 1; ; try++ {
		views, head, err := read()
		if err != nil {
			return nil, 0, err
		}
		if err = r.reached(head); err == nil {
			return views, head, nil
		}
		if try == behindTries || Pause(ctx, behindPause) != nil {
			return nil, 0, err
		}
	}
}

// confirmed reads channels at the newest block and at the one that has the given number of confirmations (1: the newest
// itself), and merges them. Where there are two endpoints, both are asked.
func confirmed(ctx context.Context, backend Backend, confirmations uint64, read viewsAt) ([]Confirmed, uint64, error) {
	back := max(confirmations, 1) - 1
	said, err := two(ctx, backend, func(ctx context.Context, b Backend) (reading, error) {
		head, err := b.BlockNumber(ctx)
		if err != nil {
			return reading{}, fmt.Errorf("chain: reading the block number: %w", err)
		}
		return readingAt(ctx, b, head, back, read)
	})
	if err != nil {
		return nil, 0, err
	}
	r := said[0].say
	if len(said) == 2 {
		r = agree(backend, said)
	}
	merged := make([]Confirmed, len(r.latest))
	for i := range r.latest {
		merged[i] = Confirmed{View: r.latest[i], Latest: r.latest[i], Newer: r.newer[i], Disputed: r.disputed != nil && r.disputed[i], Known: r.known}
		if r.deep[i].Deposit.Lt(&r.latest[i].Deposit) {
			merged[i].View.Deposit = r.deep[i].Deposit
		}
		if v := &merged[i].View; v.Settled.Gt(&v.Deposit) {
			v.Settled = v.Deposit // settled from money that is not confirmed itself
		}
	}
	return merged, r.head, nil
}

func readingAt(ctx context.Context, b Backend, head, back uint64, read viewsAt) (reading, error) {
	latest, err := read(ctx, b, new(big.Int).SetUint64(head))
	if err != nil {
		return reading{}, err
	}
	deep := slices.Clone(latest)
	if back > 0 {
		deep, err = read(ctx, b, new(big.Int).SetUint64(head-min(back, head)))
		if errors.Is(err, ErrNoContract) {
			deep, err = make([]channel.ChainView, len(latest)), nil // the contract is younger than that
		}
	}
	return reading{head: head, known: head, latest: latest, deep: deep, newer: latest}, err
}

// FarBehind is how many blocks lie between endpoints of which one is not merely a little late.
const FarBehind = 32

// agree merges what two endpoints say, whichever is further: a deposit counts as far as both have it confirmed, a close
// request of either is heard, and what is settled or over is what both say is. Where they say different things of one block,
// that is said; of two blocks, the one may merely be late.
func agree(backend Backend, said []statement[reading]) reading {
	far := newerFirst(said, func(r reading) uint64 { return r.head })
	newer, other := said[0], said[1]
	r, o := newer.say, other.say
	r.known, r.newer = o.head, slices.Clone(r.latest)
	if far {
		contradict(backend, "the newest block", fmt.Sprintf("%s is at %d", newer.by, r.head), fmt.Sprintf("%s at %d", other.by, o.head))
	}
	r.disputed = make([]bool, len(r.latest))
	for i := range r.latest {
		mine, theirs := &r.latest[i], o.latest[i]
		r.disputed[i] = *mine != theirs
		if r.head == o.head && r.disputed[i] {
			contradict(backend, fmt.Sprintf("channel %d of %d at block %d", i+1, len(r.latest), r.head),
				newer.by+" says "+describe(*mine), other.by+" says "+describe(theirs))
		}
		*mine = cautious(*mine, theirs)
		if o.deep[i].Deposit.Lt(&r.deep[i].Deposit) {
			r.deep[i].Deposit = o.deep[i].Deposit // the other is behind, or does not have it
		}
	}
	return r
}

// cautious is what a payee can rely on of what two endpoints say: it is warned by either, and of nothing that it has to
// fetch does one alone say that it is fetched or lost. The higher deposit is pending, for the deep views have the lower.
func cautious(a, b channel.ChainView) channel.ChainView {
	if b.Deposit.Gt(&a.Deposit) {
		a.Deposit = b.Deposit
	}
	if b.Settled.Lt(&a.Settled) {
		a.Settled = b.Settled
	}
	if a.CloseRequestedAt == 0 {
		a.CloseRequestedAt = b.CloseRequestedAt
	}
	a.Finalized = a.Finalized && b.Finalized
	return a
}

func describe(v channel.ChainView) string {
	return fmt.Sprintf("deposit %s, settled %s, close requested at %d, finalized %t", v.Deposit.Dec(), v.Settled.Dec(), v.CloseRequestedAt, v.Finalized)
}
