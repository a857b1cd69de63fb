package chain

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/big"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/rpc"

	"github.com/gpupay/gpupay/bindings"
	"github.com/gpupay/gpupay/channel"
)

// The escrow's EIP-712 domain, by which it is told from any other contract.
const (
	domainName    = "EVM Payment Channel"
	domainVersion = "1"
)

// MinGrace is the shortest grace period the contract can be deployed with.
const MinGrace = 10 * time.Minute

// publicGrace is the least grace period for which a payee should risk its vouchers on a public chain: twice the hour by
// which the block time of an Arbitrum chain may run ahead, and four times the half hour of an OP Stack chain.
const publicGrace = 2 * time.Hour

// GraceFloor is the least grace period that a payee should accept on a chain: two hours, and what the contract itself asks
// for on chains for development (31337 and 1337). Chains move their clocks by minutes to an hour, and a settlement has to be
// seen and mined besides. A sequencer that leaves a payee out for as long as it can takes up to a day more: see
// docs/contracts.md for what to deploy with.
func GraceFloor(chainID uint64) time.Duration {
	switch chainID {
	case 31337, 1337:
		return MinGrace
	default:
		return publicGrace
	}
}

// maxGrace is the most seconds that a time.Duration holds, 292 years. The contract can be deployed with 34,000 years,
// which would count as whatever is left of it.
var maxGrace = big.NewInt(math.MaxInt64 / int64(time.Second))

// An Escrow is one deployed escrow contract, checked when it was made. It is safe for concurrent use.
type Escrow struct {
	packer
	backend Backend
	chainID uint64
	grace   time.Duration
	domain  channel.Domain

	recorder
}

// NewEscrow checks that an escrow contract of ours lives at the address and reads its constants. The error is one
// line and wraps ErrUnreachable, ErrNoContract or ErrNotEscrow. Of several endpoints two are asked (Agreed), whatever is read
// of the contract later.
func NewEscrow(ctx context.Context, backend Backend, address common.Address) (*Escrow, error) {
	id, err := chainID(ctx, backend)
	if err != nil {
		return nil, err
	}
	e := &Escrow{
		packer:  packer{bindings.NewChannelEscrow(), address},
		backend: Agreed(backend),
		chainID: id,
		domain:  channel.EscrowDomain(id, address),
	}
	code, err := e.backend.CodeAt(ctx, address, nil)
	if err != nil {
		return nil, Unread("the code of "+address.String(), err)
	}
	if len(code) == 0 {
		return nil, fmt.Errorf("%w: %s on chain %d; check the escrow's address and that the endpoint serves the right chain", ErrNoContract, address, id)
	}
	if err := e.identify(ctx); err != nil {
		return nil, err
	}
	e.backend = backend
	return e, nil
}

// identify reads what only our escrow answers: its EIP-712 domain bound to itself, and a grace period.
func (e *Escrow) identify(ctx context.Context) error {
	out, err := e.call(ctx, e.abi.PackEip712Domain(), nil)
	if err != nil {
		return e.notOurs(err)
	}
	domain, err := e.abi.UnpackEip712Domain(out)
	if err != nil {
		return e.notOurs(err)
	}
	if domain.Name != domainName || domain.Version != domainVersion || domain.VerifyingContract != e.address ||
		domain.ChainId == nil || domain.ChainId.Cmp(new(big.Int).SetUint64(e.chainID)) != 0 {
		return e.notOurs(fmt.Errorf("its EIP-712 domain is %q version %q on chain %v", domain.Name, domain.Version, domain.ChainId))
	}
	out, err = e.call(ctx, e.abi.PackGracePeriod(), nil)
	if err != nil {
		return e.notOurs(err)
	}
	grace, err := e.abi.UnpackGracePeriod(out)
	if err != nil {
		return e.notOurs(err)
	}
	if grace.Cmp(maxGrace) > 0 {
		return e.notOurs(fmt.Errorf("its grace period of %s seconds is for ever", grace))
	}
	e.grace = time.Duration(grace.Int64()) * time.Second
	return e.CheckGrace(MinGrace)
}

// notOurs tells a contract that is not an escrow from an endpoint that failed meanwhile.
func (e *Escrow) notOurs(err error) error {
	if isTransport(err) {
		return fmt.Errorf("reading the contract at %s: %w", e.address, err)
	}
	return fmt.Errorf("%w: %s on chain %d: %w; check the escrow's address and the chain", ErrNotEscrow, e.address, e.chainID, err)
}

// ChainID is the chain the contract lives on.
func (e *Escrow) ChainID() uint64 { return e.chainID }

// Address is the contract's address.
func (e *Escrow) Address() common.Address { return e.address }

// Grace is how long a payer waits between asking to close and withdrawing: the time a payee has to settle.
func (e *Escrow) Grace() time.Duration { return e.grace }

// Domain is what vouchers for this contract are signed under.
func (e *Escrow) Domain() channel.Domain { return e.domain }

// Backend is the chain behind the contract.
func (e *Escrow) Backend() Backend { return e.backend }

// CheckGrace refuses a contract whose grace period is under least: a payee that cannot settle within it loses what
// the last vouchers promised.
func (e *Escrow) CheckGrace(least time.Duration) error {
	if e.grace >= least {
		return nil
	}
	return fmt.Errorf("%w: escrow %s gives %s between a close request and the withdrawal, at least %s is needed; use another escrow", ErrGrace, e.address, e.grace, least)
}

// CheckClock refuses a local clock further than tolerance from the chain's. Authorizations and deadlines are judged by
// the chain's clock. A chain that stopped making blocks looks the same from here, and is no better.
func (e *Escrow) CheckClock(ctx context.Context, tolerance time.Duration) error {
	now, err := e.Now(ctx)
	if err != nil {
		return err
	}
	return CheckClock(time.Now(), now, e.chainID, tolerance)
}

// CheckClock refuses a local clock further than tolerance from a chain's, and says which is behind.
func CheckClock(ours, chains time.Time, chainID uint64, tolerance time.Duration) error {
	off, side := ours.Sub(chains), "ahead of"
	if off.Abs() <= tolerance {
		return nil
	}
	if off < 0 {
		side = "behind"
	}
	return fmt.Errorf("%w: this machine's clock is %s %s that of chain %d (%s is tolerated): nothing is signed; set this machine's clock, or check that the node is in step",
		ErrClock, off.Abs().Round(time.Second), side, chainID, tolerance)
}

// ErrHistory is an endpoint that keeps too little old state.
var ErrHistory = errors.New("the endpoint keeps too little state")

// CheckHistory refuses an endpoint that cannot read the contract as of the block that has the confirmations that a deposit
// needs: each deposit would be refused.
func (e *Escrow) CheckHistory(ctx context.Context, confirmations uint64) error {
	_, _, err := e.Confirmed(ctx, []common.Hash{{}}, confirmations)
	if err == nil || isTransport(err) || errors.Is(err, ErrUnreachable) {
		return err
	}
	return fmt.Errorf("%w: a deposit needs %d confirmations, and the contract cannot be read that many blocks ago (%s); ask for fewer, or use an endpoint with a longer history",
		ErrHistory, confirmations, line(err.Error()))
}

// Times is what two endpoints hold the time to be, the earlier first; the same twice where only one answers. One that has
// stopped following the chain, or lies, must have nothing put off by the earlier one and nothing given up by the later one.
func (e *Escrow) Times(ctx context.Context) (earliest, latest time.Time, err error) {
	said, err := two(ctx, e.backend, Now)
	if err != nil {
		return time.Time{}, time.Time{}, err
	}
	earliest, latest = said[0].say, said[len(said)-1].say
	if latest.Before(earliest) {
		earliest, latest = latest, earliest
	}
	return earliest, latest, nil
}

// Now is the chain's idea of the time.
func (e *Escrow) Now(ctx context.Context) (time.Time, error) { return Now(ctx, e.backend) }

// Now is a chain's idea of the time: that of the block in the making where the node tells, else of the newest one.
func Now(ctx context.Context, backend Backend) (time.Time, error) {
	head, err := backend.HeaderByNumber(ctx, nil)
	if err != nil {
		return time.Time{}, Unread("the newest block", err)
	}
	if pending, err := backend.HeaderByNumber(ctx, big.NewInt(int64(rpc.PendingBlockNumber))); err == nil && pending.Time > head.Time {
		head = pending
	}
	return time.Unix(int64(head.Time), 0), nil
}

// CheckChainID refuses an endpoint that serves another chain than the wanted one.
func CheckChainID(ctx context.Context, backend Backend, want uint64) error {
	got, err := chainID(ctx, backend)
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("%w: the endpoint serves chain %d, not %d; check the RPC URL", ErrChainID, got, want)
	}
	return nil
}

func chainID(ctx context.Context, backend Backend) (uint64, error) {
	id, err := backend.ChainID(ctx)
	if err != nil {
		return 0, Unread("the chain id", err)
	}
	if !id.IsUint64() {
		return 0, fmt.Errorf("%w: chain id %s is beyond 64 bits", ErrChainID, id)
	}
	return id.Uint64(), nil
}

// call reads the contract at a block, the newest if nil.
func (e *Escrow) call(ctx context.Context, data []byte, block *big.Int) ([]byte, error) {
	return e.callOn(ctx, e.backend, data, block)
}

func (e *Escrow) callOn(ctx context.Context, backend Backend, data []byte, block *big.Int) ([]byte, error) {
	out, err := backend.CallContract(ctx, ethereum.CallMsg{To: &e.address, Data: data}, block)
	if err != nil {
		return nil, decode(err)
	}
	return out, nil
}
