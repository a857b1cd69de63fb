package channel_test

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
)

// counter is a signer that counts how often the key is asked, and can fail.
type counter struct {
	channel.Signer
	mu     sync.Mutex
	asked  int
	failed error
}

func (c *counter) Sign(ctx context.Context, digest common.Hash) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	if c.failed != nil {
		return nil, c.failed
	}
	return c.Signer.Sign(ctx, digest)
}

type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

var noCaps = channel.Caps{PerChannel: channel.MaxAmount(), PerPayee: channel.MaxAmount(), PerDay: channel.MaxAmount()}

// newPayer returns a payer with one channel of a deposit of 1000.
func newPayer(t testing.TB) (*channel.Payer, *counter, common.Hash) {
	t.Helper()
	key := &counter{Signer: payerKey}
	p := &channel.Payer{Store: openStore(t).Payer(), Signer: key, Domain: testDomain, Caps: noCaps}
	openChannel(t, p, "0x01", 1000)
	return p, key, testTerms("0x01").ID()
}

func openChannel(t testing.TB, p *channel.Payer, salt string, deposit uint64) common.Hash {
	t.Helper()
	if err := p.Open(context.Background(), testTerms(salt), units(deposit)); err != nil {
		t.Fatal(err)
	}
	return testTerms(salt).ID()
}

func pay(t testing.TB, p *channel.Payer, id common.Hash, amount uint64) channel.Voucher {
	t.Helper()
	v, err := p.Pay(context.Background(), id, units(amount))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func payerState(t testing.TB, p *channel.Payer, id common.Hash) channel.PayerState {
	t.Helper()
	s, err := p.State(context.Background(), id)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPay(t *testing.T) {
	p, key, id := newPayer(t)
	ctx := context.Background()
	first := pay(t, p, id, 0) // the initial voucher
	if err := testDomain.Verify(first, payerKey.Address()); err != nil {
		t.Error(err)
	}
	v := pay(t, p, id, 100)
	if again := pay(t, p, id, 100); !bytes.Equal(again.Signature, v.Signature) || key.asked != 2 {
		t.Errorf("the same amount asked the key again (%d times)", key.asked)
	}
	for _, c := range []struct {
		amount uint256.Int
		want   error
	}{{units(99), channel.ErrLower}, {units(0), channel.ErrLower}, {units(1001), channel.ErrExceedsDeposit}, {uint256.Int{0, 1 << 32}, channel.ErrAmount}} {
		if v, err := p.Pay(ctx, id, c.amount); !errors.Is(err, c.want) || v.Signature != nil {
			t.Errorf("pay %s: %v, want %v", c.amount.Dec(), err, c.want)
		}
	}
	if _, err := p.Pay(ctx, common.Hash{1}, units(1)); !errors.Is(err, channel.ErrUnknown) {
		t.Errorf("unknown channel: %v", err)
	}
	if key.asked != 2 {
		t.Errorf("refused payments asked the key %d times", key.asked-2)
	}
	s := payerState(t, p, id)
	if s.Signed != units(100) || !bytes.Equal(s.Signature, v.Signature) || s.Left() != units(900) {
		t.Errorf("kept %+v", s)
	}
}

func TestWhatIsPaidIsAccepted(t *testing.T) {
	payer, _, id := newPayer(t)
	payee, _ := newPayee(t)
	for _, amount := range []uint64{1, 500, 1000} {
		r, err := payee.Accept(context.Background(), pay(t, payer, id, amount))
		if err != nil || r.Outcome != channel.Accepted {
			t.Errorf("voucher for %d: %v, %v", amount, r.Outcome, err)
		}
	}
}

func TestCaps(t *testing.T) {
	day := &clock{time.Date(2026, 3, 1, 23, 59, 59, 0, time.UTC)}
	for _, c := range []struct {
		name   string
		caps   channel.Caps
		wanted uint64
		limit  uint64
	}{
		{channel.CapChannel, channel.Caps{PerChannel: units(599), PerPayee: units(9999), PerDay: units(9999)}, 600, 599},
		{channel.CapPayee, channel.Caps{PerChannel: units(9999), PerPayee: units(799), PerDay: units(9999)}, 800, 799},
		{channel.CapDay, channel.Caps{PerChannel: units(9999), PerPayee: units(9999), PerDay: units(799)}, 800, 799},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, key, id := newPayer(t)
			p.Now = day.Now
			other := openChannel(t, p, "0x02", 1000)
			pay(t, p, other, 200) // counts against payee and day, not the channel
			pay(t, p, id, 500)
			p.Caps = c.caps
			asked := key.asked
			v, err := p.Pay(context.Background(), id, units(600))
			var capped *channel.CapError
			if !errors.As(err, &capped) || v.Signature != nil {
				t.Fatalf("over the cap: %v", err)
			}
			if capped.Cap != c.name || capped.Limit != units(c.limit) || capped.Wanted != units(c.wanted) || capped.Channel != id {
				t.Errorf("refused with %+v: %v", *capped, err)
			}
			if key.asked != asked || payerState(t, p, id).Signed != units(500) {
				t.Error("a refused payment reached the key or the books")
			}
			pay(t, p, id, 599) // up to the cap is allowed
		})
	}
}

func TestZeroCapsRefuseEverything(t *testing.T) {
	p, key, id := newPayer(t)
	p.Caps = channel.Caps{}
	var capped *channel.CapError
	if _, err := p.Pay(context.Background(), id, units(1)); !errors.As(err, &capped) || key.asked != 0 {
		t.Errorf("pay: %v, key asked %d times", err, key.asked)
	}
	if err := p.Open(context.Background(), testTerms("0x09"), units(1)); !errors.As(err, &capped) {
		t.Errorf("open: %v", err)
	}
}

func TestDayCapTurnsAtMidnightUTC(t *testing.T) {
	p, _, id := newPayer(t)
	day := &clock{time.Date(2026, 3, 1, 23, 59, 59, 0, time.UTC)}
	p.Now, p.Caps.PerDay = day.Now, units(100)
	pay(t, p, id, 100)
	if _, err := p.Pay(context.Background(), id, units(101)); err == nil {
		t.Fatal("paid over the day's cap")
	}
	day.now = day.now.Add(time.Second).In(time.FixedZone("behind", -5*3600)) // still yesterday there
	pay(t, p, id, 200)
	if _, err := p.Pay(context.Background(), id, units(201)); err == nil {
		t.Error("paid over the next day's cap")
	}
}

// TestCapsUnderConcurrency: payments on many channels at once never pass a cap
// that they share, and what they reach is the cap.
func TestCapsUnderConcurrency(t *testing.T) {
	p, _, _ := newPayer(t)
	var ids []common.Hash
	for i := range 20 {
		ids = append(ids, openChannel(t, p, uint256.NewInt(uint64(100+i)).Hex(), 1000))
	}
	p.Caps.PerDay = units(500)
	var wait sync.WaitGroup
	for _, id := range ids {
		wait.Go(func() {
			for n := uint64(10); n <= 100; n += 10 {
				var capped *channel.CapError
				if _, err := p.Pay(context.Background(), id, units(n)); err != nil && !errors.As(err, &capped) {
					t.Error(err)
				}
			}
		})
	}
	wait.Wait()
	all, err := p.Channels(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var total uint256.Int
	for _, s := range all {
		total.Add(&total, &s.Signed)
	}
	if total != units(500) {
		t.Errorf("signed %s in all, want the cap of 500", total.Dec())
	}
}

// TestConcurrentPaymentsOnlyRise: of payments at once on one channel each is
// either handed out with its own signature or overtaken, and the highest stays.
func TestConcurrentPaymentsOnlyRise(t *testing.T) {
	p, _, id := newPayer(t)
	var wait sync.WaitGroup
	for n := range uint64(100) {
		wait.Go(func() {
			v, err := p.Pay(context.Background(), id, units(n+1))
			if errors.Is(err, channel.ErrLower) {
				return
			}
			if err != nil || v.Cumulative != units(n+1) || testDomain.Verify(v, payerKey.Address()) != nil {
				t.Errorf("pay %d: voucher for %s, %v", n+1, v.Cumulative.Dec(), err)
			}
		})
	}
	wait.Wait()
	s := payerState(t, p, id)
	v := channel.Voucher{ChannelID: id, Cumulative: s.Signed, Signature: s.Signature}
	if s.Signed != units(100) || testDomain.Verify(v, payerKey.Address()) != nil {
		t.Errorf("kept %s with %x", s.Signed.Dec(), s.Signature)
	}
}

// TestFailedSignerIsHealedByPayingAgain: what was reserved stays reserved, is
// not counted twice, and never becomes less.
func TestFailedSignerIsHealedByPayingAgain(t *testing.T) {
	p, key, id := newPayer(t)
	p.Caps.PerDay = units(100)
	key.failed = errors.New("KMS is away")
	if _, err := p.Pay(context.Background(), id, units(100)); !errors.Is(err, key.failed) {
		t.Fatalf("pay: %v", err)
	}
	if s := payerState(t, p, id); s.Signed != units(100) || len(s.Signature) != 0 {
		t.Errorf("kept %+v", s)
	}
	key.failed = nil
	if _, err := p.Pay(context.Background(), id, units(50)); !errors.Is(err, channel.ErrLower) {
		t.Errorf("pay less: %v, want %v", err, channel.ErrLower)
	}
	pay(t, p, id, 100)
}

// sloppy is a remote signer that does not know our form of a signature.
type sloppy struct{ channel.Signer }

func (s sloppy) Sign(ctx context.Context, digest common.Hash) ([]byte, error) {
	sig, err := s.Signer.Sign(ctx, digest)
	return highS(sig), err
}

func TestUnusableSignatureIsNotHandedOut(t *testing.T) {
	p, _, id := newPayer(t)
	p.Signer = sloppy{payerKey}
	if v, err := p.Pay(context.Background(), id, units(1)); !errors.Is(err, channel.ErrSignature) || v.Signature != nil {
		t.Errorf("handed out %x, %v", v.Signature, err)
	}
}

func TestOpenKeepsTheIntentFirst(t *testing.T) {
	p, key, id := newPayer(t)
	ctx := context.Background()
	s := payerState(t, p, id)
	if s.Status != channel.Pending || s.Deposit != units(1000) || key.asked != 0 {
		t.Errorf("kept %+v, key asked %d times", s, key.asked)
	}
	pay(t, p, id, 10)
	openChannel(t, p, "0x01", 1000) // again, as after a crash
	if s := payerState(t, p, id); s.Signed != units(10) {
		t.Errorf("opening again forgot what was signed: %+v", s)
	}
	if err := p.Open(ctx, delegated("0x02"), units(1)); !errors.Is(err, channel.ErrTerms) {
		t.Errorf("a channel that another key signs for: %v", err)
	}
	p.Caps.PerChannel = units(2000)
	var capped *channel.CapError
	if err := p.Open(ctx, testTerms("0x03"), units(2001)); !errors.As(err, &capped) {
		t.Errorf("a deposit over the cap: %v", err)
	}
	if err := p.Fund(ctx, id, units(2001)); !errors.As(err, &capped) {
		t.Errorf("a top-up over the cap: %v", err)
	}
	if err := p.Fund(ctx, id, units(2000)); err != nil {
		t.Error(err)
	}
	pay(t, p, id, 1500)
}

func TestPayerFollowsTheChain(t *testing.T) {
	p, _, id := newPayer(t)
	ctx := context.Background()
	for _, step := range []struct {
		name string
		view channel.ChainView
		want channel.Status
	}{
		{"not there yet", channel.ChainView{}, channel.Pending},
		{"mined", channel.ChainView{Deposit: units(1000)}, channel.Open},
		{"close requested", channel.ChainView{Deposit: units(1000), CloseRequestedAt: 9}, channel.Closing},
		{"still", channel.ChainView{Deposit: units(1000), CloseRequestedAt: 9}, channel.Closing},
		{"withdrawn", channel.ChainView{Deposit: units(1000), Finalized: true}, channel.Finalized},
		{"re-org", channel.ChainView{Deposit: units(1000)}, channel.Open},
	} {
		if s, err := p.Observe(ctx, id, step.view); err != nil || s.Status != step.want {
			t.Errorf("%s: %s, %v; want %s", step.name, s.Status, err, step.want)
		}
	}
	if s, err := p.Close(ctx, id); err != nil || s.Status != channel.Closing {
		t.Errorf("closed: %s, %v", s.Status, err)
	}
	if s, err := p.Observe(ctx, id, channel.ChainView{Deposit: units(1000)}); err != nil || s.Status != channel.Closing {
		t.Errorf("closed, before the chain knows: %s, %v", s.Status, err)
	}
	if _, err := p.Pay(ctx, id, units(1)); !errors.Is(err, channel.ErrClosing) {
		t.Errorf("paid on a closed channel: %v", err)
	}
	if err := p.Fund(ctx, id, units(2000)); !errors.Is(err, channel.ErrClosing) {
		t.Errorf("funded a closed channel: %v", err)
	}
	if err := p.Fund(ctx, id, units(900)); err != nil { // what was authorized cannot arrive any more
		t.Error(err)
	}
	if _, err := p.Pay(ctx, id, units(1)); !errors.Is(err, channel.ErrClosing) {
		t.Errorf("paid on a closed channel that was funded: %v", err)
	}
	if s, err := p.Reopen(ctx, id); err != nil || s.Status != channel.Open {
		t.Errorf("reopened: %s, %v", s.Status, err)
	}
	if err := p.Fund(ctx, id, units(2000)); err != nil { // to go on after all
		t.Fatal(err)
	}
	pay(t, p, id, 1)
	if _, err := p.Close(ctx, id); err != nil {
		t.Fatal(err)
	}
	for _, requested := range []uint64{9, 0} { // and a re-org takes the request back
		s, err := p.Observe(ctx, id, channel.ChainView{Deposit: units(1000), CloseRequestedAt: requested})
		if err != nil || s.Status != channel.Closing {
			t.Errorf("closed, request at %d: %s, %v", requested, s.Status, err)
		}
	}
	if mine, err := p.Channels(ctx, channel.Closing); err != nil || len(mine) != 1 {
		t.Errorf("a channel that holds our money is not listed: %v, %v", mine, err)
	}
	if _, err := p.Observe(ctx, id, channel.ChainView{Deposit: units(1000), Finalized: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Pay(ctx, id, units(1)); !errors.Is(err, channel.ErrFinalized) {
		t.Errorf("paid on a finalized channel: %v", err)
	}
	if err := p.Fund(ctx, id, units(1)); !errors.Is(err, channel.ErrFinalized) {
		t.Errorf("funded a finalized channel: %v", err)
	}
}
