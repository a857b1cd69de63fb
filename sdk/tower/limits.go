package tower

import (
	"cmp"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"golang.org/x/time/rate"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/limit"
)

// Limits bound what strangers may cost a watchtower beside gas: signatures
// to check, rows on disk and questions to the chain. A zero field is its
// default. A payee's or payer's own rate counts only what was rightly signed and is
// new, of channels that there are, and of vouchers for each client that sends them:
// nobody uses up another's.
type Limits struct {
	// ClientIP is who a request is from, in place of TrustedProxies: see
	// provider.Limits.ClientIP.
	ClientIP func(*http.Request) string

	Requests limit.Rate // of a client; 10 a second, 100 at once
	Vouchers limit.Rate // of a payee, from a client; 200 a second, 10,000 at once
	Channel  limit.Rate // of a channel, from a client: its vouchers; one a second, 10 at once
	Leaves   limit.Rate // of a payer: its close requests; one in 5 s, 10 at once
	// Reads is of the chain, by all; 50 a second, 200 at once. Of it a client has a fifth, and what nobody signed, a withdrawal,
	// has a quarter: of that a client a tenth, and a channel one a second.
	Reads limit.Rate
	Names int // clients, payees, channels and payers that are remembered, the latest; 50,000, in about 15 MB
}

func (l Limits) withDefaults() Limits {
	l.Requests = cmp.Or(l.Requests, limit.Rate{PerSecond: 10, Burst: 100})
	l.Vouchers = cmp.Or(l.Vouchers, limit.Rate{PerSecond: 200, Burst: 10_000})
	l.Channel = cmp.Or(l.Channel, limit.Rate{PerSecond: 1, Burst: 10})
	l.Leaves = cmp.Or(l.Leaves, limit.Rate{PerSecond: 0.2, Burst: 10})
	l.Reads = cmp.Or(l.Reads, limit.Rate{PerSecond: 50, Burst: 200})
	l.Names = cmp.Or(l.Names, 50_000)
	if l.ClientIP == nil {
		l.ClientIP = func(r *http.Request) string { return r.RemoteAddr }
	}
	return l
}

// guard holds a tower's clients to its limits.
type guard struct {
	limits Limits
	reads  *rate.Limiter
	asks   *rate.Limiter // of reads, those that nobody signed for
	names  *limit.Clients[*rate.Limiter]
	absent *limit.Clients[*atomic.Int64] // by channel, until when it is not looked for: unix nanoseconds
}

// How much of Reads goes to whom: one in so many.
const (
	shareUnsigned = 4  // what nobody signed, of all
	shareClient   = 5  // a client, of all
	shareAsking   = 10 // a client, of what nobody signed
)

// absentFor is how long a channel that the chain does not know is answered for from memory, where nobody signed what asks about it.
const absentFor = 10 * time.Second

func newGuard(limits Limits) *guard {
	return &guard{limits: limits, reads: limits.Reads.Limiter(), asks: share(limits.Reads, shareUnsigned).Limiter(),
		names: limit.NewClients[*rate.Limiter](limits.Names), absent: limit.NewClients[*atomic.Int64](limits.Names)}
}

func (g *guard) allow(name string, r limit.Rate) bool {
	return g.names.Get(name, r.Limiter).Allow()
}

// request admits a client's request. Who stands for many has no bound of its
// own.
func (g *guard) request(r *http.Request) bool {
	client := limit.Client(g.limits.ClientIP(r))
	return client == "" || g.allow("client "+client, g.limits.Requests)
}

// voucher admits one of a channel that there is, whose signature was checked. A payer can
// sign as many as it likes: those that it sends itself leave its payee's alone.
func (g *guard) voucher(client string, t channel.Terms) error {
	client = limit.Client(client)
	if !g.allow("channel "+t.ID().Hex()+" "+client, g.limits.Channel) {
		return fmt.Errorf("%w: too many vouchers of channel %s: send the newest, later", errBusy, t.ID())
	}
	if !g.allow("payee "+t.Payee.Hex()+" "+client, g.limits.Vouchers) {
		return fmt.Errorf("%w: too many vouchers for payee %s", errBusy, t.Payee)
	}
	return nil
}

// leave admits a close request whose signature was checked.
func (g *guard) leave(t channel.Terms) error {
	if !g.allow("payer "+t.Payer.Hex(), g.limits.Leaves) {
		return fmt.Errorf("%w: too many close requests of payer %s", errBusy, t.Payer)
	}
	return nil
}

// share is one in so many of a rate.
func share(r limit.Rate, of int) limit.Rate {
	return limit.Rate{PerSecond: r.PerSecond / float64(of), Burst: max(1, r.Burst/of)}
}

var errReads = fmt.Errorf("%w: too many channels are asked about", errBusy)

// read admits one look at the chain for what a client sent that is signed.
func (g *guard) read(client string) error {
	if client = limit.Client(client); client != "" && !g.allow("reads "+client, share(g.limits.Reads, shareClient)) {
		return errReads
	}
	if !g.reads.Allow() {
		return errReads
	}
	return nil
}

// ask admits one look at the chain for what nobody signed. It takes a share of all looks at most, so that it holds up nothing that
// is signed.
func (g *guard) ask(client string, id common.Hash) error {
	if client = limit.Client(client); client != "" && !g.allow("asks "+client, share(share(g.limits.Reads, shareUnsigned), shareAsking)) {
		return errReads
	}
	if !g.allow("asked "+id.Hex(), limit.Rate{PerSecond: 1, Burst: 10}) {
		return errReads
	}
	if !g.asks.Allow() || !g.reads.Allow() {
		return errReads
	}
	return nil
}

// missing reports whether the chain did not know a channel a moment ago. A moment further ahead than absentFor is of before the clock
// was set back: nobody waits for his deposit for as long as that.
func (g *guard) missing(id common.Hash) bool {
	left := g.absent.Get(id.Hex(), newMoment).Load() - time.Now().UnixNano()
	return 0 < left && left <= int64(absentFor)
}

// miss remembers that the chain does not know a channel.
func (g *guard) miss(id common.Hash) {
	g.absent.Get(id.Hex(), newMoment).Store(time.Now().Add(absentFor).UnixNano())
}

func newMoment() *atomic.Int64 { return new(atomic.Int64) }

// mention keeps what repeats out of the log.
func (g *guard) mention(payee common.Address) bool {
	return g.allow("log "+payee.Hex(), limit.Rate{PerSecond: 1. / 60, Burst: 1})
}
