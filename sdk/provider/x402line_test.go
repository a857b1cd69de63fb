package provider

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/x402"
)

// stock is one call of a stock client that shares its books with others: it
// reads the base, pays, and is corrected once.
func (b *buyer) stock(base uint64) (status int, charged uint64) {
	amount := b.accept().Amount.Int
	most := base + amount.Uint64()
	for range 2 {
		resp := b.send("GET", b.path, headerOf(b.T, b.payment(most)))
		if resp.StatusCode != http.StatusPaymentRequired {
			receipt, err := x402.ParseSettleResponse(resp.Header)
			if err != nil || receipt.ChargedAmount == nil {
				b.Errorf("%s: %v", resp.Status, err)
				return resp.StatusCode, 0
			}
			return resp.StatusCode, receipt.ChargedAmount.Uint64()
		}
		required, err := x402.ParsePaymentRequired(resp.Header)
		if err != nil || required.Accepts[0].Extra.ChannelState == nil {
			b.Errorf("%+v %v", required, err)
			return resp.StatusCode, 0
		}
		told := required.Accepts[0].Extra.ChannelState.ChargedCumulativeAmount.Int
		most = told.Uint64() + amount.Uint64()
	}
	return http.StatusPaymentRequired, 0
}

// TestManyAtOnceAreAllServed: stock clients are corrected once and then give up;
// the line sees to it that once is enough.
func TestManyAtOnceAreAllServed(t *testing.T) {
	r := newPayRig(t, func(c *Config) { c.X402.Slack = 10 * time.Second })
	x402Of(r.provider).Queue.Hold = time.Minute // however late the one that was corrected comes
	b := r.buyer("/tick")
	b.open(900_000)
	const calls = 20
	var wait sync.WaitGroup
	var mu sync.Mutex
	var sum uint64
	base := b.charged
	for range calls {
		wait.Go(func() {
			status, charged := b.stock(base)
			mu.Lock()
			defer mu.Unlock()
			sum += charged
			if status != http.StatusOK || charged == 0 {
				t.Errorf("a call got %d, for %d", status, charged)
			}
		})
	}
	wait.Wait()
	kept := b.kept()
	spent := kept.Spent
	if spent.Uint64() < base+sum {
		t.Errorf("%d calls were charged %d, the channel %s after %d", calls, sum, spent.Dec(), base)
	}
}

// TestLineIsBounded: one channel's requests do not use up the provider.
func TestLineIsBounded(t *testing.T) {
	const calls, waiting = 10, 2
	r := newPayRig(t, func(c *Config) { c.X402.Line = waiting })
	b := r.buyer("/tick")
	b.open(100_000)
	b.idle() // so that no lease uses anything meanwhile, and what is signed stays right
	served, err := x402Of(r.provider).Queue.Enter(t.Context(), b.terms.ID(), uint256.Int{})
	if err != nil {
		t.Fatal(err)
	}
	leave := sync.OnceFunc(func() { served.Leave(nil) })
	defer leave()
	header, answers := headerOf(t, b.payment(b.next())), make(chan int, calls)
	for range calls {
		go func() { answers <- b.send("GET", b.path, header.Clone()).StatusCode }()
	}
	got := make(map[int]int)
	for n := range calls {
		if n == calls-waiting {
			leave()
		}
		select {
		case status := <-answers:
			got[status]++
		case <-time.After(time.Minute):
			t.Fatalf("more than %d wait; answers: %v", waiting, got)
		}
	}
	if got[http.StatusTooManyRequests] != calls-waiting || got[http.StatusOK] != 1 || got[http.StatusPaymentRequired] != waiting-1 {
		t.Errorf("answers: %v", got)
	}
}

// TestWrongAmountIsCorrected: too much and too little are told the same, and
// nothing is charged or kept of them.
func TestWrongAmountIsCorrected(t *testing.T) {
	r := newPayRig(t)
	b := r.buyer("/tick")
	b.open(100_000)
	right := b.charged
	for _, most := range []uint64{1, right, right + 1, right + testMost - 1, right + testMost + 1, 90_000} {
		before := b.kept()
		b.charged = 0
		b.corrected(b.pay(b.payment(most)))
		if after := b.kept(); after.Accepted != before.Accepted {
			t.Errorf("%d: accepted %s after %s", most, after.Accepted.Dec(), before.Accepted.Dec())
		}
	}
	b.again()
}

// TestDebtIsCarried: where a reading came so late that more was used than was
// reserved, each request is charged no more than it is over, and the client can
// go on, also after a claim.
func TestDebtIsCarried(t *testing.T) {
	t.Parallel()
	for name, claimed := range map[string]bool{"kept": false, "claimed": true} {
		t.Run(name, func(t *testing.T) {
			r := newPayRig(t)
			b := r.buyer("/tick")
			b.open(100_000)
			b.idle()
			const debt = 1700
			kept := b.kept()
			late := kept.Accepted
			late.AddUint64(&late, debt)
			if _, err := x402Of(r.provider).Book.Charge(t.Context(), b.terms.ID(), late); err != nil {
				t.Fatal(err)
			}
			if claimed {
				if err := r.provider.Settle(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			for range 6 {
				if tick := b.again(); tick.ChargedAmount.Uint64() >= testMost {
					t.Errorf("charged %s under a voucher of %d more", tick.ChargedAmount.Dec(), testMost)
				}
			}
			b.idle()
			if kept = b.kept(); kept.Spent.Lt(&late) || !kept.Spent.Lt(&kept.Accepted) {
				t.Errorf("used %s, accepted %s: the debt of %s is still there", kept.Spent.Dec(), kept.Accepted.Dec(), late.Dec())
			}
		})
	}
}

// TestOneCorrectionIsEnough: a stock client that is corrected while its lease uses up what was reserved, and asks again when
// it has, is served: what the lease used meanwhile is charged with that request, within its amount.
func TestOneCorrectionIsEnough(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/tick", "/lease", "refund"} {
		t.Run(path, func(t *testing.T) {
			r := newPayRig(t, func(c *Config) { c.X402.Slack = 2 * time.Second })
			x402Of(r.provider).Queue.Hold = time.Minute // however late the one that was corrected comes
			b := r.buyer("/tick")
			first := b.accept().Amount.Int
			b.open(100_000)
			if path == "/lease" {
				b.path = path
			}
			one := b.fresh()
			next := func() *x402.PaymentPayload { return one.payment(one.next()) }
			if path == "refund" {
				next = func() *x402.PaymentPayload { return one.refunding(0) }
			}
			for tries := 0; ; tries++ { // until it is told before the slack is used
				one.charged = 0
				if path == "refund" {
					one.charged = 1
				}
				one.corrected(one.pay(next()))
				if kept := b.kept(); kept.Spent.Uint64() == one.charged && r.provider.leases.Running(b.terms.ID()).Status.State() == leasestore.Active {
					break
				}
				if tries == 10 {
					t.Skip("this machine is too slow to come before the slack is used")
				}
				one.again()
			}
			eventually(t, "the slack is used", func() bool { kept := b.kept(); return kept.Spent.Uint64() > one.charged })
			told := one.charged
			if path == "/lease" {
				resp := one.pay(next())
				if resp.StatusCode != http.StatusOK {
					t.Fatalf("corrected twice: %s", resp.Status)
				}
				return
			}
			one.take(one.pay(next()))
			if path == "refund" {
				if used := b.used(); b.on().View.Settled != used || b.holds() != used.Uint64() {
					t.Errorf("%s is used, the contract has %+v", used.Dec(), b.on().View)
				}
				return
			}
			if one.charged >= told+first.Uint64() {
				t.Errorf("a request for %s was charged %d", first.Dec(), one.charged-told)
			}
			b.idle()
			if kept := b.kept(); kept.Spent.Uint64() < one.charged {
				t.Errorf("told %d, charged %s", one.charged, kept.Spent.Dec())
			}
		})
	}
}

// TestNobodyIsToldAPublicAmount: where the amount that comes next is that of a voucher that was claimed, and so could be
// anybody's, the client hears of the next one at once.
func TestNobodyIsToldAPublicAmount(t *testing.T) {
	r := newPayRig(t)
	b := r.buyer("/tick")
	b.open(100_000)
	b.idle()
	if _, err := x402Of(r.provider).Book.Accept(t.Context(), b.voucher(b.next()).Voucher()); err != nil { // and then nothing was metered
		t.Fatal(err)
	}
	if err := r.provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	one := b.fresh()
	one.corrected(one.pay(one.payment(one.next())))
	one.take(one.pay(one.payment(one.next())))
}
