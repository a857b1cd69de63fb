package model

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"pgregory.net/rapid"

	"github.com/gpupay/gpupay/bindings/batchsettlement"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/x402"
	"github.com/gpupay/gpupay/sdk/x402/x402client"
)

// What a provider of ticks is set to. A tick costs 600 base units.
const (
	tickWindow = 600 * time.Millisecond
	tickSlack  = 80 * time.Millisecond
	tickGap    = 150 * time.Millisecond
)

// giver is a collector that mints what it is asked for: x402's contract takes a deposit of anybody's, and so a stranger's.
var giver = common.HexToAddress("0x61f7")

// giverCode calls token.mint(msg.sender, amount) at each collect(payer, token, amount, id, data).
var giverCode = common.FromHex("6340c10f1960e01b5f52336004526044356024525f5f60445f5f6024355af100")

// A pausedClock is the system's, set ahead and stopped at will.
type pausedClock struct {
	metering.Clock
	mu      sync.Mutex
	ahead   int64
	stopped *metering.Instant
}

func (p *pausedClock) Now() metering.Instant {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped != nil {
		return *p.stopped
	}
	now := p.Clock.Now()
	now.Boot, now.Mono, now.Wall = now.Boot+p.ahead, now.Mono+p.ahead, now.Wall+p.ahead
	return now
}

func (p *pausedClock) pass(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ahead += int64(d)
}

func (p *pausedClock) stop() {
	at := p.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = &at
}

// A tenancy is a renter that pays by ticks, over x402.
type tenancy struct {
	*market
	r      *program
	clock  *pausedClock
	client *x402client.Client
	rental *x402client.Rental
	books  int  // databases so far
	lost   bool // what it signed for is not in its books: one record may have begun before it was asked for
	ticked int  // ticks of other tenancies
}

// TestTicks: whoever deposits into a renter's channel, and whatever its books have lost, time that does not pass on its own
// clock is not billed but for what the voucher before left open and two clocks' drift, and an honest provider is not accused.
func TestTicks(t *testing.T) {
	set(t, "rapid.checks", strconv.Itoa(3*markets(t)))
	set(t, "rapid.nofailfile", "true")
	set(t, "rapid.shrinktime", "1ms")
	seen := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		m := newMarket(rt, seen, func(c *provider.Config) {
			c.X402.Window, c.X402.Slack, c.Metering.MaxGap = tickWindow, tickSlack, tickGap
		})
		n := &tenancy{market: m, r: m.renters[0], clock: &pausedClock{Clock: metering.System}, ticked: seen["ticks"]}
		n.begin(false)
		n.happen(rt)
		n.freeze(rt)
	})
	t.Log(seen)
}

// begin has the renter's program begin anew, with an empty database if it lost its own.
func (n *tenancy) begin(lost bool) {
	n.must(n.r.Close())
	if lost {
		n.books++
		n.r.config.Database = filepath.Join(n.dir, fmt.Sprintf("tenant %d.db", n.books))
	}
	n.r.config.Clock = n.clock
	n.start(n.r)
	var err error
	n.client, err = x402client.New(n.ctx, n.r.Wallet(), x402client.Options{MaxPrice: wallet.Unlimited})
	n.must(err)
	n.rental, err = n.client.Rent(n.ctx, n.server.URL, 1)
	n.must(err)
}

// happen is a part of what may come before.
func (n *tenancy) happen(t *rapid.T) {
	may := func(what string) bool { return rapid.Bool().Draw(t, what) }
	for range rapid.IntRange(0, 2).Draw(t, "ticks") {
		_, err := n.tick()
		n.must(err)
		if may("pass") {
			n.clock.pass(15 * time.Minute)
		}
	}
	if may("settle") {
		n.must(n.provider.Settle(n.ctx))
	}
	if may("gift") {
		n.gift(rapid.SampledFrom([]uint64{1, 20_000}).Draw(t, "amount"))
	}
	if n.lost = may("lose"); n.lost {
		n.begin(true)
	}
}

// tick is what a tick cost.
func (n *tenancy) tick() (uint64, error) {
	ctx, cancel := context.WithTimeout(n.ctx, 20*time.Second)
	defer cancel()
	tick, err := n.rental.Tick(ctx)
	if err != nil {
		return 0, err
	}
	n.seen["ticks"]++
	return tick.Charged.Uint64(), nil
}

// freeze has the renter's clock stand still, an hour ahead of what a record can say, and the provider bill all the same.
func (n *tenancy) freeze(t *rapid.T) {
	may := n.left() + uint64((tickGap+250*time.Millisecond)/time.Millisecond) // 1 ms is a base unit; the drift is for two clocks
	if n.lost && n.seen["ticks"] > n.ticked {                                 // the provider has its voucher, claimed or not, and shows it
		may += uint64((tickWindow + tickSlack) / time.Millisecond)
		n.seen["found"]++
	}
	n.clock.pass(time.Hour)
	n.clock.stop()
	var billed uint64
	for range rapid.IntRange(1, 3).Draw(t, "ticks") {
		charged, err := n.tick()
		var lie *wallet.Dispute
		if errors.As(err, &lie) {
			n.seen["refused"]++
			break
		}
		n.must(err)
		billed += charged
	}
	if billed > may {
		n.Fatalf("%d ms were billed in no time, at most %d may be", billed, may)
	}
}

// left is what was signed for before and not charged.
func (n *tenancy) left() (sum uint64) {
	channels, err := n.client.Channels(n.ctx)
	n.must(err)
	for _, c := range channels {
		sum += c.Signed.Uint64() - c.Charged.Uint64()
	}
	return max(sum, uint64(tickSlack/time.Millisecond))
}

// terms are of the channel that pays the provider: its salt is made of the client's, which is zero, and of the site.
func (n *tenancy) terms() channel.Terms {
	resp, err := http.Get(n.server.URL + "/tick?gpus=1")
	n.must(err)
	resp.Body.Close()
	required, err := x402.ParsePaymentRequired(resp.Header)
	n.must(err)
	o := required.Accepts[0]
	return channel.Terms{Scheme: channel.BatchSettlement, ChainID: n.rentedOn(), Escrow: channel.BatchSettlementEscrow,
		Payer: n.r.Address(), Payee: n.payee.Address(), Token: n.token.Address, AuthorizedSigner: n.r.Address(),
		PayeeAuthorizer: common.Address(o.Extra.ReceiverAuthorizer), WithdrawDelay: o.Extra.WithdrawDelay,
		Salt: crypto.Keccak256Hash([]byte("gpupay x402 site "), make([]byte, common.HashLength), []byte(n.server.URL))}
}

func (n *tenancy) rentedOn() uint64 {
	id, err := n.chain.ChainID(n.ctx)
	n.must(err)
	return id.Uint64()
}

// gift is a stranger's deposit in the channel.
func (n *tenancy) gift(amount uint64) { n.must(n.send(n.stranger, giftCall(n.terms(), amount))) }

// giftCall deposits into an x402 channel what its payer never signed for.
func giftCall(t channel.Terms, amount uint64) chain.Call {
	return chain.Call{Kind: "gift", To: channel.BatchSettlementEscrow, Data: batchsettlement.NewBatchSettlement().PackDeposit(batchsettlement.ChannelConfig{
		Payer: t.Payer, PayerAuthorizer: t.AuthorizedSigner, Receiver: t.Payee, ReceiverAuthorizer: t.PayeeAuthorizer, Token: t.Token,
		WithdrawDelay: new(big.Int).SetUint64(t.WithdrawDelay), Salt: t.Salt}, new(big.Int).SetUint64(amount), giver, nil)}
}
