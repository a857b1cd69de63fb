package x402client

import (
	"context"
	"crypto/rand"
	"fmt"
	"math/big"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// defaultDepositRequests is for how many requests is deposited where nobody says how much.
const defaultDepositRequests = 10

// fund makes sure that the channel covers a voucher. It returns the deposit that must go with it, if one must.
func (b *payment) fund(ctx context.Context, most uint256.Int) (*x402.Deposit, error) {
	if b.account.Deposit != nil {
		if under, err := b.depositInFlight(ctx); err != nil {
			return nil, err
		} else if under {
			return b.resendDeposit(ctx, most)
		}
	}
	if !b.fresh {
		paid, err := b.x.payer.State(ctx, b.id)
		if err != nil {
			return nil, err
		}
		if !most.Gt(&paid.Deposit) {
			return nil, nil
		}
	}
	_, view, err := b.observe(ctx) // others may have deposited, and a receiver may have refunded
	if err != nil || !most.Gt(&view.Deposit) {
		return nil, err
	}
	if view.CloseRequestedAt != 0 {
		return nil, fmt.Errorf("channel %s: %w: a withdrawal is pending: finish Leave before paying on", b.id, channel.ErrClosing)
	}
	return b.deposit(ctx, view.Deposit, most)
}

// depositInFlight reports whether a deposit that was signed may still arrive, and if not records what became of it. It
// has arrived when it was used and the channel shows it; it cannot arrive any more when its time is over by the chain's
// clock and by ours. The time is read first, so that the state is no older.
func (b *ledger) depositInFlight(ctx context.Context) (bool, error) {
	a := b.account.Deposit.Authorization
	over, err := b.x.over(ctx, uint64(a.ValidBefore))
	if err != nil {
		return false, err
	}
	used, err := b.x.w.Token.AuthorizationUsed(ctx, b.terms.Payer, channel.DepositNonce(b.id, common.Hash(a.Salt)))
	if err != nil {
		return false, err
	}
	arrived := false
	if used {
		if arrived, err = b.confirmDeposit(ctx); err != nil {
			return false, err
		}
	}
	if !arrived && !over {
		return true, nil
	}
	if !arrived {
		_, most, err := b.held(ctx)
		if err != nil {
			return false, err
		}
		if b.x.w.Alone { // the caps go on counting it: one endpoint alone says that it did not arrive
			nonce, until := channel.DepositNonce(b.id, common.Hash(a.Salt)), time.Unix(int64(a.ValidBefore), 0)
			if err := b.x.payer.Unseen(ctx, b.terms, nonce, b.account.Deposit.Amount.Int, until); err != nil {
				return false, err
			}
		}
		if err := b.x.payer.Fund(ctx, b.id, most); err != nil {
			return false, err
		}
	}
	b.account.Deposit = nil
	return false, b.save(ctx)
}

// over reports whether a time has passed on the chain, in a block with the wanted confirmations, and on our own clock:
// an endpoint that lies about the time does not have a second deposit signed beside one that is still good.
func (x *Client) over(ctx context.Context, at uint64) (bool, error) {
	if uint64(x.w.Now().Unix()) < at {
		return false, nil
	}
	head, err := x.w.Backend.HeaderByNumber(ctx, nil)
	if err == nil && head.Number.Uint64() >= x.w.Confirmations {
		behind := new(big.Int).SetUint64(x.w.Confirmations - 1)
		head, err = x.w.Backend.HeaderByNumber(ctx, behind.Sub(head.Number, behind))
	}
	if err != nil {
		return false, chain.Unread("the time of a block", err)
	}
	return head.Time >= at, nil
}

// lagTries is how often a node is asked again that does not show a deposit which
// another one has: without it, the deposit would be made twice.
const lagTries = 3

// confirmDeposit records what a channel holds once its deposit was used, and reports
// whether that is all that was meant for it.
func (b *ledger) confirmDeposit(ctx context.Context) (bool, error) {
	for try := 0; ; try++ {
		paid, _, err := b.observe(ctx)
		if err != nil || paid.Authorized.IsZero() {
			return err == nil, err
		}
		if try == lagTries {
			return false, nil
		}
		if err := chain.Pause(ctx, b.x.w.Poll); err != nil {
			return false, err
		}
	}
}

// resendDeposit returns a deposit that is under way, to be sent once more.
func (b *ledger) resendDeposit(ctx context.Context, most uint256.Int) (*x402.Deposit, error) {
	_, view, err := b.observe(ctx)
	if err != nil {
		return nil, err
	}
	var total uint256.Int
	if total.Add(&view.Deposit, &b.account.Deposit.Amount.Int); most.Gt(&total) {
		return nil, fmt.Errorf("channel %s: %w: one of %s is on its way and does not cover the request: wait until it arrives or expires",
			b.id, wallet.ErrDeposit, b.x.w.Format(b.account.Deposit.Amount.Int))
	}
	return b.account.Deposit, b.x.payer.Fund(ctx, b.id, total)
}

// deposit signs one: enough for a voucher, and what is usual beside it, within
// the caps. It is on disk before it leaves.
func (b *payment) deposit(ctx context.Context, before, most uint256.Int) (*x402.Deposit, error) {
	value, err := b.depositSize(ctx, before, most)
	if err != nil {
		return nil, err
	}
	if err := b.afford(ctx, value); err != nil {
		return nil, err
	}
	d := &x402.Deposit{Amount: wire.NewAmount(value)}
	_, _ = rand.Read(d.Authorization.Salt[:]) // never fails
	if d.Authorization.ValidBefore, err = b.validBefore(ctx); err != nil {
		return nil, err
	}
	if err := b.enter(ctx); err != nil {
		return nil, err
	}
	if _, err := b.x.payer.Reopen(ctx, b.id); err != nil { // one that was left before: nobody holds a request to close it
		return nil, err
	}
	var total uint256.Int
	total.Add(&before, &value)
	if err := b.x.payer.Fund(ctx, b.id, total); err != nil {
		return nil, err
	}
	fault.Point(fault.TopUpStored)
	if err := b.authorize(ctx, d); err != nil {
		return nil, err
	}
	b.account.Deposit = d
	if err := b.save(ctx); err != nil {
		return nil, err
	}
	fault.Point(fault.TopUpSigned)
	return d, nil
}

// depositSize is how much to deposit.
func (b *payment) depositSize(ctx context.Context, before, most uint256.Int) (value uint256.Int, err error) {
	limit, cap, err := b.x.payer.Room(ctx, b.terms)
	if err != nil {
		return value, err
	}
	var room, needed, least uint256.Int
	if before.Lt(&limit) {
		room.Sub(&limit, &before)
	}
	needed.Sub(&most, &before)
	if hint := b.offer.Extra.MinDeposit; hint != nil {
		least = hint.Int
	}
	if value = b.x.deposit; value.IsZero() {
		value = u256.Min(b.defaultDeposit(needed, least), u256.Max(room, least))
	}
	units := b.x.w.Format
	switch {
	case value.Lt(&least):
		return value, fmt.Errorf("channel %s: %w: it is %s, the server wants at least %s", b.id, wallet.ErrDeposit, units(value), units(least))
	case value.Gt(&room):
		return value, fmt.Errorf("channel %s: %w: %s on top of %s, and %s leaves room for %s: %w",
			b.id, wallet.ErrDeposit, units(value), units(before), wallet.CapField(cap), units(room), b.capped(cap, before, value))
	case value.Lt(&needed):
		return value, fmt.Errorf("channel %s: %w: it is %s, the request needs %s", b.id, wallet.ErrDeposit, units(value), units(needed))
	}
	return value, nil
}

// defaultDeposit is what is deposited where the renter did not say how much.
func (b *payment) defaultDeposit(needed, least uint256.Int) (value uint256.Int) {
	if value = least; value.IsZero() {
		value.Mul(&b.offer.Amount.Int, uint256.NewInt(defaultDepositRequests)) // no overflow: amounts have 96 bits
	}
	return u256.Max(value, needed)
}

// capped is the refusal that Fund would give, before anything is kept.
func (b *ledger) capped(cap string, before, value uint256.Int) error {
	caps, wanted := b.x.payer.Caps, uint256.Int{}
	limit := map[string]uint256.Int{channel.CapChannel: caps.PerChannel, channel.CapPayee: caps.PerPayee, channel.CapDay: caps.PerDay}[cap]
	return &channel.CapError{Channel: b.id, Cap: cap, Limit: limit, Wanted: *wanted.Add(&before, &value)}
}

// afford reports a deposit that cannot work, before it is signed.
func (b *ledger) afford(ctx context.Context, value uint256.Int) error {
	balance, err := b.x.w.Token.Balance(ctx, b.terms.Payer)
	if err != nil {
		return err
	}
	if balance.Lt(&value) {
		return fmt.Errorf("%w: %s has %s, the deposit is %s", wallet.ErrBalance, b.terms.Payer, b.x.w.Format(balance), b.x.w.Format(value))
	}
	able, err := b.x.w.Token.SupportsAuthorization(ctx)
	if err == nil && !able {
		err = fmt.Errorf("%w: token %s has no ERC-3009, by which x402 deposits", ErrNotOffered, b.x.w.Token.Address)
	}
	return err
}

// validBefore is until when the server may draw a deposit: as long as it asks for, but no longer than a deposit is ever
// left open, by the later of the chain's clock and ours. Servers check it by their own. A chain that is further from
// our clock than the wallet's Chain.ClockTolerance is not believed: its endpoint, or our own clock, would have deposits signed that are good for
// days or years.
func (b *payment) validBefore(ctx context.Context) (x402.Seconds, error) {
	theirs, err := chain.Now(ctx, b.x.w.Backend)
	if err != nil {
		return 0, err
	}
	now := b.x.w.Now()
	if off := now.Sub(theirs); off.Abs() > b.x.w.ClockOff {
		return 0, fmt.Errorf("%w: this machine is %s off the endpoint's newest block (Chain.ClockTolerance is %s): no deposit is signed; set the clock, or use another endpoint",
			chain.ErrClock, off.Round(time.Second), b.x.w.ClockOff)
	}
	if theirs.After(now) {
		now = theirs
	}
	open := min(b.offer.MaxTimeoutSeconds, uint64(wallet.AuthorizationTTL/time.Second))
	return x402.Seconds(uint64(now.Unix()) + open), nil
}

// authorize signs a deposit under the token's own domain, as the chain has it, whatever the server says that it is.
func (b *ledger) authorize(ctx context.Context, d *x402.Deposit) error {
	separator, err := b.x.w.Token.DomainSeparator(ctx)
	if err != nil {
		return err
	}
	config, err := x402.ConfigOf(b.terms)
	if err != nil {
		return err
	}
	payload := x402.Payload{Config: config, Voucher: x402.Voucher{ChannelID: x402.Hash(b.id)}, Deposit: d}
	signed, err := chain.SignAuthorization(ctx, b.x.w.Key, separator, payload.Authorization())
	if err != nil {
		return err
	}
	if copy(d.Authorization.Signature[:], signed.Signature); len(signed.Signature) != len(d.Authorization.Signature) {
		return fmt.Errorf("channel %s: %w: the key's signature has %d bytes", b.id, channel.ErrSignature, len(signed.Signature))
	}
	return nil
}
