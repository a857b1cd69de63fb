package sdk

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/fault"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// usualRequests is for how many requests is deposited where nobody says how much.
const usualRequests = 10

// load finds the channel's slate. A channel that this database does not know may
// be on the chain nevertheless: it is the same for the same key and server.
func (b *buying) load(ctx context.Context) error {
	if err := b.vet(ctx); err != nil {
		return err
	}
	known, err := b.x.slates().load(ctx, b.id)
	if err != nil {
		return err
	}
	if known == nil {
		return b.begin(ctx)
	}
	if b.slate = *known; b.slate.Leaving {
		return fmt.Errorf("channel %s: %w: its deposit is being got back: finish Leave before paying on", b.id, channel.ErrClosing)
	}
	paid, err := b.x.payer.State(ctx, b.id)
	b.prior, b.own = paid.Signed, paid.Signed
	return err
}

func (x *X402Client) slates() slates { return slates{x.w.Store} }

// begin takes a channel up that this database does not know. What was claimed of it
// is an endpoint's word: the first voucher is for the price alone, which is worth
// nothing where more was claimed, and the server shows what we signed before. Nothing
// is kept of it until something is signed: whoever answers 402 does not fill the disk.
func (b *buying) begin(ctx context.Context) error {
	s, err := b.x.escrow.State(ctx, b.id)
	if err != nil {
		return err
	}
	b.view, b.fresh, b.found, b.prior = s.View, true, !s.View.Deposit.IsZero(), s.View.Settled
	b.slate = slate{ID: b.id, URL: origin(b.req.URL), Found: !s.View.Settled.IsZero()}
	paid, err := b.x.payer.State(ctx, b.id)
	if errors.Is(err, channel.ErrUnknown) {
		return nil
	}
	b.prior, b.own = paid.Cost(), paid.Signed // a crash came before the slate
	return err
}

// enter puts a channel on disk that is about to be signed for, and where.
func (b *buying) enter(ctx context.Context) error {
	if b.fresh {
		if _, err := b.x.payer.Adopt(ctx, b.terms, b.view); err != nil {
			return err
		}
	}
	if isNew := b.slate.visit(peer.Site(b.req.URL), b.terms.Payee); !isNew && !b.fresh {
		return nil
	}
	b.fresh = false
	return b.save(ctx)
}

func (b *buying) save(ctx context.Context) error { return b.x.slates().save(ctx, &b.slate) }

// observe reads what the chain says of the channel and, if it is kept, records it.
func (b *buying) observe(ctx context.Context) (channel.PayerState, channel.ChainView, error) {
	s, err := b.x.escrow.State(ctx, b.id)
	if err != nil {
		return channel.PayerState{}, s.View, err
	}
	b.view = s.View
	if b.fresh {
		return channel.PayerState{ID: b.id, Terms: b.terms, Deposit: s.View.Deposit, Settled: s.View.Settled, Signed: b.prior}, s.View, nil
	}
	if b.view, err = b.agreed(ctx, s.View); err != nil {
		return channel.PayerState{}, s.View, err
	}
	paid, err := b.x.payer.Observe(ctx, b.id, b.view)
	b.own = u256.Max(b.own, paid.Signed)
	return paid, b.view, err
}

// agreed is a view with the deposit that two endpoints agree on, where there are two
// and a deposit would be signed, or count no more in the caps, on the word of one: that
// the channel holds less than is known, or that what was authorized has arrived.
func (b *buying) agreed(ctx context.Context, v channel.ChainView) (channel.ChainView, error) {
	paid, err := b.x.payer.State(ctx, b.id)
	if err != nil {
		return v, err
	}
	less, arrived := v.Deposit.Lt(&paid.Deposit), !paid.Authorized.IsZero() && !v.Deposit.Lt(&paid.Authorized)
	if !less && !arrived {
		return v, nil
	}
	least, most, err := b.held(ctx)
	if err != nil {
		return v, err
	}
	if v.Deposit = least; less {
		v.Deposit = u256.Max(least, u256.Min(most, paid.Deposit))
	}
	v.Settled = u256.Min(v.Settled, v.Deposit)
	return v, nil
}

// held is the least and the most that the channel holds, by the newest words of two
// endpoints; the same where there is one.
func (b *buying) held(ctx context.Context) (least, most uint256.Int, err error) {
	on, _, err := b.x.escrow.Confirmed(ctx, []common.Hash{b.id}, 1)
	if err != nil {
		return least, most, err
	}
	return on[0].View.Deposit, on[0].Latest.Deposit, nil
}

// free is what the channel holds, as last read, and is neither charged nor claimed.
func (b *buying) free() (free uint256.Int) {
	return u256.SaturatingSub(b.view.Deposit, b.spent())
}

// spent is what is known to be charged, or was claimed, of what we signed: an endpoint's word for more counts for nothing.
func (b *buying) spent() uint256.Int {
	return u256.Max(b.slate.Charged, u256.Min(b.view.Settled, b.own))
}

// signed is a payment that is ready to be sent.
type signed struct {
	header  string
	most    uint256.Int   // what the voucher is for
	deposit *x402.Deposit // that goes with it
}

// payment makes the payment for the request: a voucher for what was charged and
// the price, and a deposit if the channel does not cover it.
func (b *buying) payment(ctx context.Context) (signed, error) {
	p := signed{}
	if _, overflow := p.most.AddOverflow(&b.slate.Charged, &b.offer.Amount.Int); overflow {
		return p, fmt.Errorf("channel %s: %w", b.id, channel.ErrAmount)
	}
	var err error
	if p.deposit, err = b.fund(ctx, p.most); err != nil {
		return p, err
	}
	b.most = p.most
	kind := x402.TypeVoucher
	if p.deposit != nil {
		kind = x402.TypeDeposit
	}
	p.header, err = b.header(ctx, kind, p.most, p.deposit, nil)
	return p, err
}

// header signs the voucher and writes the payment. What the voucher can cost is
// on disk before.
func (b *buying) header(ctx context.Context, kind x402.Type, most uint256.Int, deposit *x402.Deposit, refund *wire.Amount) (string, error) {
	if err := b.enter(ctx); err != nil {
		return "", err
	}
	voucher, err := b.x.payer.Pay(ctx, b.id, most)
	if err != nil {
		return "", err
	}
	config, err := x402.ConfigOf(b.terms)
	if err != nil {
		return "", err
	}
	p := x402.PaymentPayload{
		Accepted: b.offer, Extensions: b.first.Extensions,
		Payload: x402.Payload{Type: kind, Config: config, Deposit: deposit, Refund: refund},
	}
	if b.first.Resource.URL != "" {
		p.Resource = &b.first.Resource
	}
	if p.Payload.Voucher, err = x402.VoucherOf(voucher); err != nil {
		return "", err
	}
	h := http.Header{}
	if err := p.Set(h); err != nil {
		return "", err
	}
	b.key = rand.Text()
	return h.Get(x402.HeaderSignature), nil
}

// fund makes sure that the channel covers a voucher. It returns the deposit that
// must go with it, if one must.
func (b *buying) fund(ctx context.Context, most uint256.Int) (*x402.Deposit, error) {
	if b.slate.Deposit != nil {
		if under, err := b.underWay(ctx); err != nil {
			return nil, err
		} else if under {
			return b.again(ctx, most)
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

// underWay reports whether a deposit that was signed may still arrive, and if not
// records what became of it. It has arrived when it was used and the channel shows
// it; it cannot arrive any more when its time is over by the chain's clock and by
// ours. The time is read first, so that the state is no older.
func (b *buying) underWay(ctx context.Context) (bool, error) {
	a := b.slate.Deposit.Authorization
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
		if arrived, err = b.arrived(ctx); err != nil {
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
		if err := b.x.unseen(ctx, b.terms, b.slate.Deposit); err != nil {
			return false, err
		}
		if err := b.x.payer.Fund(ctx, b.id, most); err != nil {
			return false, err
		}
	}
	b.slate.Deposit = nil
	return false, b.save(ctx)
}

// unseen has the caps go on counting a deposit that ended without arriving, where
// one endpoint alone says so.
func (x *X402Client) unseen(ctx context.Context, t channel.Terms, d *x402.Deposit) error {
	if !x.w.Alone {
		return nil
	}
	a := d.Authorization
	return x.payer.Unseen(ctx, t, channel.DepositNonce(t.ID(), common.Hash(a.Salt)), d.Amount.Int, time.Unix(int64(a.ValidBefore), 0))
}

// over reports whether a time has passed on the chain, in a block with the wanted
// confirmations, and on our own clock: an endpoint that lies about the time does
// not have a second deposit signed beside one that is still good.
func (x *X402Client) over(ctx context.Context, at uint64) (bool, error) {
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

// arrived records what a channel holds once its deposit was used, and reports
// whether that is all that was meant for it.
func (b *buying) arrived(ctx context.Context) (bool, error) {
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

// again returns a deposit that is under way, to be sent once more.
func (b *buying) again(ctx context.Context, most uint256.Int) (*x402.Deposit, error) {
	_, view, err := b.observe(ctx)
	if err != nil {
		return nil, err
	}
	var total uint256.Int
	if total.Add(&view.Deposit, &b.slate.Deposit.Amount.Int); most.Gt(&total) {
		return nil, fmt.Errorf("channel %s: %w: one of %s is on its way and does not cover the request: wait until it arrives or expires",
			b.id, wallet.ErrDeposit, b.x.w.Format(b.slate.Deposit.Amount.Int))
	}
	return b.slate.Deposit, b.x.payer.Fund(ctx, b.id, total)
}

// deposit signs one: enough for a voucher, and what is usual beside it, within
// the caps. It is on disk before it leaves.
func (b *buying) deposit(ctx context.Context, before, most uint256.Int) (*x402.Deposit, error) {
	value, err := b.size(ctx, before, most)
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
	b.slate.Deposit = d
	if err := b.save(ctx); err != nil {
		return nil, err
	}
	fault.Point(fault.TopUpSigned)
	return d, nil
}

// size is how much to deposit.
func (b *buying) size(ctx context.Context, before, most uint256.Int) (value uint256.Int, err error) {
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
		value = u256.Min(b.usual(needed, least), u256.Max(room, least))
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

// usual is what is deposited where the renter did not say how much.
func (b *buying) usual(needed, least uint256.Int) (value uint256.Int) {
	if value = least; value.IsZero() {
		value.Mul(&b.offer.Amount.Int, uint256.NewInt(usualRequests)) // no overflow: amounts have 96 bits
	}
	return u256.Max(value, needed)
}

// capped is the refusal that Fund would give, before anything is kept.
func (b *buying) capped(cap string, before, value uint256.Int) error {
	caps, wanted := b.x.payer.Caps, uint256.Int{}
	limit := map[string]uint256.Int{channel.CapChannel: caps.PerChannel, channel.CapPayee: caps.PerPayee, channel.CapDay: caps.PerDay}[cap]
	return &channel.CapError{Channel: b.id, Cap: cap, Limit: limit, Wanted: *wanted.Add(&before, &value)}
}

// afford reports a deposit that cannot work, before it is signed.
func (b *buying) afford(ctx context.Context, value uint256.Int) error {
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

// validBefore is until when the server may draw a deposit: as long as it asks
// for, but no longer than a deposit is ever left open, by the later of the
// chain's clock and ours. Servers check it by their own. A chain that is further
// from our clock than ClockOff is not believed: its endpoint, or our own clock,
// would have deposits signed that are good for days or years.
func (b *buying) validBefore(ctx context.Context) (x402.Seconds, error) {
	theirs, err := chain.Now(ctx, b.x.w.Backend)
	if err != nil {
		return 0, err
	}
	now := b.x.w.Now()
	if off := now.Sub(theirs); off.Abs() > b.x.w.ClockOff {
		return 0, fmt.Errorf("%w: this machine is %s off the endpoint's newest block (ClockOff is %s): no deposit is signed; set the clock, or use another endpoint",
			chain.ErrClock, off.Round(time.Second), b.x.w.ClockOff)
	}
	if theirs.After(now) {
		now = theirs
	}
	open := min(b.offer.MaxTimeoutSeconds, uint64(wallet.AuthorizationTTL/time.Second))
	return x402.Seconds(uint64(now.Unix()) + open), nil
}

// authorize signs a deposit under the token's own domain, as the chain has it,
// whatever the server says that it is.
func (b *buying) authorize(ctx context.Context, d *x402.Deposit) error {
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
